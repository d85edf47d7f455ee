"""Examines the bucket: does it refuse to overwrite, does a rule delete the log, and what does it cost?"""

import json
import shlex
from urllib.parse import urlsplit

from cdc.archive.bucket.bucket import Bucket, prove_conditional_put
from cdc.archive.bucket.cost import PUT_USD, busy_month_usd, idle_month_usd
from cdc.archive.bucket.lifecycle import Rules, read_bucket_time, read_rules
from cdc.archive.bucket.opening import open_bucket
from cdc.archive.reader.tail import Tail, read_tail
from cdc.config import ArchiveSettings
from cdc.doctor.clock import compare, judge_clock
from cdc.errors import CdcError
from cdc.finding import Finding, failure
from cdc.lsn import format_lsn

# More than this for PUTs alone is rarely meant: it is a PUT every quarter of a second.
_DEAR_USD = 50.0

_LOCAL = ("localhost", "127.0.0.1", "::1")
_R2 = ".r2.cloudflarestorage.com"
_R2_REGIONS = ("auto", "us-east-1")


async def examine_archive(settings: ArchiveSettings) -> list[Finding]:
    """Examine the bucket, the probe first: if it fails, nothing else matters. A CdcError becomes a finding."""
    findings = judge_address(settings)
    try:
        bucket = open_bucket(settings)
        try:
            await prove_conditional_put(bucket)
            findings += judge_archive(settings, await read_tail(bucket))
            findings += await _examine_surroundings(settings, bucket)
        finally:
            await bucket.close()
    except CdcError as error:
        findings.append(failure("archive", error))
    return findings


async def _examine_surroundings(settings: ArchiveSettings, bucket: Bucket) -> list[Finding]:
    rules = await read_rules(settings, bucket)
    if rules is None:
        return []
    clock = await compare(lambda: read_bucket_time(bucket), resolution_s=1.0)
    return [*judge_rules(settings, rules), *judge_clock("archive", "the bucket", clock), *judge_cost(settings)]


def judge_address(settings: ArchiveSettings) -> list[Finding]:
    """Judge the endpoint's address, before any request."""
    endpoint = urlsplit(settings.endpoint_url or "")
    host = endpoint.hostname or ""
    if endpoint.scheme == "http" and host not in _LOCAL:
        message = f"archive.endpoint_url is http: anyone on the way to {host} can read every row"
        return [Finding("archive", message, f'endpoint_url = "https://{endpoint.netloc}"   # in [archive]')]
    if host.endswith(_R2) and settings.region not in _R2_REGIONS:
        message = f"archive.region is {settings.region}, and R2 wants auto"
        return [Finding("archive", message, 'region = "auto"   # in [archive]', level="error")]
    return []


def judge_archive(settings: ArchiveSettings, tail: Tail | None) -> list[Finding]:
    """Judge what is in the bucket, which has passed the probe."""
    findings = [Finding("archive", f"{settings.url} creates objects once and does not overwrite them", level="ok")]
    if tail is None:
        findings.append(Finding("archive", "the archive is empty; the first `cdc run` begins it", level="ok"))
    else:
        findings.append(
            Finding(
                "archive", f"segment {tail.seq} is the last, covered up to {format_lsn(tail.covered_upto)}", level="ok"
            )
        )
    return findings


def judge_rules(settings: ArchiveSettings, rules: Rules) -> list[Finding]:
    """Judge the lifecycle rules. The log is of use only as a whole, so a rule that deletes its start deletes all."""
    findings = []
    mend = _keep_only(settings, rules)
    for rule in rules.harmful or ():
        under = rule.prefix or "everything"
        if rule.deletes:
            message = f"lifecycle rule {rule.name!r} deletes objects of the archive {rule.when} (prefix: {under})"
            findings.append(Finding("archive", message, mend, level="error", command=mend))
        else:
            message = f"lifecycle rule {rule.name!r} moves the archive {rule.when} to where reading takes hours"
            findings.append(Finding("archive", message, mend, command=mend))
    if rules.harmful is None:
        message = "whether a lifecycle rule deletes the log cannot be seen: the store or the key's rights do not tell"
        hint = "allow s3:GetLifecycleConfiguration, or look: npx wrangler r2 bucket lifecycle list BUCKET"
        findings.append(Finding("archive", message, hint, level="info"))
    elif not rules.harmful:
        findings.append(Finding("archive", "no lifecycle rule deletes or hides the log", level="ok"))
    return [*findings, *_judge_versions(settings, rules)]


def _judge_versions(settings: ArchiveSettings, rules: Rules) -> list[Finding]:
    if rules.locked:
        return [Finding("archive", "the bucket is locked: objects cannot be deleted before their time", level="ok")]
    if rules.versioned is not False:
        return []
    mend = f'aws s3api put-bucket-versioning {_bucket(settings)} --versioning-configuration \'{{"Status": "Enabled"}}\''
    message = "the bucket keeps no versions: a deleted object is gone"
    return [Finding("archive", message, mend, level="info", command=mend, optional=True)]


def _keep_only(settings: ArchiveSettings, rules: Rules) -> str:
    """The command that keeps only the harmless rules: S3 takes the lifecycle rules as a whole."""
    if not rules.others:
        return f"aws s3api delete-bucket-lifecycle {_bucket(settings)}"
    kept = shlex.quote(json.dumps({"Rules": rules.others}, default=str))
    return f"aws s3api put-bucket-lifecycle-configuration {_bucket(settings)} --lifecycle-configuration {kept}"


def _bucket(settings: ArchiveSettings) -> str:
    options = ["--bucket", urlsplit(settings.url).netloc, "--region", settings.region]
    options += ["--endpoint-url", settings.endpoint_url] if settings.endpoint_url else []
    return shlex.join(options if settings.endpoint_url or settings.region != "auto" else options[:2])


def judge_cost(settings: ArchiveSettings) -> list[Finding]:
    """Judge the cost of a month's PUTs at R2's prices. AWS takes a little more for a PUT."""
    busy, idle = busy_month_usd(settings), idle_month_usd(settings)
    message = (
        f"PUTs cost at most ${busy:.2f} a month while traffic never pauses (linger_s = {settings.linger_s:g}), "
        f"${idle:.2f} without any, at ${PUT_USD * 1e6:.2f} a million"
    )
    if busy <= _DEAR_USD:
        return [Finding("archive", message, level="ok")]
    return [Finding("archive", message, "linger_s = 1.0   # in [archive]")]
