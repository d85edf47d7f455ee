"""A start: checks what must be true before a change flows. Each check comes as early as it can be made.

`start` has the six steps on one page. Below it are the functions that it calls, in the same order. Each checks one
thing, and raises the error that says what a person can do, or returns what it found out. Data is written only by the
service that holds the slot and has put its fence behind the tail that it saw.
"""

import asyncio
import contextlib
from contextlib import AsyncExitStack
from dataclasses import dataclass

import structlog

from cdc.archive.bucket.bucket import Bucket, prove_conditional_put
from cdc.archive.bucket.opening import open_bucket
from cdc.archive.reader.tail import Tail
from cdc.archive.writer.sink import ArchiveSink
from cdc.config import Settings
from cdc.crash import crash_point
from cdc.errors import ChangesLost, Diverged, Fenced, Invalid, SlotLost, Unavailable
from cdc.health.vitals import Phase, Vitals
from cdc.lsn import format_lsn
from cdc.pipeline.continuity import Continuity, is_due
from cdc.position import Position, check_wal_end
from cdc.postgres.publication import Publication, read_publication
from cdc.postgres.publication_check import check_publication
from cdc.postgres.server import Server, check_server, current_wal_lsn, read_server, verdict_on
from cdc.postgres.session import Connection, connect
from cdc.postgres.slot import Slot, check_slot, drop_slot, make_failover, read_slot
from cdc.postgres.stream.replication import Identity, ReplicationStream, SlotActive
from cdc.postgres.timeline import read_switch_points
from cdc.service.backfill import backfill
from cdc.service.fork import check_snapshot, follow_timeline
from cdc.service.gap import REPAIR_HINT, check_gap, check_slot_name, close_gap, lock_archive, source_of
from cdc.service.tables import PublicationWatch

log = structlog.get_logger()

STANDBY_S = 1.0


@dataclass(slots=True)
class Lifetime:
    """The state that a service keeps from one start to the next.

    `stop` ends the service; `only_repair` ends it before a change flows. `bucket` and `archive` are None until the
    first start opens them. `writer_epoch` is that of our last fence: 0 if we never wrote, or as long as the next writer
    may be ourselves.
    """

    settings: Settings
    stop: asyncio.Event
    vitals: Vitals
    only_repair: bool
    tables: PublicationWatch
    bucket: Bucket | None = None
    archive: ArchiveSink | None = None
    writer_epoch: int = 0

    async def open_bucket(self) -> Bucket:
        """Open the bucket, and prove once that it refuses to overwrite.

        Raises Invalid if it does not, Unavailable if it is away.
        """
        if self.bucket is None:
            bucket = open_bucket(self.settings.archive)
            try:
                await prove_conditional_put(bucket)
            except BaseException:
                await bucket.close()
                raise
            self.bucket = bucket
        return self.bucket

    async def close(self) -> None:
        """Close the connections to the bucket, if it was opened."""
        if self.bucket is not None:
            await self.bucket.close()


@dataclass(frozen=True, slots=True)
class Upstream:
    """The server as one start found it. `connection` is an ordinary SQL session of that start."""

    connection: Connection
    server: Server
    publication: Publication


@dataclass(frozen=True, slots=True)
class Started:
    """Everything that a session needs: the slot is held, and the archive has our fence.

    `confirmed_lsn` is the slot's `confirmed_flush_lsn`, or the archive's position where the slot has none.
    """

    upstream: Upstream
    bucket: Bucket
    archive: ArchiveSink
    stream: ReplicationStream
    confirmed_lsn: int
    continuity: Continuity


async def start(life: Lifetime, stack: AsyncExitStack) -> Started | None:
    """Start once. `stack` closes what is opened. None if stopped while another service has the slot.

    1. The server: version, wal_level, publication, replica identities.
    2. The bucket refuses to overwrite, or we refuse to start.
    3. The archive's tail: its source's history, and how far it is covered; a new timeline of the same is a fork.
    4. The slot: with a new archive it is created and existing rows are backfilled; otherwise it must be there.
    5. START_REPLICATION, which is the lock: while another service has the slot we stand by.
    6. With the slot held: the tail again, `confirmed_flush <= covered_upto`, the tables that were published before, the
       fence, and the commit that the stream must send first. Only now data is written.

    Raises Unavailable to begin again at 1, ChangesLost for what is to become a gap, and other errors for a person.
    """
    settings = life.settings
    connection = await stack.enter_async_context(await connect(settings.postgres))
    upstream = await examine_upstream(connection, settings)  # 1
    crash_point("server_examined")
    bucket = await life.open_bucket()  # 2
    archive = life.archive = ArchiveSink(bucket, settings.archive)
    stack.push_async_callback(archive.close)
    async with verdict_on(connection, upstream.server):
        position = await open_archive(upstream, life, archive)  # 3
        if life.only_repair:
            await check_idle(upstream, settings, position)
        await ensure_slot(upstream, settings, archive, position, life.vitals)  # 4
        stream = await stack.enter_async_context(
            await ReplicationStream.open(settings.postgres, upstream.server.encoding)
        )
        check_identity(await stream.identify(), upstream.server)
        if not await acquire_stream(stream, life, archive):  # 5
            return None
        crash_point("slot_held")
        confirmed_lsn, continuity = await take_over(upstream, life, archive)  # 6
    return Started(upstream, bucket, archive, stream, confirmed_lsn, continuity)


