"""`cdc archive verify --against`: is the archive's state what the live tables hold, at one exact LSN?

1. a temporary slot on the source: its exported snapshot is the tables at its consistent LSN, while everybody writes on;
2. a mark into the WAL, so that an idle source moves the archive too, and a wait until the archive covers that LSN;
3. the archive replayed up to it: of each row its key, and of each value a digest of eight bytes;
4. every live row of the snapshot against that;
5. a second mark and a look at what came since: a TRUNCATE empties a table for older snapshots too (manual, TRUNCATE,
   "not MVCC-safe"), so if one lies there, everything is done again.

Memory grows with the rows: about eight bytes a value, and the keys. Values that the archive cannot know (a column added
with a default, in rows that were not written since) are counted and not compared.
"""

import asyncio
import dataclasses
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import structlog

from cdc.archive.bucket import Bucket, open_bucket
from cdc.archive.digests import UNKNOWN, as_archived, digest, digest_at
from cdc.archive.history import History, Until, read_history
from cdc.archive.proof import AGAINST_KEY, remember_trial, success
from cdc.archive.tail import Tail, read_tail
from cdc.change import DELETE, UPDATE, Relation, RowChange, Transaction, Truncate
from cdc.config import ArchiveSettings, PostgresSettings
from cdc.errors import DataError, Invalid, Unavailable
from cdc.lsn import format_lsn
from cdc.postgres.mark import emit_mark
from cdc.postgres.publication import Publication, read_publication
from cdc.postgres.server import Server, read_server
from cdc.postgres.session import connect
from cdc.postgres.slot import create_slot
from cdc.postgres.snapshot import SnapshotReader, open_snapshot
from cdc.postgres.target import settings_of
from cdc.row import ABSENT, Row

log = structlog.get_logger()

_POLL_S = 0.5
_ATTEMPTS = 3

# A person reads so many; --json has them all.
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that is not the same. `kind` is `missing` or `extra` in the archive, or `unequal` in `columns`."""

    table: str
    kind: str
    key: dict[str, str | None]
    columns: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = " ".join(f"{name}={value}" for name, value in self.key.items()) or "a row without a key"
        return f"{self.table} {where}: {self.kind}" + (f" in {', '.join(self.columns)}" if self.columns else "")


@dataclass(slots=True)
class Comparison:
    """What was compared, at which LSN, and what differs."""

    lsn: int
    rows: dict[str, int] = field(default_factory=dict)
    unknown_values: int = 0
    unpublished: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return not self.differences


Replay = Callable[[Bucket, History], Awaitable[tuple[dict[str, "TableState"], int]]]
"""Gives the tables as they are at the end of a history, and the first ordinal that is not in them."""


async def compare(
    settings: ArchiveSettings, dsn: str | PostgresSettings, *, patience_s: float, replay: Replay | None = None
) -> Comparison:
    """Compare the archive with the tables at `dsn`, which must be its source.

    With `replay` what that gives is compared, and no other table. Raises Invalid for another database,
    Unavailable if the archive does not come to the LSN in time.
    """
    postgres = settings_of(dsn, "--against") if isinstance(dsn, str) else dsn
    bucket = open_bucket(settings)
    try:
        for _ in range(_ATTEMPTS):
            found = await _attempt(bucket, postgres, patience_s, replay)
            if found is not None:
                return found
    finally:
        await bucket.close()
    raise Unavailable(
        f"a TRUNCATE came between, {_ATTEMPTS} times",
        detail="An older snapshot sees a truncated table as empty.",
        hint="compare again when nobody truncates",
    )


async def compare_and_remember(settings: ArchiveSettings, dsn: str, *, patience_s: float) -> Comparison:
    """The same, and what came out is written down beside the archive, where metrics find it."""
    bucket = open_bucket(settings)
    try:
        archive = (await _tail(bucket)).archive
        try:
            found = await compare(settings, dsn, patience_s=patience_s)
        except DataError as error:
            await _remember(bucket, archive, error.message, None)
            raise
        await _remember(bucket, archive, failure(found), found if found.equal else None)
    finally:
        await bucket.close()
    return found


async def _remember(bucket: Bucket, archive: str, differs: str, equal: Comparison | None) -> None:
    now_us = time.time_ns() // 1000
    unremembered = await remember_trial(
        bucket,
        AGAINST_KEY,
        archive=archive,
        command="cdc archive verify --against",
        now_us=now_us,
        failure=differs,
        success=None if equal is None else success(now_us, equal.lsn, equal.rows),
    )
    if unremembered:
        log.warning("comparison_unremembered", reason=unremembered)


def failure(found: Comparison) -> str:
    """What differs, without a row's content; nothing if nothing does."""
    tables = ", ".join(sorted({difference.table for difference in found.differences}))
    return "" if found.equal else f"{len(found.differences)} differences at {format_lsn(found.lsn)} in {tables}"


