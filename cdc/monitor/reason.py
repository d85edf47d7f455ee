"""Explains why a slot retains what it does, in words for people (pure)."""

from typing import Final

from cdc.postgres.observation import Observation, OpenTransaction, WatchedSlot
from cdc.postgres.slot import Slot
from cdc.words import since, size

# A reader less far behind than this is normal under traffic: two queues' worth and the WAL around it.
BEHIND_BYTES: Final = 64 * 1024 * 1024

# `restart_lsn` follows the reader in steps of 15 s (the background writer notes running transactions that often), and
# by whole segments of WAL: a younger transaction, or a smaller distance, explains nothing.
_PINS_AFTER_S: Final = 30.0
_PINS_BYTES: Final = 32 * 1024 * 1024


def inactive_since(slot: Slot) -> float | None:
    """The Unix time when its last reader left; None while it is read, and before Postgres 17, which tells it first."""
    at = slot.inactive_since
    return None if at is None or slot.active_pid is not None else at.timestamp()


def lost_because(slot: Slot) -> str:
    """The cause of a lost slot's loss, in Postgres's word."""
    return slot.invalidation_reason or slot.wal_status or "conflicting"


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
    """The reason why the slot retains what it does; None if there is nothing to explain.

    `growth` is in bytes a second, as of `growth_of`.
    """
    retained = watched.retained_bytes(observation.wal_lsn)
    behind = watched.unacknowledged_bytes(observation.wal_lsn)
    if watched.unused:
        return "it has never been used, and retains nothing yet"
    if watched.lost:
        return f"its WAL is gone ({lost_because(watched.slot)})"
    if watched.reader is None:
        return f"nobody reads it{since(inactive_since(watched.slot), observation.at)}"
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
