"""What cannot be kept, made explicit: a gap is written into the archive once, and a new snapshot closes it.

The slot may be lost, dropped or advanced by somebody, and a table may leave the publication. Whoever finds that out
raises `ChangesLost`; the service then calls `record_gap`, and either ends with exit code 78 or, with
`archive.on_gap = "resnapshot"` (or by `cdc repair`), begins again and comes to `close_gap`.

Both hold the lock that also guards the beginning of an archive, and look at the tail again once they have it, so that
of several services one writes. A crash between the two leaves an open gap, which the next start finds in the tail's
header; one inside `close_gap` leaves it open too, and the slot and the chunks of the attempt count for nothing.
"""

from collections.abc import Mapping

import structlog

from cdc.archive.format.header import Source
from cdc.archive.reader.tail import Tail, read_last_look
from cdc.archive.state.gap_diff import GapDiff
from cdc.archive.writer.sink import ArchiveSink
from cdc.config import Settings
from cdc.crash import crash_point
from cdc.errors import ChangesLost, Diverged, Unavailable
from cdc.lsn import format_lsn
from cdc.postgres.lock import try_lock
from cdc.postgres.publication import Publication, read_fate
from cdc.postgres.quoting import quote_identifier
from cdc.postgres.server import Server, read_server, verdict_on
from cdc.postgres.session import Connection, connect
from cdc.postgres.slot import check_owner, drop_slot, read_slot
from cdc.service.backfill import backfill

log = structlog.get_logger()

REPAIR_HINT = "cdc repair   # a new slot and a new snapshot close the gap; then start cdc run again"


def source_of(server: Server, settings: Settings, tables: Mapping[str, int]) -> Source:
    """Whose changes the archive holds, for its segments' headers. `tables` are oids by name."""
    return Source(
        epoch=server.epoch,
        database=server.database,
        slot=settings.postgres.slot,
        publication=settings.postgres.publication,
        server_version=server.server_version,
        server_encoding=server.encoding,
        settings=server.settings,
        tables=dict(tables),
    )


async def record_gap(settings: Settings, archive: ArchiveSink, lost: ChangesLost, seen: Tail | None) -> None:
    """Write down that changes are lost, unless an open gap says so already.

    `seen` is the archive's tail as it was when the loss was found. Another writer since then may have recorded the gap,
    and closed it too: Unavailable, for what was found must be looked at again.
    """
    async with await connect(settings.postgres) as connection:
        await lock_archive(connection, settings.postgres.slot)
        server = await read_server(connection)
        async with verdict_on(connection, server):
            await _write_gap(settings, archive, lost, seen, server)


async def _write_gap(
    settings: Settings, archive: ArchiveSink, lost: ChangesLost, seen: Tail | None, server: Server
) -> None:
    await archive.open()
    if archive.tail is None or archive.tail.open_gap is not None:
        return
    found = archive.tail
    if found.source.epoch != server.epoch:
        raise Unavailable("the database failed over since the loss was found; looking again")
    if seen is not None and (seen.open_gap is not None or seen.writer_epoch != found.writer_epoch):
        raise _looking_again()
    await archive.fence(source_of(server, settings, found.source.tables))
    if archive.tail.seq != found.seq + 1:  # our fence has come behind more than we had seen
        raise _looking_again()
    covered_upto = archive.covered_upto
    from_lsn = covered_upto if lost.from_lsn is None else min(lost.from_lsn, covered_upto)
    crash_point("gap_unwritten")
    await archive.write_gap(from_lsn, lost.message)
    crash_point("gap_written")
    log.error("gap_recorded", from_lsn=format_lsn(from_lsn), reason=lost.message)


def _looking_again() -> Unavailable:
    return Unavailable("another service was at work on this archive since the loss was found; looking again")


def check_gap(archive: ArchiveSink, settings: Settings) -> bool:
    """Whether a gap is to be closed. Raises ChangesLost if a person must say so first."""
    tail = archive.tail
    if tail is None or tail.open_gap is None:
        return False
    if settings.archive.on_gap == "stop":
        raise ChangesLost(
            f"the archive has an open gap since segment {tail.open_gap}",
            detail=f"it is whole up to {format_lsn(tail.covered_upto)}; what was committed since then is not in it",
            hint=REPAIR_HINT,
        )
    return True


