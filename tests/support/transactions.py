"""Transactions to archive, and what an archive must give back: builders for the archive's tests."""

import time
from collections.abc import AsyncIterator, Sequence
from copy import copy
from typing import Any

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.format.header import Chunk, Source
from cdc.archive.reader.reader import ArchiveReader
from cdc.archive.writer.sink import ArchiveSink
from cdc.change import Batch, Change, Column, LogicalMessage, Relation, RowChange, Transaction, Truncate
from cdc.config import ArchiveSettings
from cdc.position import Epoch, Position
from cdc.row import Row

EPOCH = Epoch("7300000000000000001", 1)
SOURCE = Source(
    epoch=EPOCH,
    database="chat",
    slot="cdc",
    publication="cdc",
    server_version="18.0",
    server_encoding="UTF8",
    settings={"datestyle": "ISO"},
)

TURNS = Relation(
    16390,
    "public",
    "turns",
    "d",
    [
        Column("id", "int8", 20, -1, True),
        Column("content", "text", 25, -1, False),
        Column("confidence", "float8", 701, -1, False),
        Column("metadata", "jsonb", 3802, -1, False),
        Column("final", "bool", 16, -1, False),
    ],
)
WIDER_TURNS = Relation(16390, "public", "turns", "d", [*TURNS.columns, Column("note", "varchar", 1043, 24, False)])
OUTBOX = Relation(16400, "public", "outbox", "f", [Column("id", "int8", 20, -1, True)])

# A minute ago: a real Redis has a clock of its own, and ends the lives of rows by it.
TIME_US = time.time_ns() // 1000 - 60_000_000


def settings(**values: Any) -> ArchiveSettings:
    return ArchiveSettings.model_validate({"url": "file:///not-used"} | values)


def created(seq: int, row_id: int, content: bytes = b"hello") -> RowChange:
    return RowChange("c", seq, TURNS, [b"%d" % row_id, content, b"0.5", b'{"a": 1}', b"t"], None)


def transaction(number: int, rows: int = 1, *, nbytes: int = 500, content: bytes = b"hello") -> Transaction:
    """Transaction `number` of a history in which each is 100 bytes of WAL after the last."""
    changes: list[Change] = [created(seq, number * 1000 + seq, content) for seq in range(rows)]
    return with_changes(number, changes, nbytes=nbytes * rows)


def with_changes(number: int, changes: list[Change], *, nbytes: int = 500) -> Transaction:
    commit_lsn = number * 100
    return Transaction(number, commit_lsn, TIME_US + number, changes, end_lsn=commit_lsn + 48, nbytes=nbytes)


def right_after(previous: Transaction, whole: Transaction) -> Transaction:
    """The same transaction with its commit record where that of `previous` ends, as under concurrent writers."""
    moved = copy(whole)
    moved.commit_lsn, moved.end_lsn = previous.end_lsn, previous.end_lsn + 48
    return moved


def pieces(number: int, rows: int, *, of: int, nbytes: int = 500) -> list[Transaction]:
    """A transaction in pieces `of` so many rows."""
    whole = transaction(number, rows, nbytes=nbytes)
    return [
        Transaction(
            whole.xid,
            whole.commit_lsn,
            whole.commit_time_us,
            whole.changes[at : at + of],
            first_seq=at,
            end_lsn=whole.end_lsn if at + of >= rows else 0,
            last=at + of >= rows,
            nbytes=nbytes * len(whole.changes[at : at + of]),
        )
        for at in range(0, rows, of)
    ]


async def opened(bucket: Bucket, source: Source = SOURCE, **values: Any) -> ArchiveSink:
    """A sink that is the archive's writer, and tries again soon."""
    sink = ArchiveSink(bucket, settings(**values), retry_s=0.01, max_retry_s=0.05)
    await sink.open()
    await sink.fence(source)
    return sink


async def archived(bucket: Bucket, after: Position | None = None) -> list[Transaction]:
    return [transaction async for transaction in ArchiveReader(bucket).transactions(after)]


def lsns(transactions: Sequence[Transaction]) -> list[int]:
    """Commit positions, in the numbers of `transaction(number)`."""
    return [transaction.commit_lsn // 100 for transaction in transactions]


def facts(transactions: Sequence[Transaction]) -> list[tuple[Any, ...]]:
    """Everything about whole transactions, comparable; pieces are put together."""
    found: dict[int, tuple[Any, ...]] = {}
    for one in transactions:
        before = found.get(one.commit_lsn, ((), ()))[-1]
        changes = (*before, *(facts_of_change(change) for change in one.changes))
        found[one.commit_lsn] = (one.xid, one.commit_lsn, one.commit_time_us, one.end_lsn, changes)
    return list(found.values())


def facts_of_change(change: Change) -> tuple[Any, ...]:
    match change:
        case RowChange():
            shape = facts_of_relation(change.relation)
            return (change.op, change.seq, shape, change.new, change.old, change.after, change.key, change.unchanged)
        case Truncate():
            return ("t", change.seq, facts_of_relation(change.relation), change.cascade, change.restart_identity)
        case LogicalMessage():
            return ("m", change.seq, change.prefix, change.content, change.transactional)


def facts_of_relation(relation: Relation) -> tuple[Any, ...]:
    columns = [(c.name, c.type_name, c.type_oid, c.typmod, c.key) for c in relation.columns]
    return (relation.oid, relation.schema, relation.name, relation.replica_identity, columns)


async def in_batches(rows: Sequence[Row], size: int) -> AsyncIterator[list[Row]]:
    for at in range(0, len(rows), size):
        yield list(rows[at : at + size])


async def write_chunk(sink: ArchiveSink, relation: Relation, rows: Sequence[Row], consistent_lsn: int) -> Chunk:
    """Archive some rows of a snapshot as one object."""
    [chunk] = await sink.write_base(relation, in_batches(rows, len(rows)), consistent_lsn)
    return chunk


def batch(*transactions: Transaction) -> Batch:
    return Batch(list(transactions))