async def _attempt(
    bucket: Bucket, postgres: PostgresSettings, patience_s: float, replay: Replay | None
) -> Comparison | None:
    """None if a TRUNCATE came between."""
    publication = await _look(postgres, await _tail(bucket))
    async with create_slot(postgres, f"cdc_verify_{uuid.uuid4().hex[:12]}", temporary=True) as exported:  # 1
        lsn = exported.consistent_lsn
        async with open_snapshot(postgres, exported) as reader:
            await _mark_and_wait(bucket, postgres, lsn, patience_s)  # 2
            # The snapshot has every commit before its LSN, so the moment is the last byte before.
            history = await read_history(bucket, Until(lsn=lsn - 1))
            state, next_ordinal = await (replay or _replay)(bucket, history)  # 3
            if replay is not None:
                tables = tuple(table for table in publication.tables if table.qualified_name in state)
                publication = dataclasses.replace(publication, tables=tables)
            found = await _compare(state, publication, reader, Comparison(lsn))  # 4
    mark = await _mark_and_wait(bucket, postgres, 0, patience_s)  # 5
    return None if await _is_truncated(bucket, mark, next_ordinal) else found


async def _is_truncated(bucket: Bucket, mark: int, first_ordinal: int) -> bool:
    history = await read_history(bucket, Until(lsn=mark))
    truncated = False
    async for _, transaction in history.transactions(bucket, max(first_ordinal, history.first_ordinal)):
        truncated = truncated or any(isinstance(change, Truncate) for change in transaction.changes)
    return truncated


async def _tail(bucket: Bucket) -> Tail:
    tail = await read_tail(bucket)
    if tail is None:
        raise Invalid(f"there is no archive yet at {bucket.url}", hint="cdc status")
    return tail


async def _look(postgres: PostgresSettings, tail: Tail) -> Publication:
    async with await connect(postgres) as connection:
        server = await read_server(connection)
        _check_source(server, tail)
        return await read_publication(connection, tail.source.publication)


def _check_source(server: Server, tail: Tail) -> None:
    if (server.epoch, server.database) != (tail.source.epoch, tail.source.database):
        raise Invalid(
            "this database is not the one that the archive tells of",
            detail=f"The archive's is {tail.source.database} of {tail.source.epoch}, this is {server.database} of "
            f"{server.epoch}.",
            hint="cdc archive verify --against DSN_OF_THE_SOURCE",
        )


async def _mark_and_wait(bucket: Bucket, postgres: PostgresSettings, lsn: int, patience_s: float) -> int:
    """Wait until the archive covers an LSN (0: that of the mark itself); where the mark is."""
    async with await connect(postgres) as connection:
        mark = await emit_mark(connection)
    lsn = lsn or mark
    give_up_at = time.monotonic() + patience_s
    while (covered := (await _tail(bucket)).covered_upto) < lsn:
        if time.monotonic() > give_up_at:
            raise Unavailable(
                f"the archive has not come to {format_lsn(lsn)} within {patience_s:.0f} s",
                detail=f"It covers everything up to {format_lsn(covered)}.",
                hint="cdc status   # cdc run must be at work",
            )
        await asyncio.sleep(_POLL_S)
    return mark


async def _compare(
    state: dict[str, "TableState"], publication: Publication, reader: SnapshotReader, found: Comparison
) -> Comparison:
    for table in publication.tables:
        replayed = state.pop(table.qualified_name, None) or TableState(table.relation)
        live = 0
        async for rows in reader.rows(table):
            live += len(rows)
            for row in rows:
                found.differences += replayed.take(table.relation, as_archived(table.relation, row))
        found.differences += replayed.rest()
        found.rows[table.qualified_name] = live
        found.unknown_values += replayed.unknown_values
    found.unpublished = sorted(state)
    return found


async def _replay(bucket: Bucket, history: History) -> tuple[dict[str, "TableState"], int]:
    """The tables, and the first ordinal that is not in them."""
    state: dict[str, TableState] = {}
    next_ordinal = history.first_ordinal
    async for _, rows in history.chunks(bucket):
        for row in rows:
            _apply(state, row)
    async for ordinal, transaction in history.transactions(bucket, history.first_ordinal):
        _apply_all(state, transaction)
        next_ordinal = ordinal + 1
    return state, next_ordinal


def _apply_all(state: dict[str, "TableState"], transaction: Transaction) -> None:
    for change in transaction.changes:
        match change:
            case RowChange():
                _apply(state, change)
            case Truncate():
                _table(state, change.relation).clear()
            case _:
                pass


def _apply(state: dict[str, "TableState"], change: RowChange) -> None:
    _table(state, change.relation).apply(change)


def _table(state: dict[str, "TableState"], relation: Relation) -> "TableState":
    table = state.get(relation.qualified_name)
    if table is None:
        table = state[relation.qualified_name] = TableState(relation)
    return table