async def close_gap(
    connection: Connection, server: Server, publication: Publication, settings: Settings, archive: ArchiveSink
) -> None:
    """Take a new slot and a new snapshot, whose record closes the gap.

    1. the lock, and the tail again: another service may have been faster;
    2. our fence, so that nobody else writes from now on;
    3. the useless slot goes;
    4. the state before the gap, out of the archive, while no slot keeps WAL for it;
    5. slot, chunks and the snapshot record, as at the beginning of an archive, and with it what changed inside the gap.
    """
    name = settings.postgres.slot
    await lock_archive(connection, name)  # 1
    await archive.open()
    _required_gap(archive)
    await archive.fence(source_of(server, settings, publication.oids))  # 2
    crash_point("repair_fenced")
    gap_seq = _required_gap(archive)  # our fence may have come behind more than we had seen
    slot = await read_slot(connection, name)
    if slot is not None:
        check_owner(slot, server.database)
        await drop_slot(connection, name)  # 3
    crash_point("repair_slot_dropped")
    across = GapDiff(gap_seq)
    try:
        await across.replay(archive.bucket, archive.tail.seq if archive.tail else 0)  # 4
        await backfill(settings, publication, archive, across)  # 5
    finally:
        across.close()
    log.warning("gap_closed", covered_upto=format_lsn(archive.covered_upto))


def _required_gap(archive: ArchiveSink) -> int:
    if archive.tail is None or archive.tail.open_gap is None:
        raise Unavailable("another service has closed the gap")
    return archive.tail.open_gap


async def check_tables(
    connection: Connection,
    publication: Publication,
    known: Mapping[str, int],
    archive: ArchiveSink,
    *,
    since_lsn: int | None = None,
) -> dict[str, int]:
    """Raise ChangesLost if a known table is published no more; else return all tables that are known now.

    `since_lsn` is where it was published still; without it the archive is asked where a writer last looked.

    A table that was dropped for good loses no rows. It stays known, so that one that takes its name later is noticed.
    """
    published = set(publication.oids.values())
    absent = {name: oid for name, oid in known.items() if oid not in published}
    fate = await read_fate(connection, absent) if absent else {}
    if fate:
        if since_lsn is None:
            since_lsn = await read_last_look(archive.bucket, archive.tail) if archive.tail is not None else 0
        raise ChangesLost(
            "changes of a table are not in the stream: " + "; ".join(f"{name} {what}" for name, what in fate.items()),
            detail=f"it was published at {format_lsn(since_lsn)}; its rows that were written since then may be missing",
            hint=f"ALTER PUBLICATION {quote_identifier(publication.name)} ADD TABLE {', '.join(map(_sql_name, fate))}; "
            f"unless that was meant, then: {REPAIR_HINT}",
            from_lsn=since_lsn,
        )
    return {**known, **publication.oids}


async def check_slot_name(connection: Connection, settings: Settings, archive: ArchiveSink) -> None:
    """An absent slot is no loss if the archive's own slot is there under another name: then postgres.slot is wrong."""
    archived = "" if archive.tail is None else archive.tail.source.slot
    if archived in ("", settings.postgres.slot) or await read_slot(connection, archived) is None:
        return
    raise Diverged(
        f"the archive was written from the slot {archived!r}, which is there; postgres.slot is another one",
        detail=f"there is no slot {settings.postgres.slot!r}",
        hint=f'slot = "{archived}"   # in section [postgres]',
    )


async def lock_archive(connection: Connection, slot: str) -> None:
    """One service at a time, for as long as this session lives. Raises Unavailable."""
    if not await try_lock(connection, slot):
        raise Unavailable("another service is at work on this archive; standing by")


def _sql_name(table: str) -> str:
    return ".".join(quote_identifier(part) for part in table.split(".", 1))