async def examine_upstream(connection: Connection, settings: Settings) -> Upstream:
    """1. Check that the server can be replicated from, and that the publication serves archive and cache.

    Raises Invalid or Unavailable.
    """
    server = await read_server(connection)
    await check_server(connection, server, settings.postgres.slot, failover=settings.postgres.failover)
    publication = await read_publication(connection, settings.postgres.publication)
    check_publication(publication, settings.cache.served)
    return Upstream(connection, server, publication)


async def open_archive(upstream: Upstream, life: Lifetime, archive: ArchiveSink) -> Position | None:
    """3. Open the archive; return its position on the server's timeline, None if it is empty.

    Raises Unavailable, Invalid, DataError, Diverged or ChangesLost.
    """
    source = source_of(upstream.server, life.settings, {})
    position = await archive.open()
    tail = archive.tail
    if tail is not None and (tail.source.epoch != source.epoch or tail.open_gap is not None):
        life.writer_epoch = 0  # a fork that we record is a fence, too, and a repair begins with one
    if await follow_timeline(upstream.connection, upstream.server, life.settings, archive):
        position = await archive.open()
    archive.check_source(source)
    check_wal_end(await current_wal_lsn(upstream.connection), archive.covered_upto)
    await check_snapshot(archive)
    return position


async def check_idle(upstream: Upstream, settings: Settings, position: Position | None) -> None:
    """Check, before a repair by hand, that there is an archive and that no service is at work on it. Raises Invalid."""
    if position is None:
        raise Invalid(f"there is no archive at {settings.archive.url} to repair", hint="cdc run   # begins it")
    slot = await read_slot(upstream.connection, settings.postgres.slot)
    if slot is not None and slot.active_pid is not None:
        raise Invalid(
            f"the replication slot {slot.name!r} is being read: there is nothing to repair while a service is at work",
            detail=f"by pid {slot.active_pid}",
            hint="cdc status",
        )


async def ensure_slot(
    upstream: Upstream, settings: Settings, archive: ArchiveSink, position: Position | None, vitals: Vitals
) -> Slot:
    """4. Find the slot of this archive. A new archive, or one with a gap, gets its slot and a snapshot here.

    Raises SlotLost, ChangesLost, Diverged, Unavailable or Invalid.
    """
    name = settings.postgres.slot
    if check_gap(archive, settings):
        vitals.enter(Phase.BACKFILLING)
        await close_gap(upstream.connection, upstream.server, upstream.publication, settings, archive)
    slot = await read_slot(upstream.connection, name)
    if position is None:
        vitals.enter(Phase.BACKFILLING)
        await _begin_archive(upstream, settings, archive, slot)
        slot = await read_slot(upstream.connection, name)
    if slot is None:
        await check_slot_name(upstream.connection, settings, archive)
        raise SlotLost(
            f"the replication slot {name!r} is gone, but the archive ends at {_end_of(position)}",
            detail="what was committed since then and not archived can no longer be read from the WAL",
            hint=REPAIR_HINT,
        )
    check_slot(slot, upstream.server.database)
    if settings.postgres.failover and not slot.failover and slot.active_pid is None:
        with contextlib.suppress(SlotActive):  # the service that reads it does it at its next start
            await make_failover(settings.postgres, name)
    return slot


async def _begin_archive(upstream: Upstream, settings: Settings, archive: ArchiveSink, slot: Slot | None) -> None:
    name = settings.postgres.slot
    if slot is not None and archive.tail is None:
        await archive.open()
        if archive.tail is not None:  # the service that made the slot fenced the archive just after our check
            raise Unavailable("another service began this archive at the same time; standing by")
        raise Diverged(
            f"the replication slot {name!r} exists, but the archive {settings.archive.url} is empty",
            detail="is archive.url the one this slot belongs to? An archive must begin with its slot, "
            "or rows that were there before would be missing from it",
            hint=f"correct archive.url; or, if no archive needs the slot: SELECT pg_drop_replication_slot('{name}');",
        )
    await lock_archive(upstream.connection, name)
    await archive.fence(source_of(upstream.server, settings, upstream.publication.oids))
    crash_point("archive_begun")
    if archive.covered_upto:  # another service wrote before our fence, and the slot is its own
        raise Unavailable("another service began this archive meanwhile; standing by")
    if slot is not None:
        log.warning("backfill_restarted", slot=name)
        await drop_slot(upstream.connection, name)
    await backfill(settings, upstream.publication, archive)


