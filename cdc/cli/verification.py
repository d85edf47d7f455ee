"""Prints a verification of the archive, for `cdc archive verify`."""

from collections.abc import Iterator
from typing import Any

from cdc.archive.format.header import Fork, Repair
from cdc.archive.proof.audit import RecordedGap
from cdc.archive.proof.verification import VerificationRun
from cdc.change import format_time
from cdc.lsn import format_lsn
from cdc.words import size


def facts(run: VerificationRun) -> dict[str, Any]:
    """Give the report as plain values, for `--json`. Counts are of the whole archive, `segments_read` of this run."""
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


def lines(run: VerificationRun) -> Iterator[str]:
    """Describe the report for people. What is wrong comes last, where it is seen."""
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
        yield f"{report.sealed} encrypted objects, proved except for what their lines say: no archive.identity"
    yield from (_gap_line(recorded) for recorded in report.gaps)
    for fork in report.forks:
        yield f"fork: timeline {fork.previous.timeline} was left at {format_lsn(fork.switch_lsn)} ({fork.reason})"
    yield from _reach_lines(run)
    for finding in report.findings:
        yield f"{finding.key}: {finding.problem}"
    yield "intact" if report.intact else f"NOT INTACT: {len(report.findings)} findings"


def _reach_lines(run: VerificationRun) -> Iterator[str]:
    """Say from where to where the archive was read this time."""
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
