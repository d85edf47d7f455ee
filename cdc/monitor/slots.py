"""Judges one slot, ours or a stranger's, and words the findings (pure). No other module does.

So doctor, status, readiness and warnings say the same of the same slot; each takes the findings that concern it.
"""

from collections.abc import Iterator

from cdc.finding import Finding
from cdc.monitor.reason import inactive_since, lost_because
from cdc.postgres.slot import Slot
from cdc.words import since, size

_UNLIMITED = "ALTER SYSTEM SET max_slot_wal_keep_size = -1; SELECT pg_reload_conf();"


def judge_slot(slot: Slot, ours: str, *, wal_lsn: int = 0, now: float = 0.0, end: str = "") -> Iterator[Finding]:
    """Judge `slot`: yield what is wrong with it, the gravest first. `ours` is the name of our slot.

    A missing reader of our own slot is only `info`: the service may be about to start. The finding on a stranger's slot
    tells what it retains and since when it has no reader. `wal_lsn` and `now` are the server's position and clock (Unix
    time). `end` says when the slot reaches its limit, if that is near.
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
    """Judge whether `slot` is lost, or about to be. `ours` is the name of our slot."""
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
    """The SQL that drops the slot."""
    return f"SELECT pg_drop_replication_slot('{slot.name}');"