def _end_of(position: Position | None) -> str:
    return "its beginning" if position is None else format_lsn(position.lsn)


def check_identity(identity: Identity, server: Server) -> None:
    """Check that the stream talks to the server that was examined. Raises Unavailable if not.

    Several hosts in one DSN do not guarantee it.
    """
    if identity.epoch != server.epoch:
        raise Unavailable(
            "the replication connection reached another server than the SQL session",
            detail=f"{identity.epoch} is not {server.epoch}: a failover is under way, or postgres.dsn names standbys",
            hint="add target_session_attrs=read-write to postgres.dsn",
        )


async def acquire_stream(stream: ReplicationStream, life: Lifetime, archive: ArchiveSink) -> bool:
    """5. Run START_REPLICATION, which is the lock. Stand by while another service holds it; False if stopped meanwhile.

    Raises Fenced if this service was the writer before and another one has put a fence since. Raises SlotLost, Invalid,
    DataError or Unavailable too.
    """
    settings = life.settings
    standing_by = False
    while not life.stop.is_set():
        try:
            await stream.start(settings.postgres.slot, settings.postgres.publication)
        except SlotActive as active:
            if life.writer_epoch and await _overtaken(archive, life.writer_epoch):
                raise Fenced(
                    "another service writes to this archive now",
                    detail=active.detail,
                    hint="cdc archive ls   # names the writers; this process has changed nothing since",
                ) from None
            if not standing_by:
                log.info("standing_by", slot=settings.postgres.slot, reason=active.detail)
                standing_by = True
                life.vitals.enter(Phase.STANDING_BY)
            crash_point("standing_by")
            try:
                async with asyncio.timeout(STANDBY_S):
                    await life.stop.wait()
            except TimeoutError:
                continue
        else:
            return True
    return False


async def _overtaken(archive: ArchiveSink, writer_epoch: int) -> bool:
    await archive.open()
    return archive.tail is not None and archive.tail.writer_epoch > writer_epoch


async def take_over(upstream: Upstream, life: Lifetime, archive: ArchiveSink) -> tuple[int, Continuity]:
    """6. Become the writer, as the slot's holder; return the slot's confirmed LSN, and the check of what is due.

    Raises Unavailable, ChangesLost, Diverged, DataError or Invalid.
    """
    connection, settings = upstream.connection, life.settings
    slot = await read_slot(connection, settings.postgres.slot)
    position = await archive.open()
    if slot is None or position is None or archive.tail is None:
        raise Unavailable("slot or archive changed hands during the start")
    archive.check_source(source_of(upstream.server, settings, {}))  # else the two positions cannot be compared
    check_covered(slot, position.lsn)
    tables = await life.tables.begin(connection, archive, archive.tail.source.tables, position.lsn)
    life.writer_epoch = 0  # until the fence is settled: if its answer is lost, it still is our own
    crash_point("fence_unwritten")
    await archive.fence(source_of(upstream.server, settings, tables))
    crash_point("fence_written")
    life.writer_epoch = archive.tail.writer_epoch
    if archive.tail.open_gap is not None:
        raise Unavailable("another service recorded a gap during the start; starting again")
    continuity = await expect_replay(upstream, settings, slot, archive.tail)
    return slot.confirmed_flush_lsn or position.lsn, continuity


def check_covered(slot: Slot, covered_upto: int) -> None:
    """6. Check `confirmed_flush_lsn <= covered_upto`: Postgres has forgotten nothing that the archive lacks.

    Raises ChangesLost.
    """
    confirmed = slot.confirmed_flush_lsn
    if confirmed is not None and confirmed > covered_upto:
        raise ChangesLost(
            f"the slot {slot.name!r} was advanced past the archive",
            detail=f"confirmed_flush_lsn {format_lsn(confirmed)}, archived up to {format_lsn(covered_upto)}: "
            "another consumer used this slot, or archive.url names another archive",
            hint=f"correct archive.url or postgres.slot; if they are right: {REPAIR_HINT}",
        )


async def expect_replay(upstream: Upstream, settings: Settings, slot: Slot, tail: Tail) -> Continuity:
    """6. Make the check that the stream goes on with the archive's history, before anything new counts.

    Raises Unavailable, Invalid or DataError.
    """
    confirmed, last = slot.confirmed_flush_lsn, tail.last_commit_lsn
    if confirmed is None or not is_due(last, confirmed):
        return Continuity(0)
    timeline = upstream.server.epoch.timeline
    switch_points = await read_switch_points(settings.postgres, timeline) if timeline > 1 else {}
    return Continuity(last if is_due(last, confirmed, switch_points.values()) else 0)
