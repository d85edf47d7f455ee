"""Forecasts when a slot is lost, or the disk full, if everything goes on as it was measured (pure).

A forecast ends when the slot retains all that it may: `max_slot_wal_keep_size`, or the free space of the disk if that
is used up sooner. Postgres then calls the slot `unreserved`, and invalidates it at its next checkpoint. Under traffic
that comes after `max_wal_size`, otherwise after `checkpoint_timeout`. So a slot may live a little longer than its
forecast, but cannot count on it. The disk is forecast as if nothing but this slot's WAL were written to it.

A slot that advances as fast as WAL grows never reaches its limit: the forecast is infinite, not 0. So is that of a
slot that is lost already.
"""

import math
from dataclasses import dataclass
from typing import Literal

from cdc.monitor.meter import Meter, Sample
from cdc.monitor.reason import BEHIND_BYTES, pin_of, reason_of
from cdc.postgres.observation import Observation, WatchedSlot

# A checkpoint's time is in whole seconds, so a young one gives a poor rate. One of an hour ago gives an outdated rate.
_YOUNGEST_CHECKPOINT_S, _OLDEST_CHECKPOINT_S = 10.0, 3600.0

Limit = Literal["max_slot_wal_keep_size", "disk", "none"]


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system of the server's WAL."""

    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """The forecast of one slot. `seconds` is infinite if the limit is never reached, `room_bytes` if there is none."""

    seconds: float
    limit: Limit
    room_bytes: float
    growth_bytes_per_s: float
    reason: str | None


def note(meter: Meter, observation: Observation) -> None:
    """Feed the meter an observation. Before the first one, the last checkpoint tells where the WAL was earlier."""
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
    """Forecast one slot, from the last observation that the meter has seen. `disk` is None where it is not known."""
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
    """The WAL in bytes that may be written before the slot exceeds `max_slot_wal_keep_size`; infinite without it."""
    if math.isinf(observation.keep_bytes):
        return math.inf
    if watched.slot.safe_wal_size is not None:
        return max(0, watched.slot.safe_wal_size)
    keep = max(observation.keep_bytes, observation.wal_keep_bytes)
    return max(0.0, keep - watched.retained_bytes(observation.wal_lsn))


def growth_of(watched: WatchedSlot, observation: Observation, meter: Meter) -> float:
    """The bytes a second by which the slot retains more; 0 for a slot that is lost or was never used.

    The first case that fits counts:

    1. the slot has no reader: the rate of the WAL;
    2. it was measured for four minutes or more, in three looks at least: the measured rate;
    3. a transaction pins it: the rate of the WAL;
    4. it is at most 64 MB behind: 0, for a short measurement does not show that it is unhealthy;
    5. otherwise the drift so far, or the rate of the WAL after only one look.
    """
    if watched.lost or watched.unused:
        return 0.0
    name, rate = watched.slot.name, meter.wal_rate()
    if watched.reader is None:  # 1
        return rate
    measured = meter.growth(name)  # 2
    if measured is not None:
        return measured
    if pin_of(watched, observation) is not None:  # 3
        return rate
    if watched.unacknowledged_bytes(observation.wal_lsn) <= BEHIND_BYTES:  # 4
        return 0.0
    drift = meter.drift(name)  # 5
    return rate if drift is None else drift


def _seconds(room: float, growth: float) -> float:
    if room <= 0:
        return 0.0
    return room / growth if growth > 0 else math.inf
