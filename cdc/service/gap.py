"""Records lost changes as a gap in the archive, once, and closes the gap with a new snapshot.

The slot may be lost, dropped or advanced by another consumer, and a table may leave the publication. The check that
finds it raises `ChangesLost`. The service then calls `record_gap`. After that it ends with exit code 78; or, with
`archive.on_gap = "resnapshot"` (or by `cdc repair`), it begins again and comes to `close_gap`.

Both hold the lock that also guards the beginning of an archive, and check the tail again once they have it. So only one
of several services writes. A crash between the two leaves an open gap, which the next start finds in the tail's header.
A crash inside `close_gap` leaves it open too, and the slot and the chunks of the attempt count for nothing.
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
    """Name the source of the archive's changes, for its segments' headers. `tables` are oids by name."""
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
    and closed it too. Then the loss must be checked again.

    Raises Unavailable in that case and when a server is away, Invalid, DataError, Diverged or Fenced.
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
        raise Unavailable("the database failed over since the loss was found; checking again")
    if seen is not None and (seen.open_gap is not None or seen.writer_epoch != found.writer_epoch):
        raise _looking_again()
    await archive.fence(source_of(server, settings, found.source.tables))
    if archive.tail.seq != found.seq + 1:  # another service has written before our fence
        raise _looking_again()
    covered_upto = archive.covered_upto
    from_lsn = covered_upto if lost.from_lsn is None else min(lost.from_lsn, covered_upto)
    crash_point("gap_unwritten")
    await archive.write_gap(from_lsn, lost.message)
    crash_point("gap_written")
    log.error("gap_recorded", from_lsn=format_lsn(from_lsn), reason=lost.message)


def _looking_again() -> Unavailable:
    return Unavailable("another service changed this archive since the loss was found; checking again")


def check_gap(archive: ArchiveSink, settings: Settings) -> bool:
    """Return True if a gap is to be closed. Raises ChangesLost if a person must decide that first."""
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

    1. take the lock, and check the tail again: another service may have been faster;
    2. write our fence, so that no other service writes from now on;
    3. drop the useless slot;
    4. read the state before the gap from the archive, while no slot keeps WAL for it;
    5. make slot, chunks and the snapshot record, as at the beginning of an archive. The record also holds what changed
       inside the gap.

    Raises Unavailable, Invalid, DataError, Diverged or Fenced.
    """
    name = settings.postgres.slot
    await lock_archive(connection, name)  # 1
    await archive.open()
    _required_gap(archive)
    await archive.fence(source_of(server, settings, publication.oids))  # 2
    crash_point("repair_fenced")
    gap_seq = _required_gap(archive)  # another service may have written before our fence
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

    Tables are oids by name. Raises Unavailable, Invalid or DataError too.

    At `since_lsn` it was still published. Without it, the archive tells where a writer last checked.

    A table that was dropped for good loses no rows. It stays known, so that a later table of its name is noticed.
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
    """Raise Diverged if our slot is absent and the archive's own slot exists under another name.

    Nothing is lost then: postgres.slot is wrong.
    """
    archived = "" if archive.tail is None else archive.tail.source.slot
    if archived in ("", settings.postgres.slot) or await read_slot(connection, archived) is None:
        return
    raise Diverged(
        f"the archive was written from the slot {archived!r}, which is there; postgres.slot is another one",
        detail=f"there is no slot {settings.postgres.slot!r}",
        hint=f'slot = "{archived}"   # in section [postgres]',
    )


async def lock_archive(connection: Connection, slot: str) -> None:
    """Let one service at a time work on the archive, for as long as this session lives. Raises Unavailable."""
    if not await try_lock(connection, slot):
        raise Unavailable("another service is at work on this archive; standing by")


def _sql_name(table: str) -> str:
    return ".".join(quote_identifier(part) for part in table.split(".", 1))
