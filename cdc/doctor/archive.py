"""The bucket: whether it keeps its word, whether anything there deletes the log, and what it costs."""

from cdc.archive.bucket import Bucket, open_bucket, prove_conditional_put
from cdc.archive.tail import Tail, read_tail
from cdc.config import ArchiveSettings
from cdc.doctor.finding import Finding, failure
from cdc.errors import CdcError
from cdc.lsn import format_lsn


async def examine_archive(settings: ArchiveSettings) -> list[Finding]:
    """The probe first: without it nothing else matters."""
    try:
        bucket = open_bucket(settings)
        try:
            await prove_conditional_put(bucket)
            return judge_archive(settings, await read_tail(bucket)) + await _examine_rules(settings, bucket)
        finally:
            await bucket.close()
    except CdcError as error:
        return [failure("archive", error)]


async def _examine_rules(settings: ArchiveSettings, bucket: Bucket) -> list[Finding]:
    return []


def judge_archive(settings: ArchiveSettings, tail: Tail | None) -> list[Finding]:
    """The bucket has proved itself; what is in it?"""
    findings = [Finding("ok", "archive", f"{settings.url} creates objects once and does not overwrite them")]
    if tail is None:
        findings.append(Finding("ok", "archive", "the archive is empty; the first `cdc run` begins it"))
    else:
        findings.append(
            Finding("ok", "archive", f"segment {tail.seq} is the last, covered up to {format_lsn(tail.covered_upto)}")
        )
    return findings
