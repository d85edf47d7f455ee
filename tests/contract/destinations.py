"""What the suite of sinks writes to: each destination with the sink that is open on it, and a small history.

"What it shows" is read past the sink: from the archive by its reader, from Redis by its keys, from SQLite by a query.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import orjson
from pydantic import SecretStr

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.writer.sink import ArchiveSink
from cdc.cache.connection import Connection
from cdc.cache.sink import CacheSink
from cdc.change import Batch, Change, RowChange, Transaction
from cdc.config import CacheSettings, RowProjection
from cdc.pipeline.sinks import Follower, Gate
from cdc.position import Epoch, Position
from cdc.row import ABSENT, Row
from tests.contract.sqlite_sink import SqliteSink, read_journal
from tests.support.cache_model import snapshot
from tests.support.transactions import EPOCH, SOURCE, TIME_US, TURNS, archived, settings, with_changes

BEGINNING = Position(EPOCH, 48)
Rows = dict[int, str]
# Where each change that took effect stands: its transaction's `commit_lsn`, and its number in there.
Log = list[tuple[int, int]]


class Destination(Protocol):
    """What a sink writes to, and the sink that is open on it now."""

    async def reopen(self) -> Position | None:
        """Make another sink on the same destination, ready to write; return what `open` returned.

        The sink before is closed only after that: what it does at its end comes too late to count.
        """

    async def write(self, batch: Batch) -> int: ...

    async def advance(self, lsn: int) -> int:
        """Up to `lsn` there are no changes."""

    async def rows(self) -> Rows:
        """Each turn's content by its id, as the destination shows it."""

    async def log(self) -> Log | None:
        """What took effect, in order; None if the destination keeps rows alone."""

    async def close(self) -> None: ...


class Followed(Destination, Protocol):
    """A follower's destination: it is of one epoch, and empty until it is filled."""

    async def reopen(self, epoch: Epoch = EPOCH, *, fill: bool = True) -> Position | None:
        """With `fill`, a destination without a position is filled: at the LSN of `BEGINNING` there were no rows."""


class Archive:
    """A gate's destination is a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._sink = ArchiveSink(bucket, settings())
        self._gate: Gate = self._sink

    async def reopen(self) -> Position | None:
        before = self._gate
        self._gate = self._sink = ArchiveSink(self._bucket, settings(segment_bytes=64 * 1024), retry_s=0.01)
        found = await self._gate.open()
        await before.close()
        await self._sink.fence(SOURCE)
        return found

    async def write(self, batch: Batch) -> int:
        return await self._gate.write(batch)

    async def advance(self, lsn: int) -> int:
        return await self._gate.write_coverage(lsn)

    async def rows(self) -> Rows:
        rows: Rows = {}
        for transaction in await archived(self._bucket):
            show(rows, transaction.changes)
        return rows

    async def log(self) -> Log:
        return [(piece.commit_lsn, change.seq) for piece in await archived(self._bucket) for change in piece.changes]

    async def close(self) -> None:
        await self._gate.close()
        await self._bucket.close()


class Cache:
    """Redis, with a key for each turn."""

    def __init__(self, url: str) -> None:
        row = RowProjection(table="public.turns", key="turn:{id}", time_column=None)
        self._settings = CacheSettings(url=SecretStr(url), projections=(row,))
        self._sink = CacheSink(self._settings, EPOCH)
        self._follower: Follower = self._sink

    async def reopen(self, epoch: Epoch = EPOCH, *, fill: bool = True) -> Position | None:
        before = self._follower
        self._follower = self._sink = CacheSink(self._settings, epoch)
        found = await self._follower.open()
        await before.close()
        if found is None and fill:
            await self._sink.warm(snapshot(), Position(epoch, BEGINNING.lsn), TIME_US)
        return found

    async def write(self, batch: Batch) -> int:
        return await self._follower.write(batch)

    async def advance(self, lsn: int) -> int:
        return await self._follower.advance(lsn)

    async def rows(self) -> Rows:
        connection = Connection(self._settings)
        try:
            keys: list[bytes] = await connection.call(b"KEYS", b"turn:*")
            rows = [orjson.loads(await connection.call(b"GET", key)) for key in keys]
        finally:
            await connection.close()
        return {row["id"]: row["content"] for row in rows}

    async def log(self) -> None:
        return None

    async def close(self) -> None:
        await self._follower.close()


class Journal:
    """A file of SQLite, with the sink that only the tests know."""

    def __init__(self, path: Path, make: Callable[[Path, Epoch], SqliteSink] = SqliteSink) -> None:
        self._path = path
        self._make = make
        self._sink = make(path, EPOCH)
        self._follower: Follower = self._sink

    async def reopen(self, epoch: Epoch = EPOCH, *, fill: bool = True) -> Position | None:
        before = self._follower
        self._follower = self._sink = self._make(self._path, epoch)
        found = await self._follower.open()
        await before.close()
        if found is None and fill:
            await self._sink.fill([], Position(epoch, BEGINNING.lsn))
        return found

    async def write(self, batch: Batch) -> int:
        return await self._follower.write(batch)

    async def advance(self, lsn: int) -> int:
        return await self._follower.advance(lsn)

    async def rows(self) -> Rows:
        rows: Rows = {}
        for _, _, _, key, row in read_journal(self._path):
            rows.pop(orjson.loads(key)["id"], None)
            if row is not None:
                rows[orjson.loads(row)["id"]] = orjson.loads(row)["content"]
        return rows

    async def log(self) -> Log:
        return [(commit_lsn, seq) for commit_lsn, seq, *_ in read_journal(self._path)]

    async def close(self) -> None:
        await self._follower.close()


def created(seq: int, row_id: int, content: str) -> RowChange:
    return RowChange("c", seq, TURNS, _row(row_id, content), None)


def updated(seq: int, row_id: int, content: str) -> RowChange:
    return RowChange("u", seq, TURNS, _row(row_id, content), None)


def deleted(seq: int, row_id: int) -> RowChange:
    return RowChange("d", seq, TURNS, None, [b"%d" % row_id, *[ABSENT] * 4])


def _row(row_id: int, content: str) -> Row:
    return [b"%d" % row_id, content.encode(), b"0.5", b"{}", b"t"]


def first() -> Transaction:
    return with_changes(1, [created(0, 1, "one"), created(1, 2, "two")])


def second() -> Transaction:
    """Undoes something of the first: whoever applies that again later is seen."""
    return with_changes(2, [updated(0, 1, "changed"), deleted(1, 2)])


def third() -> Transaction:
    return with_changes(3, [created(0, 2, "again"), created(1, 3, "three")])


def large() -> Transaction:
    """Its first change is to a row that its last one deletes."""
    changes: list[Change] = [created(seq, 100 + seq, f"row {seq}") for seq in range(11)]
    return with_changes(4, [*changes, deleted(11, 100)])


def in_pieces(whole: Transaction, of: int = 4) -> list[Transaction]:
    made = []
    for at in range(0, len(whole.changes), of):
        last = at + of >= len(whole.changes)
        end_lsn = whole.end_lsn if last else 0
        piece = Transaction(
            whole.xid,
            whole.commit_lsn,
            whole.commit_time_us,
            whole.changes[at : at + of],
            first_seq=at,
            end_lsn=end_lsn,
            last=last,
            nbytes=200,
        )
        made.append(piece)
    return made


def show(rows: Rows, changes: list[Change]) -> None:
    """What the changes make of the rows."""
    for change in changes:
        assert isinstance(change, RowChange)
        row = orjson.loads(change.after or change.key)
        rows.pop(row["id"], None)
        if change.op != "d":
            rows[row["id"]] = row["content"]
