"""`cdc archive verify --against`: compares the archive's state with the live tables, at one exact LSN.

1. a temporary slot on the source: its exported snapshot is the tables at its consistent LSN, while applications write
   on;
2. a mark into the WAL, so that an idle source moves the archive too, and a wait until the archive covers that LSN;
3. the archive replayed up to it: of each row its key, and of each value a digest of eight bytes;
4. every live row of the snapshot against that;
5. a second mark, and a check of the changes since: a TRUNCATE empties a table for older snapshots too (manual,
   TRUNCATE, "not MVCC-safe"). If there was one, everything is done again.

Memory grows with the rows: about eight bytes a value, and the keys. Values that the archive cannot know (a column added
with a default, in rows that were not written since) are counted and not compared.
"""

import asyncio
import dataclasses
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.bucket.opening import open_bucket
from cdc.archive.proof.proofs import AGAINST_KEY, remember_run, success
from cdc.archive.reader.history import History, RestorePoint, read_history
from cdc.archive.reader.tail import Tail, read_tail
from cdc.archive.state.digests import as_archived
from cdc.archive.state.table_state import Difference, TableState, state_of
from cdc.change import RowChange, Transaction, Truncate
from cdc.config import ArchiveSettings, PostgresSettings
from cdc.errors import DataError, Invalid, Unavailable
from cdc.lsn import format_lsn
from cdc.postgres.message import emit_mark
from cdc.postgres.publication import Publication, read_publication
from cdc.postgres.server import Server, read_server
from cdc.postgres.session import connect
from cdc.postgres.slot import create_slot
from cdc.postgres.snapshot import SnapshotReader, open_snapshot
from cdc.postgres.target.database import settings_of

log = structlog.get_logger()

_POLL_S = 0.5
_ATTEMPTS = 3


@dataclass(slots=True)
class Comparison:
    """The result of a comparison: what was compared, at which LSN, and what differs."""

    lsn: int
    rows: dict[str, int] = field(default_factory=dict)
    unknown_values: int = 0
    unpublished: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return not self.differences


Replay = Callable[[Bucket, History], Awaitable[tuple[dict[str, TableState], int]]]
"""Gives the tables as they are at the end of a history, and the first ordinal that is not in them."""


async def compare(
    settings: ArchiveSettings, dsn: str | PostgresSettings, *, patience_s: float, replay: Replay | None = None
) -> Comparison:
    """Compare the archive with the tables at `dsn`, which must be its source.

    With `replay`, only the tables that it gives are compared. Raises Invalid for another database, Unavailable if the
    archive does not come to the LSN within `patience_s`, and DataError.
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
        hint="compare again when no application truncates tables",
    )


async def compare_and_remember(settings: ArchiveSettings, dsn: str, *, patience_s: float) -> Comparison:
    """Compare, and write the result down beside the archive, where metrics find it. Raises as `compare` does."""
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
    unremembered = await remember_run(
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
    """Say in one line what differs, without a row's content; '' if nothing does."""
    tables = ", ".join(sorted({difference.table for difference in found.differences}))
    return "" if found.equal else f"{len(found.differences)} differences at {format_lsn(found.lsn)} in {tables}"


async def _attempt(
    bucket: Bucket, postgres: PostgresSettings, patience_s: float, replay: Replay | None
) -> Comparison | None:
    """Compare once; None if a TRUNCATE came between."""
    publication = await _look(postgres, await _tail(bucket))
    async with create_slot(postgres, f"cdc_verify_{uuid.uuid4().hex[:12]}", temporary=True) as exported:  # 1
        lsn = exported.consistent_lsn
        async with open_snapshot(postgres, exported) as reader:
            await _mark_and_wait(bucket, postgres, lsn, patience_s)  # 2
            # The snapshot has every commit before its LSN, so we replay up to the last byte before it.
            history = await read_history(bucket, RestorePoint(lsn=lsn - 1))
            state, next_ordinal = await (replay or _replay)(bucket, history)  # 3
            if replay is not None:
                tables = tuple(table for table in publication.tables if table.qualified_name in state)
                publication = dataclasses.replace(publication, tables=tables)
            found = await _compare(state, publication, reader, Comparison(lsn))  # 4
    mark = await _mark_and_wait(bucket, postgres, 0, patience_s)  # 5
    return None if await _is_truncated(bucket, mark, next_ordinal) else found


async def _is_truncated(bucket: Bucket, mark: int, first_ordinal: int) -> bool:
    history = await read_history(bucket, RestorePoint(lsn=mark))
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
    """Write a mark, and wait until the archive covers `lsn` (0: the mark's own); return the mark's LSN."""
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
    state: dict[str, TableState], publication: Publication, reader: SnapshotReader, found: Comparison
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


async def _replay(bucket: Bucket, history: History) -> tuple[dict[str, TableState], int]:
    """Replay a history; return the tables, and the first ordinal that is not in them."""
    state: dict[str, TableState] = {}
    next_ordinal = history.first_ordinal
    async for _, rows in history.chunks(bucket):
        for row in rows:
            _apply(state, row)
    async for ordinal, transaction in history.transactions(bucket, history.first_ordinal):
        _apply_all(state, transaction)
        next_ordinal = ordinal + 1
    return state, next_ordinal


def _apply_all(state: dict[str, TableState], transaction: Transaction) -> None:
    for change in transaction.changes:
        match change:
            case RowChange():
                _apply(state, change)
            case Truncate():
                state_of(state, change.relation).clear()
            case _:
                pass


def _apply(state: dict[str, TableState], change: RowChange) -> None:
    state_of(state, change.relation).apply(change)
