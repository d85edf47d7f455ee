"""Shows the slot watch's reports as metrics. The series of a slot that is gone are removed."""

import contextlib
import math

from cdc import metrics
from cdc.monitor.reason import inactive_since
from cdc.monitor.report import Report
from cdc.postgres.observation import WatchedSlot

# pg_replication_slots.wal_status, and one for a slot that has never reserved WAL.
_STATUSES = ("reserved", "extended", "unreserved", "lost", "unused")

_BY_SLOT = (
    metrics.slot_retained_bytes,
    metrics.slot_unacknowledged_bytes,
    metrics.slot_safe_wal_bytes,
    metrics.slot_active,
    metrics.slot_ours,
    metrics.slot_lost,
    metrics.slot_forecast_seconds,
    metrics.slot_inactive_seconds,
    metrics.slot_catalog_xmin_age,
)


class Gauges:
    """Sets the gauges from each report, and remembers which slots have series."""

    def __init__(self) -> None:
        self._slots: set[str] = set()

    def show(self, found: Report) -> None:
        present = {watched.slot.name for watched in found.observation.slots}
        for name in self._slots - present:
            _forget(name)
        self._slots = present
        for watched in found.observation.slots:
            _show_slot(watched, found)
        _show_server(found)


def _show_slot(watched: WatchedSlot, found: Report) -> None:
    name, lsn = watched.slot.name, found.observation.wal_lsn
    metrics.slot_retained_bytes.labels(name).set(watched.retained_bytes(lsn))
    metrics.slot_unacknowledged_bytes.labels(name).set(watched.unacknowledged_bytes(lsn))
    metrics.slot_active.labels(name).set(watched.reader is not None)
    metrics.slot_ours.labels(name).set(name == found.ours)
    metrics.slot_lost.labels(name).set(watched.lost)
    metrics.slot_forecast_seconds.labels(name).set(found.forecasts[name].seconds)
    metrics.slot_catalog_xmin_age.labels(name).set(watched.catalog_xmin_age or 0)
    metrics.slot_safe_wal_bytes.labels(name).set(_safe_wal_bytes(watched))
    idle_since = inactive_since(watched.slot)
    if idle_since is not None or watched.reader is not None:
        metrics.slot_inactive_seconds.labels(name).set(
            0 if idle_since is None else max(0.0, found.observation.at - idle_since)
        )
    status = "lost" if watched.lost else watched.slot.wal_status or "unused"
    for possible in _STATUSES:
        metrics.slot_wal_status.labels(name, possible).set(possible == status)


def _safe_wal_bytes(watched: WatchedSlot) -> float:
    """The bytes that may be written before the slot may be lost: 0 for a lost one, infinite without a limit."""
    if watched.lost:
        return 0
    safe = None if watched.unused else watched.slot.safe_wal_size
    return math.inf if safe is None else safe


def _show_server(found: Report) -> None:
    now = found.observation.at
    metrics.wal_bytes_per_second.set(found.wal_bytes_per_s)
    writing = [open_.since for open_ in found.observation.transactions if open_.xid_age is not None and open_.since]
    metrics.oldest_transaction_seconds.set(max(0.0, now - min(writing)) if writing else 0)
    metrics.disk_free_bytes.set(math.nan if found.disk is None else found.disk.free_bytes)


def _forget(name: str) -> None:
    for gauge in _BY_SLOT:
        with contextlib.suppress(KeyError):  # not every slot has every series
            gauge.remove(name)
    for possible in _STATUSES:
        metrics.slot_wal_status.remove(name, possible)
