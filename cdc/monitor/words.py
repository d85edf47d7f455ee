"""Sizes, times and reasons as people read them (pure)."""

import math
from datetime import UTC, datetime
from typing import Final

from cdc.postgres.observation import Observation, OpenTransaction, WatchedSlot

# Less than this behind is traffic, not trouble: two queues' worth and the WAL around it.
BEHIND_BYTES: Final = 64 * 1024 * 1024

# `restart_lsn` follows the reader in steps of 15 s (the background writer notes running transactions that often), and
# by whole segments of WAL: a younger transaction, or a smaller distance, explains nothing.
_PINS_AFTER_S: Final = 30.0
_PINS_BYTES: Final = 32 * 1024 * 1024

_DAY_S: Final = 86_400


def size(nbytes: float) -> str:
    """A size for people: `812 kB`, `1.4 GB`; what a slot that does not say retains is infinite."""
    if math.isinf(nbytes):
        return "lost (infinite)"
    for unit in ("bytes", "kB", "MB", "GB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if nbytes >= 10 or unit == "bytes" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TB"


def duration(seconds: float) -> str:
    """A time for people: `40 s`, `12 min`, `3.5 h`, `12 days`; `never` if it is infinite or years away."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * _DAY_S:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / _DAY_S:.0f} days" if seconds < 1000 * _DAY_S else "never"


def since(at: float | None, now: float) -> str:
    """` since 02:14 UTC`, with the date if that was not within the last day; nothing if it is not known."""
    if at is None:
        return ""
    form = "%H:%M UTC" if now - at < _DAY_S else "%Y-%m-%d %H:%M UTC"
    return f" since {datetime.fromtimestamp(at, UTC).strftime(form)}"


def inactive_since(watched: WatchedSlot) -> float | None:
    """Known since Postgres 17."""
    at = watched.slot.inactive_since
    return None if at is None or watched.reader is not None else at.timestamp()


def pin_of(watched: WatchedSlot, observation: Observation) -> OpenTransaction | None:
    """The transaction that keeps `restart_lsn` back while the reader of the slot has gone on."""
    lsn = observation.wal_lsn
    if watched.kind != "logical" or watched.reader is None or watched.lost:
        return None
    oldest = next((found for found in observation.transactions if found.xid_age is not None), None)
    if watched.being_created:
        return oldest
    if watched.retained_bytes(lsn) - watched.unacknowledged_bytes(lsn) < _PINS_BYTES:
        return None
    if oldest is None or (oldest.since is not None and observation.at - oldest.since < _PINS_AFTER_S):
        return None
    return oldest


def reason_of(watched: WatchedSlot, observation: Observation, growth: float) -> str | None:
    """Why the slot retains what it does; None if there is nothing to explain."""
    retained = watched.retained_bytes(observation.wal_lsn)
    behind = watched.unacknowledged_bytes(observation.wal_lsn)
    if watched.unused:
        return "it has never been used, and retains nothing yet"
    if watched.lost:
        return f"its WAL is gone ({watched.slot.invalidation_reason or watched.slot.wal_status})"
    if watched.reader is None:
        return f"nobody reads it{since(inactive_since(watched), observation.at)}"
    pin = pin_of(watched, observation)
    if pin is not None:
        who = f"{name_of(pin)}{since(pin.since, observation.at)}"
        return f"{who} delays its creation" if watched.being_created else f"{who} pins {size(retained)}"
    if growth > 0:
        return f"the reader acknowledges {size(growth)}/s slower than WAL grows"
    return f"the reader is {size(behind)} behind" if behind > BEHIND_BYTES else None


def name_of(transaction: OpenTransaction) -> str:
    """`open transaction of pid 4711`, or `prepared transaction 'order-17'`."""
    if transaction.pid is None:
        return f"prepared transaction '{transaction.gid}'"
    return f"open transaction of pid {transaction.pid}"
