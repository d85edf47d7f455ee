"""Copies rows as they were at one LSN, into the archive's base and into a cold cache.

Both ask Postgres for a slot with an exported snapshot, because only that ties a state of the tables to a position in
the WAL. The archive's slot is the permanent one. The cache's is temporary and goes with its connection.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

import structlog

from cdc.archive.state.gap_diff import GapDiff
from cdc.archive.writer.sink import ArchiveSink
from cdc.cache.order import is_time
from cdc.cache.projection import WarmQuery
from cdc.cache.sink import CacheSink
from cdc.change import Relation, format_time
from cdc.config import Settings
from cdc.crash import crash_point
from cdc.errors import Unavailable
from cdc.lsn import format_lsn
from cdc.position import Epoch, Position
from cdc.postgres.publication import Publication
from cdc.postgres.server import read_server
from cdc.postgres.session import connect
from cdc.postgres.slot import SlotExists, create_slot
from cdc.postgres.snapshot import Condition, SnapshotReader, open_snapshot
from cdc.row import Row

log = structlog.get_logger()


async def backfill(
    settings: Settings, publication: Publication, archive: ArchiveSink, across: GapDiff | None = None
) -> None:
    """Create the slot and archive the rows that exist: the start of an archive, or the end of a gap.

    1. a slot with its exported snapshot: the log will begin at its consistent point;
    2. every published table's rows of that snapshot, as base chunks;
    3. after a gap, what changed inside it;
    4. one snapshot record in the log, which is the commit point.

    Interrupted before 4, it starts over: the slot and the chunks of the attempt count for nothing.

    Raises Unavailable, Invalid or Fenced.
    """
    try:
        await _backfill(settings, publication, archive, across)
    except SlotExists as error:  # our session was lost, and with it the lock
        raise Unavailable("another service made the slot meanwhile; standing by", detail=error.detail) from None


async def _backfill(settings: Settings, publication: Publication, archive: ArchiveSink, across: GapDiff | None) -> None:
    """Do the steps of `backfill`; the numbers are the same."""
    started = time.monotonic()
    async with create_slot(settings.postgres, settings.postgres.slot) as exported:  # 1
        lsn = exported.consistent_lsn
        if archive.tail is not None:
            await _check_epoch(settings, archive.tail.source.epoch)
        crash_point("backfill_slot_created")
        log.info("backfill_started", consistent_lsn=format_lsn(lsn), tables=len(publication.tables))
        chunks = []
        async with open_snapshot(settings.postgres, exported) as reader:
            for table in publication.tables:
                rows = _seen(across, table.relation, reader.rows(table))
                chunks += await archive.write_base(table.relation, rows, lsn)  # 2
        relations = [table.relation for table in publication.tables]
        repair = None if across is None else await across.conclude(archive, relations, lsn)  # 3
        crash_point("snapshot_unwritten")
        await archive.write_snapshot(lsn, chunks, relations, repair)  # 4
        crash_point("snapshot_written")
    rows_read = sum(chunk.rows for chunk in chunks)
    log.info("backfill_finished", rows=rows_read, seconds=round(time.monotonic() - started, 1))
    if repair is not None:
        log.warning("gap_compared", tables=repair.facts(), unknown=repair.unknown)


async def _seen(
    across: GapDiff | None, relation: Relation, batches: AsyncIterator[list[Row]]
) -> AsyncIterator[list[Row]]:
    async for rows in batches:
        if across is not None:
            await asyncio.to_thread(across.see, relation, rows)
        yield rows


async def warm_up(settings: Settings, publication: Publication, cache: CacheSink) -> Position:
    """Fill a cache that has no position with the rows inside its projections' windows; return its position then.

    Raises Unavailable or Invalid.
    """
    name = f"{settings.postgres.slot}_warm_{uuid.uuid4().hex[:12]}"[-63:]
    async with create_slot(settings.postgres, name, temporary=True) as exported:
        await _check_epoch(settings, cache.epoch)
        log.info("warm_up_started", consistent_lsn=format_lsn(exported.consistent_lsn))
        position = Position(cache.epoch, exported.consistent_lsn)
        async with open_snapshot(settings.postgres, exported) as reader:
            now_us = await reader.time_us()  # our own clock may be wrong, and would end the lives of rows
            await cache.warm(_rows_for_cache(reader, publication, cache, now_us), position, now_us)
    log.info("warm_up_finished", lsn=format_lsn(position.lsn))
    return position


async def _check_epoch(settings: Settings, epoch: Epoch) -> None:
    """Check that the slot's position is of `epoch`. Done after the slot was made: a timeline never comes back."""
    async with await connect(settings.postgres) as connection:
        server = await read_server(connection)
    if server.epoch != epoch:
        raise Unavailable("the database failed over during the start", detail=f"{server.epoch} is not {epoch}")


async def _rows_for_cache(
    reader: SnapshotReader, publication: Publication, cache: CacheSink, now_us: int
) -> AsyncIterator[tuple[Relation, list[Row]]]:
    for query in cache.warm_queries:
        table = publication.table(query.table)
        if table is None:
            continue
        where = _inside_window(query, table.relation, now_us)
        async for rows in reader.rows(table, where=where, order_by=query.order_by):
            yield table.relation, rows


def _inside_window(query: WarmQuery, relation: Relation, now_us: int) -> Condition | None:
    """Make the condition for rows inside the window.

    None, which takes all rows, for a table without such a column, or where that column is not a time.
    """
    index = relation.column_index.get(query.time_column or "")
    if query.time_column is None or index is None or not is_time(relation.columns[index].type_oid):
        return None
    return Condition(query.time_column, ">=", format_time(now_us - query.window_s * 1_000_000))
