"""`cdc archive ls`, `cat` and `verify`: what is in the archive, as it lies there, and the proof that it is whole."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.bucket.opening import open_bucket
from cdc.archive.format.header import Fork, Repair
from cdc.archive.format.header_line import header_facts
from cdc.archive.format.object_key import log_key
from cdc.archive.proof.audit import RecordedGap
from cdc.archive.proof.verification import Prover, VerificationRun
from cdc.archive.reader.reader import SegmentFacts, cat_lines, list_segments
from cdc.change import format_time
from cdc.config import ArchiveSettings
from cdc.errors import Invalid
from cdc.lsn import format_lsn
from cdc.monitor.table import size

# Of fixed widths, because segments are printed as they are read: a large archive needs no memory.
_ROW = "{:>8}  {:<8}  {:>17}  {:>17}  {:>9}  {:>8}  {:>8}  {:<27}  {}"
_HEADINGS = _ROW.format("seq", "kind", "last_lsn", "covered_upto", "ordinal", "tx", "changes", "to_time", "size")


async def ls(settings: ArchiveSettings, first: int, last: int | None, *, as_json: bool) -> AsyncIterator[bytes]:
    """A line for each segment; as JSON, its header with key, size and checksum."""
    bucket = open_bucket(settings)
    try:
        await _check_there(bucket, first)
        if not as_json:
            yield _HEADINGS.encode()
        async for facts in list_segments(bucket, first, last):
            yield (_json(facts) if as_json else _row(facts)).encode()
    finally:
        await bucket.close()


def _row(facts: SegmentFacts) -> str:
    header = facts.header
    return _ROW.format(
        header.seq,
        header.kind,
        format_lsn(header.last_lsn),
        format_lsn(header.covered_upto),
        header.first_ordinal,
        header.transactions,
        header.changes,
        "-" if header.to_time_us is None else format_time(header.to_time_us),
        size(facts.nbytes),
    )


def _json(facts: SegmentFacts) -> str:
    own = {"key": facts.key, "bytes": facts.nbytes, "sha256": facts.sha256}
    return json.dumps(header_facts(facts.header) | own, separators=(",", ":"))


async def cat(settings: ArchiveSettings, first: int, last: int | None, *, table: str | None) -> AsyncIterator[bytes]:
    """The changes, byte for byte as they were archived."""
    bucket = open_bucket(settings)
    try:
        await _check_there(bucket, first)
        async for line in cat_lines(bucket, first, last, table=table):
            yield line
    finally:
        await bucket.close()


async def _check_there(bucket: Bucket, first: int) -> None:
    if await bucket.head(log_key(first)) is None:
        what = f"there is no segment {first} in {bucket.url}" if first else f"there is no archive yet at {bucket.url}"
        raise Invalid(what, hint="cdc archive ls; cdc status")


async def prove(settings: ArchiveSettings, *, full: bool) -> VerificationRun:
    """Verify what is new, or everything. Raises Unavailable or Invalid if it cannot be read or is not there."""
    bucket = open_bucket(settings)
    try:
        await _check_there(bucket, 0)
        return await Prover(bucket, full=full).run()
    finally:
        await bucket.close()


def report_facts(run: VerificationRun) -> dict[str, Any]:
    """The report as plain values, for `--json`. Counts are of the whole archive, `segments_read` of this run."""
    report, since = run.report, run.since
    return {
        "intact": report.intact,
        "archive": report.archive,
        "segments": report.segments,
        "kinds": dict(report.kinds),
        "transactions": report.transactions,
        "changes": report.changes,
        "bytes": report.nbytes,
        "base_chunks": report.base_chunks,
        "base_rows": report.base_rows,
        "abandoned_parts": report.abandoned_parts,
        "uncommitted_chunks": report.uncommitted_chunks,
        "sealed": report.sealed,
        "last_seq": report.last_seq,
        "segments_read": run.segments_read,
        "after": since and {"seq": since.seq, "covered_upto": since.covered_upto, "proved_at": since.time},
        "whole_since": run.whole_since,
        "restarted": run.restarted or None,
        "unremembered": run.unremembered or None,
        "last_commit_lsn": format_lsn(report.last_commit_lsn),
        "covered_upto": format_lsn(report.covered_upto),
        "gaps": [_gap_facts(recorded) for recorded in report.gaps],
        "forks": [_fork_facts(fork) for fork in report.forks],
        "findings": [{"key": finding.key, "problem": finding.problem} for finding in report.findings],
    }


def report_lines(run: VerificationRun) -> Iterator[str]:
    """The report for people; what is wrong comes last, where it is seen."""
    report = run.report
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.kinds.items()))
    yield f"archive {report.archive or 'of unknown identity'}, {size(report.nbytes)}"
    yield f"{report.segments} segments ({kinds})"
    covered = format_lsn(report.covered_upto)
    yield f"{report.transactions} transactions, {report.changes} changes, covered up to {covered}"
    yield f"{report.base_rows} rows in {report.base_chunks} chunks of snapshots"
    if report.abandoned_parts or report.uncommitted_chunks:
        left = f"{report.abandoned_parts} parts and {report.uncommitted_chunks} chunks"
        yield f"left by interrupted work, and of no consequence: {left}"
    if report.sealed:
        yield f"{report.sealed} encrypted objects, of which all is proved but what their lines say: no archive.identity"
    yield from (_gap_line(recorded) for recorded in report.gaps)
    for fork in report.forks:
        yield f"fork: timeline {fork.previous.timeline} was left at {format_lsn(fork.switch_lsn)} ({fork.reason})"
    yield from _reach_lines(run)
    for finding in report.findings:
        yield f"{finding.key}: {finding.problem}"
    yield "intact" if report.intact else f"NOT INTACT: {len(report.findings)} findings"


def _reach_lines(run: VerificationRun) -> Iterator[str]:
    """From where to where it was read this time."""
    report, since = run.report, run.since
    if run.restarted:
        yield f"read from the start: {run.restarted}"
    if since is None:
        yield f"read segments 0 to {report.last_seq}"
    else:
        new = f"segments {since.seq + 1} to {report.last_seq}" if run.segments_read else "nothing new"
        yield f"read {new}; up to segment {since.seq} proved at {since.time}, as a whole at {run.whole_since}"
    if run.unremembered:
        yield f"this could not be remembered: {run.unremembered}"


def _gap_facts(recorded: RecordedGap) -> dict[str, Any]:
    gap = recorded.gap
    return {
        "seq": recorded.seq,
        "from": format_lsn(gap.from_lsn),
        "reason": gap.reason,
        "time": format_time(gap.time_us) if gap.time_us else None,
        "closed_by_snapshot_at": format_lsn(recorded.closed_lsn) if recorded.closed_lsn else None,
        "changed_inside": None if recorded.repair is None else _repair_facts(recorded.repair),
    }


def _repair_facts(repair: Repair) -> dict[str, Any]:
    keys = [chunk.key for chunk in repair.deleted]
    return {"tables": repair.facts(), "unknown": repair.unknown, "deleted_keys": keys}


def _gap_line(recorded: RecordedGap) -> str:
    since = f"gap: changes after {format_lsn(recorded.gap.from_lsn)} are lost ({recorded.gap.reason})"
    if recorded.closed_lsn:
        return f"{since}; closed by the snapshot at {format_lsn(recorded.closed_lsn)}{_inside(recorded.repair)}"
    return f"{since}; OPEN since segment {recorded.seq}: cdc repair"


def _inside(repair: Repair | None) -> str:
    if repair is None:
        return ""
    known = [
        f"{name} {one.deleted} deleted, {one.inserted} inserted, {one.changed} changed"
        for name, one in repair.tables.items()
    ]
    return "; inside: " + "; ".join(known + [f"{name} unknown ({why})" for name, why in repair.unknown.items()])


def _fork_facts(fork: Fork) -> dict[str, Any]:
    return {"previous": str(fork.previous), "switch_lsn": format_lsn(fork.switch_lsn), "reason": fork.reason}
