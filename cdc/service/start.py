"""What must be true before a change flows: server, archive and slot tell one history, and this service holds the lock.

Each function checks one thing and raises the error that says what a person can do, or returns what it found out. The
numbers are those of `service.py`'s story.
"""

import asyncio
import contextlib
from dataclasses import dataclass

import structlog

from cdc.archive.reader.tail import Tail
from cdc.archive.writer.sink import ArchiveSink
from cdc.config import Settings
from cdc.crash import crash_point
from cdc.errors import ChangesLost, Diverged, Fenced, Invalid, SlotLost, Unavailable
from cdc.health.vitals import Phase, Vitals
from cdc.lsn import format_lsn
from cdc.pipeline.continuity import Continuity, is_due
from cdc.position import Position
from cdc.postgres.publication import Publication, read_publication
from cdc.postgres.publication_check import check_publication
from cdc.postgres.server import Server, check_server, read_server
from cdc.postgres.session import Connection
from cdc.postgres.slot import Slot, check_slot, drop_slot, make_failover, read_slot
from cdc.postgres.stream.replication import Identity, ReplicationStream, SlotActive
from cdc.postgres.timeline import read_switch_points
from cdc.service.backfill import backfill
from cdc.service.gap import REPAIR_HINT, check_gap, check_slot_name, close_gap, lock_archive, source_of

log = structlog.get_logger()

STANDBY_S = 1.0


@dataclass(frozen=True, slots=True)
class Upstream:
    """The server as one attempt found it. `connection` is an ordinary SQL session of that attempt."""

    connection: Connection
    server: Server
    publication: Publication


async def examine_upstream(connection: Connection, settings: Settings) -> Upstream:
    """1. The server can be replicated from, and the publication serves archive and cache."""
    server = await read_server(connection)
    await check_server(connection, server, settings.postgres.slot, failover=settings.postgres.failover)
    publication = await read_publication(connection, settings.postgres.publication)
    check_publication(publication, settings.cache.served)
    return Upstream(connection, server, publication)


async def ensure_slot(
    upstream: Upstream, settings: Settings, archive: ArchiveSink, position: Position | None, vitals: Vitals
) -> Slot:
    """4. The slot that goes with this archive. A new archive, or one with a gap, gets its slot and a snapshot here."""
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
        with contextlib.suppress(SlotActive):  # whoever reads it does it at their next start
            await make_failover(settings.postgres, name)
    return slot


async def check_idle(upstream: Upstream, settings: Settings, position: Position | None) -> None:
    """Before a repair by hand: there is something to repair, and no service at work on it. Raises Invalid."""
    if position is None:
        raise Invalid(f"there is no archive at {settings.archive.url} to repair", hint="cdc run   # begins it")
    slot = await read_slot(upstream.connection, settings.postgres.slot)
    if slot is not None and slot.active_pid is not None:
        raise Invalid(
            f"the replication slot {slot.name!r} is being read: there is nothing to repair while a service is at work",
            detail=f"by pid {slot.active_pid}",
            hint="cdc status",
        )


async def _begin_archive(upstream: Upstream, settings: Settings, archive: ArchiveSink, slot: Slot | None) -> None:
    name = settings.postgres.slot
    if slot is not None and archive.tail is None:
        await archive.open()
        if archive.tail is not None:  # whoever made the slot had fenced the archive, just after we had looked
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
    if archive.covered_upto:  # our fence came behind more than we had seen: the slot is the other service's
        raise Unavailable("another service began this archive since we looked; standing by")
    if slot is not None:
        log.warning("backfill_restarted", slot=name)
        await drop_slot(upstream.connection, name)
    await backfill(settings, upstream.publication, archive)


def _end_of(position: Position | None) -> str:
    return "its beginning" if position is None else format_lsn(position.lsn)


def check_identity(identity: Identity, server: Server) -> None:
    """The stream talks to the very server that was examined, which several hosts in one DSN do not guarantee."""
    if identity.epoch != server.epoch:
        raise Unavailable(
            "the replication connection reached another server than the SQL session",
            detail=f"{identity.epoch} is not {server.epoch}: a failover is under way, or postgres.dsn names standbys",
            hint="add target_session_attrs=read-write to postgres.dsn",
        )


def check_covered(slot: Slot, covered_upto: int) -> None:
    """6. Postgres has forgotten nothing that the archive lacks: `confirmed_flush_lsn <= covered_upto`."""
    confirmed = slot.confirmed_flush_lsn
    if confirmed is not None and confirmed > covered_upto:
        raise ChangesLost(
            f"the slot {slot.name!r} was advanced past the archive",
            detail=f"confirmed_flush_lsn {format_lsn(confirmed)}, archived up to {format_lsn(covered_upto)}: "
            "another consumer used this slot, or archive.url names another archive",
            hint=f"correct archive.url or postgres.slot; if they are right: {REPAIR_HINT}",
        )


async def expect_replay(upstream: Upstream, settings: Settings, slot: Slot, tail: Tail) -> Continuity:
    """6. What the stream must show before anything new counts: that it goes on with the archive's history."""
    confirmed, last = slot.confirmed_flush_lsn, tail.last_commit_lsn
    if confirmed is None or not is_due(last, confirmed):
        return Continuity(0)
    timeline = upstream.server.epoch.timeline
    switch_points = await read_switch_points(settings.postgres, timeline) if timeline > 1 else {}
    return Continuity(last if is_due(last, confirmed, switch_points.values()) else 0)


async def acquire_stream(
    stream: ReplicationStream,
    settings: Settings,
    archive: ArchiveSink,
    stop: asyncio.Event,
    vitals: Vitals,
    *,
    writer_epoch: int,
) -> bool:
    """5. START_REPLICATION, which is the lock. Stands by while another service holds it; False if stopped meanwhile.

    `writer_epoch` is that of this service's last fence, 0 if it never wrote. A service that was the writer before, and
    finds that another one has fenced it since, ends as `Fenced`.
    """
    standing_by = False
    while not stop.is_set():
        try:
            await stream.start(settings.postgres.slot, settings.postgres.publication)
        except SlotActive as active:
            if writer_epoch and await _overtaken(archive, writer_epoch):
                raise Fenced(
                    "another service writes to this archive now",
                    detail=active.detail,
                    hint="cdc archive ls   # names the writers; this process has changed nothing since",
                ) from None
            if not standing_by:
                log.info("standing_by", slot=settings.postgres.slot, reason=active.detail)
                standing_by = True
                vitals.enter(Phase.STANDING_BY)
            crash_point("standing_by")
            try:
                async with asyncio.timeout(STANDBY_S):
                    await stop.wait()
            except TimeoutError:
                continue
        else:
            return True
    return False


async def _overtaken(archive: ArchiveSink, writer_epoch: int) -> bool:
    await archive.open()
    return archive.tail is not None and archive.tail.writer_epoch > writer_epoch
