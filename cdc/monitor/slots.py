"""What is not well with one slot, ours or a stranger's (pure): the one place where that is judged and worded.

Doctor, status, readiness and warnings all say the same of the same slot; each takes what concerns it.
"""

from collections.abc import Iterator

from cdc.finding import Finding
from cdc.monitor.reason import inactive_since, lost_because
from cdc.postgres.slot import Slot
from cdc.words import since, size

_UNLIMITED = "ALTER SYSTEM SET max_slot_wal_keep_size = -1; SELECT pg_reload_conf();"


def judge_slot(slot: Slot, ours: str, *, wal_lsn: int = 0, now: float = 0.0, end: str = "") -> Iterator[Finding]:
    """What is not well with `slot`, the gravest first; `ours` is the name of our slot.

    That nobody reads our own is only `info`: the service may be about to start. Of a stranger's it is said what it
    retains and since when: `wal_lsn` and `now` are the server's position and clock; `end` says when that becomes too
    much, if it is near.
    """
    yield from judge_brink(slot, ours)
    if _is_lost(slot, ours) or slot.active_pid is not None:
        return
    if slot.name == ours:
        yield Finding("slot", f"nobody reads slot {slot.name}, and its WAL grows", "cdc run", level="info")
    elif slot.restart_lsn is not None and not slot.synced:
        held = f"retains {size(slot.retained_bytes(wal_lsn))} of WAL" + (f", and {end}" if end else "")
        message = f"slot {slot.name}, not ours, is read by nobody{since(inactive_since(slot), now)} and {held}"
        yield _dropped(slot, message)


def judge_brink(slot: Slot, ours: str) -> Iterator[Finding]:
    """Lost, or about to be."""
    what = f"slot {slot.name}" if slot.name == ours else f"slot {slot.name}, not ours,"
    if _is_lost(slot, ours):
        message = f"{what} is lost ({lost_because(slot)}): its WAL is gone"
        yield _repaired(message) if slot.name == ours else _dropped(slot, message)
    elif slot.wal_status == "unreserved":
        message = f"{what} is about to be lost: it exceeds max_slot_wal_keep_size"
        yield Finding("slot", message, _UNLIMITED, sql=_UNLIMITED, optional=True)


def _is_lost(slot: Slot, ours: str) -> bool:
    """Ours has had a position since it was made; a stranger's without one may be a physical slot that is not in use."""
    return slot.lost or (slot.name == ours and slot.restart_lsn is None)


def _repaired(message: str) -> Finding:
    return Finding("slot", message, "cdc repair", level="error", needs_person=True, command="cdc repair", optional=True)


def _dropped(slot: Slot, message: str) -> Finding:
    drop = drop_sql(slot)
    return Finding("slot", message, f"{drop}  (if nobody needs it)", sql=drop, optional=True)


def drop_sql(slot: Slot) -> str:
    """The line that drops it."""
    return f"SELECT pg_drop_replication_slot('{slot.name}');"