class TableState:
    """One table's rows as digests, by key; without a key as a bag of equal rows.

    A column has its place from when it is first seen, whatever the table's shape becomes.
    """

    def __init__(self, relation: Relation) -> None:
        self.unknown_values = 0
        self._name = relation.qualified_name
        self._keys = self._key_names(relation)
        self._places: dict[str, int] = {}
        self._rows: dict[bytes, bytes] = {}
        self._bag: Counter[bytes] = Counter()
        self._relation: Relation | None = None

    def clear(self) -> None:
        self._rows.clear()
        self._bag.clear()

    def apply(self, change: RowChange) -> None:
        """The next change of this table."""
        self._meet(change.relation)
        identity = change.new if change.old is None else change.old
        before = None
        if change.op in (UPDATE, DELETE) and identity is not None:
            before = self._remove(change.relation, identity)
        if change.new is not None:
            self._put(change.relation, change.new, before)

    def take(self, relation: Relation, row: Row) -> Iterator[Difference]:
        """Compare a live row with the one here, which then is gone."""
        self._meet(relation)
        digests = self._digests(relation, row, None)
        if not self._keys:
            if self._bag[digests] <= 0:
                yield Difference(self._name, "missing", {})
            else:
                self._bag[digests] -= 1
            return
        key = self._key(relation, row)
        here = self._rows.pop(key, None)
        if here is None:
            yield Difference(self._name, "missing", self._describe(key))
        elif here != digests and (columns := self._unequal(here, digests)):
            yield Difference(self._name, "unequal", self._describe(key), columns)

    def rest(self) -> Iterator[Difference]:
        """Rows that no live row has taken."""
        for key in self._rows:
            yield Difference(self._name, "extra", self._describe(key))
        for _ in self._bag.elements():
            yield Difference(self._name, "extra", {})

    def _meet(self, relation: Relation) -> None:
        if relation is self._relation:
            return
        widened = {column.name for column in relation.columns} != self._places.keys()
        if self._key_names(relation) != self._keys or (self._places and widened and not self._keys):
            raise Invalid(
                f"the key of {self._name} has changed within the archive, so its rows cannot be followed",
                detail="Of a table without a key, all columns together are the key.",
                hint=f"cdc restore --table {self._name} ..., and compare the tables",
            )
        for column in relation.columns:
            self._places.setdefault(column.name, len(self._places))
        self._relation = relation

    def _key_names(self, relation: Relation) -> tuple[str, ...]:
        names = tuple(column.name for column in relation.columns if column.key)
        whole_row = relation.replica_identity == "f" and len(names) == len(relation.columns)
        return () if whole_row else names

    def _put(self, relation: Relation, row: Row, before: bytes | None) -> None:
        digests = self._digests(relation, row, before)
        if self._keys:
            self._rows[self._key(relation, row)] = digests
        else:
            self._bag[digests] += 1

    def _remove(self, relation: Relation, row: Row) -> bytes | None:
        if self._keys:
            return self._rows.pop(self._key(relation, row), None)
        self._bag[self._digests(relation, row, None)] -= 1
        return None

    def _key(self, relation: Relation, row: Row) -> bytes:
        """No value of Postgres's holds a zero byte."""
        values = [row[relation.column_index[name]] for name in self._keys]
        return b"\0".join([value if isinstance(value, bytes) else b"" for value in values])

    def _describe(self, key: bytes) -> dict[str, str | None]:
        values = key.decode(errors="backslashreplace").split("\0")
        return dict(zip(self._keys, values, strict=True))

    def _digests(self, relation: Relation, row: Row, before: bytes | None) -> bytes:
        digests = [UNKNOWN] * len(self._places)
        for column, value in zip(relation.columns, row, strict=True):
            place = self._places[column.name]
            if value is not ABSENT:
                digests[place] = digest(value)
            elif before is not None:
                digests[place] = digest_at(before, place)
        return b"".join(digests)

    def _unequal(self, here: bytes, live: bytes) -> tuple[str, ...]:
        """Columns of a live row that are known here and differ."""
        columns = []
        for name, place in self._places.items():
            ours = digest_at(here, place)
            theirs = digest_at(live, place)
            if theirs == UNKNOWN:
                continue  # dropped since
            self.unknown_values += ours == UNKNOWN
            if ours not in (UNKNOWN, theirs):
                columns.append(name)
        return tuple(columns)


def facts(found: Comparison) -> dict[str, Any]:
    """The comparison as plain values, for `--json`."""
    return {
        "equal": found.equal,
        "lsn": format_lsn(found.lsn),
        "rows": found.rows,
        "unknown_values": found.unknown_values,
        "unpublished": found.unpublished,
        "differences": [
            {"table": one.table, "kind": one.kind, "key": one.key, "columns": list(one.columns)}
            for one in found.differences
        ],
    }


def lines(found: Comparison) -> Iterator[str]:
    """The comparison for people; what differs comes last."""
    yield f"compared with the live tables at {format_lsn(found.lsn)}"
    for table, rows in found.rows.items():
        yield f"  {table}: {rows} rows"
    for table in found.unpublished:
        yield f"  {table}: archived, and not published any more"
    if found.unknown_values:
        yield f"  {found.unknown_values} values were never archived (columns added later): not compared"
    kinds = Counter(difference.kind for difference in found.differences)
    yield "equal" if found.equal else "differences: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    for difference in found.differences[:_SHOWN]:
        yield f"  {difference}"
    if len(found.differences) > _SHOWN:
        yield f"  and {len(found.differences) - _SHOWN} more; --json has all"
