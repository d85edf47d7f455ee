"""Follows the source to another timeline, after a failover or a recovery to a point in time.

Both histories are the same up to the switch point. Beyond it, the archive holds a lost tail that the new primary has
never seen. The `fork` record says where the tail begins, and from there positions count in the new epoch. LSNs of the
tail may be used again there, and are no duplicates.

Only a timeline that has left the archived one behind is followed, and its own history file says where. A server on an
earlier timeline, or on one that left before the archived one began, is for a person to decide (`check_source`).
"""

import structlog

from cdc import metrics
from cdc.archive.reader.tail import find_lost_snapshot
from cdc.archive.writer.sink import ArchiveSink
from cdc.config import Settings
from cdc.crash import crash_point
from cdc.errors import ChangesLost, Unavailable
from cdc.lsn import format_lsn
from cdc.postgres.server import Server
from cdc.postgres.session import Connection
from cdc.postgres.timeline import read_switch_points
from cdc.service.gap import REPAIR_HINT, lock_archive, source_of

log = structlog.get_logger()


async def follow_timeline(connection: Connection, server: Server, settings: Settings, archive: ArchiveSink) -> bool:
    """Record the fork if there is one; True if that brought the archive into the server's epoch.

    Raises Unavailable, Invalid, DataError, Diverged or Fenced.
    """
    tail = archive.tail
    if tail is None:
        return False
    source = source_of(server, settings, tail.source.tables)
    if tail.source.database != source.database:
        return False
    left, entered = tail.source.epoch, source.epoch
    if left.system_identifier != entered.system_identifier or left.timeline >= entered.timeline:
        return False
    switch_lsn = (await read_switch_points(settings.postgres, entered.timeline)).get(left.timeline)
    if switch_lsn is None:
        return False
    await lock_archive(connection, settings.postgres.slot)
    await archive.open()
    if archive.tail is None or archive.tail.source.epoch != left:
        raise Unavailable("another service has recorded the fork")
    tail_bytes = max(0, archive.covered_upto - switch_lsn)
    reason = f"timeline {left.timeline} was left for {entered.timeline}"
    crash_point("fork_unwritten")
    await archive.write_fork(source, switch_lsn, f"{reason}; {tail_bytes} bytes of WAL beyond it are a lost tail")
    crash_point("fork_written")
    metrics.forks.inc()
    log.error("fork_recorded", switch_lsn=format_lsn(switch_lsn), reason=reason, lost_tail_bytes=tail_bytes)
    return True


async def check_snapshot(archive: ArchiveSink) -> None:
    """Raise ChangesLost if the last snapshot lies in the tail that a fork cut off.

    No state of this timeline is known then. Raises Unavailable or DataError too.

    Every start checks it until something is written behind the fork, so a crash between the two loses nothing.
    """
    tail = archive.tail
    if tail is None or tail.open_gap is not None:
        return
    switch_lsn = await find_lost_snapshot(archive.bucket, tail)
    if switch_lsn is not None:
        raise ChangesLost(
            "the archive's last snapshot was lost with the timeline that was left",
            detail=f"it was made after {format_lsn(switch_lsn)}, where the new timeline begins: a failover came before "
            "the standby had what the snapshot was made of",
            hint=REPAIR_HINT,
            from_lsn=switch_lsn,
        )
