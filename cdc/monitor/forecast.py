"""When a slot is lost, or the disk full, if everything goes on as it was measured (pure).

A slot is forecast to the moment when it retains all that it may: `max_slot_wal_keep_size`, or the free space of the
disk if that is used up sooner. Postgres then calls it `unreserved`, and invalidates it at its next checkpoint, which
under traffic is a matter of `max_wal_size` and otherwise of `checkpoint_timeout`: so a slot lives a little longer than
its forecast, but cannot count on it. The disk is forecast as if nothing but this slot's WAL were written to it.

A slot that advances as fast as WAL grows never gets there, and neither does one that is lost already: infinite, not 0.
"""

import math
from dataclasses import dataclass
from typing import Literal

from cdc.monitor.meter import Meter, Sample
from cdc.monitor.reason import BEHIND_BYTES, pin_of, reason_of
from cdc.postgres.observation import Observation, WatchedSlot

# A checkpoint's time is in whole seconds, so a young one says little; what was an hour ago does not say how it is now.
_YOUNGEST_CHECKPOINT_S, _OLDEST_CHECKPOINT_S = 10.0, 3600.0

Limit = Literal["max_slot_wal_keep_size", "disk", "none"]


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system of the server's WAL."""

    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """`seconds` is infinite where the limit is never reached, `room_bytes` where there is none."""

    seconds: float
    limit: Limit
    room_bytes: float
    growth_bytes_per_s: float
    reason: str | None


def note(meter: Meter, observation: Observation) -> None:
    """Let the meter see it. At first sight the last checkpoint tells where the WAL was before."""
    history, lsn = observation.epoch, observation.wal_lsn
    age_s = observation.at - observation.checkpoint_at
    if meter.empty and _YOUNGEST_CHECKPOINT_S < age_s < _OLDEST_CHECKPOINT_S and observation.checkpoint_lsn <= lsn:
        meter.note(history, Sample(observation.checkpoint_at, observation.checkpoint_lsn, {}, {}))
    meter.note(
        history,
        Sample(
            observation.at,
            lsn,
            {watched.slot.name: watched.retained_bytes(lsn) for watched in observation.slots},
            {watched.slot.name: watched.unacknowledged_bytes(lsn) for watched in observation.slots},
        ),
    )


def forecast(watched: WatchedSlot, observation: Observation, disk: Disk | None, meter: Meter) -> Forecast:
    """Of one slot, from the last observation that the meter has seen."""
    growth = growth_of(watched, observation, meter)
    reason = reason_of(watched, observation, growth)
    if watched.lost or watched.unused:
        return Forecast(math.inf, "none", math.inf, growth, reason)
    allowed = room_bytes(watched, observation)
    free = math.inf if disk is None else disk.free_bytes
    allowed_s = 0.0 if watched.slot.wal_status == "unreserved" else _seconds(allowed, growth)
    free_s = _seconds(free, growth)
    if free_s < allowed_s or (math.isinf(allowed) and disk is not None):
        return Forecast(free_s, "disk", free, growth, reason)
    return Forecast(allowed_s, "none" if math.isinf(allowed) else "max_slot_wal_keep_size", allowed, growth, reason)


def room_bytes(watched: WatchedSlot, observation: Observation) -> float:
    """How much more WAL may be written before the slot exceeds what it may retain; infinite without a limit."""
    if math.isinf(observation.keep_bytes):
        return math.inf
    if watched.slot.safe_wal_size is not None:
        return max(0, watched.slot.safe_wal_size)
    keep = max(observation.keep_bytes, observation.wal_keep_bytes)
    return max(0.0, keep - watched.retained_bytes(observation.wal_lsn))


def growth_of(watched: WatchedSlot, observation: Observation, meter: Meter) -> float:
    """Bytes a second by which the slot retains more.

    Nobody reads it: all of the WAL. Else as it was measured; and while that has not lasted for long, a slot that is not
    far behind is taken to be healthy, unless a transaction holds it back.
    """
    if watched.lost or watched.unused:
        return 0.0
    name, rate = watched.slot.name, meter.wal_rate()
    if watched.reader is None:
        return rate
    measured = meter.growth(name)
    if measured is not None:
        return measured
    if pin_of(watched, observation) is not None:
        return rate
    if watched.unacknowledged_bytes(observation.wal_lsn) <= BEHIND_BYTES:
        return 0.0
    drift = meter.drift(name)
    return rate if drift is None else drift


def _seconds(room: float, growth: float) -> float:
    if room <= 0:
        return 0.0
    return room / growth if growth > 0 else math.inf
