"""Makes the headers of a writer's next objects: each follows from the tail before it. Pure.

The facts of the lines (their number, shapes and bytes) are added when an object is frozen (`body.py`).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cdc.archive.format.header import Fork, Header, Kind, Part, Source, Writer
from cdc.archive.reader.tail import Tail
from cdc.change import Transaction


def new_header(archive: str, kind: Kind, source: Source, writer_id: str) -> Header:
    """The header of segment 0, of the first writer of an archive with this UUID."""
    return Header(archive=archive, seq=0, kind=kind, prev_sha256=None, writer=Writer(writer_id, 1), source=source)


def first_header(tail: Tail, kind: Kind, source: Source, writer_id: str) -> Header:
    """The header of a writer's first segment, a `fence` or a `fork`, after another writer's tail."""
    return Header(
        archive=tail.archive,
        seq=tail.seq + 1,
        kind=kind,
        prev_sha256=tail.sha256,
        writer=Writer(writer_id, tail.writer_epoch + 1),
        source=source,
        last_lsn=tail.last_commit_lsn,
        covered_upto=tail.covered_upto,
        first_ordinal=tail.next_ordinal,
        open_gap=tail.open_gap,
    )


def fork_header(tail: Tail, source: Source, writer_id: str, switch_lsn: int, reason: str) -> Header:
    """The header of a `fork` segment, whose source left the tail's epoch at `switch_lsn`.

    Up to the switch both epochs are one history, which may be sent again. No new transaction ends before it.
    """
    return replace(
        first_header(tail, "fork", source, writer_id),
        fork=Fork(tail.source.epoch, switch_lsn, reason),
        last_lsn=min(tail.last_commit_lsn, switch_lsn),
        covered_upto=min(tail.covered_upto, switch_lsn),
    )


def next_header(tail: Tail, kind: Kind, writer_id: str, **facts: Any) -> Header:
    """The header of the segment after the tail, of the same writer. `facts` are fields that differ from the tail's."""
    carried = {"last_lsn": tail.last_commit_lsn, "covered_upto": tail.covered_upto, "open_gap": tail.open_gap}
    return Header(
        archive=tail.archive,
        seq=tail.seq + 1,
        kind=kind,
        prev_sha256=tail.sha256,
        writer=Writer(writer_id, tail.writer_epoch),
        source=tail.source,
        first_ordinal=tail.next_ordinal,
        **{**carried, **facts},
    )


def chunk_header(tail: Tail, writer_id: str, consistent_lsn: int) -> Header:
    """The header of an object of a snapshot's rows. Its `seq` is the segment that is next when the chunk is written."""
    return Header(
        archive=tail.archive,
        seq=tail.seq + 1,
        kind="base",
        prev_sha256=None,
        writer=Writer(writer_id, tail.writer_epoch),
        source=tail.source,
        covered_upto=consistent_lsn,
    )


def data_facts(tail: Tail, transactions: Sequence[Transaction]) -> dict[str, Any]:
    """The facts of a `data` segment that holds these transactions."""
    times = [transaction.commit_time_us for transaction in transactions]
    return {
        "first_lsn": transactions[0].commit_lsn,
        "last_lsn": transactions[-1].commit_lsn,
        "covered_upto": max(transactions[-1].end_lsn, tail.covered_upto),
        "transactions": len(transactions),
        "from_time_us": min(times),
        "to_time_us": max(times),
        "ends": tuple([transaction.end_lsn - transaction.commit_lsn for transaction in transactions]),
    }


def part_facts(tail: Tail, pieces: Sequence[Transaction], index: int) -> dict[str, Any]:
    """The facts of the `part` segment number `index` of a large transaction. Only the last part moves the coverage."""
    first, last = pieces[0], pieces[-1]
    facts: dict[str, Any] = {
        "first_lsn": first.commit_lsn,
        "from_time_us": first.commit_time_us,
        "to_time_us": first.commit_time_us,
        "part": Part(first.commit_lsn, index, last.last, first.first_seq, first.xid),
    }
    if last.last:
        facts["last_lsn"] = last.commit_lsn
        facts["covered_upto"] = max(last.end_lsn, tail.covered_upto)
        facts["transactions"] = 1
        facts["ends"] = (last.end_lsn - last.commit_lsn,)
    return facts
