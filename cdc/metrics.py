"""Every metric's name, in one place. Labels are few and never hold a row's content.

No code reads the registry back by name. A `Total` gives back what was counted, a `Level` what was set. Positions come
from `cdc/health/vitals.py`, and are set here at each request for `/metrics` (`cdc/web/exposition.py`).

Positions are WAL byte positions (LSNs as numbers), times are seconds and sizes bytes, by the conventions of Prometheus.
docs/metrics.md explains each metric, and a test compares it with this file.
"""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

REGISTRY = CollectorRegistry()


class Total(Counter):
    """A counter whose `total`, over all labels, is an integer that we read ourselves."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.total = 0
        self._whole: Total | None = None
        super().__init__(*args, **kwargs)

    def labels(self, *labelvalues: Any, **labelkwargs: Any) -> "Total":
        """The counter of these labels. Its counts are in our `total`, too."""
        child: Total = super().labels(*labelvalues, **labelkwargs)
        child._whole = self
        return child

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        """Count `amount`, a whole number."""
        self.total += int(amount)
        if self._whole is not None:
            self._whole.total += int(amount)
        super().inc(amount, exemplar)


class Level(Gauge):
    """A gauge whose `value` is what was set last; None before that, for a number without a measurement is not 0."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.value: float | None = None
        self._by_labels: dict[tuple[str, ...], Level] = {}
        super().__init__(*args, **kwargs)

    def labels(self, *labelvalues: Any, **labelkwargs: Any) -> "Level":
        """The gauge of these labels."""
        child: Level = super().labels(*labelvalues, **labelkwargs)
        self._by_labels[child._labelvalues] = child
        return child

    def of(self, *labelvalues: str) -> float | None:
        """The value that was set for these labels; None if none was. Unlike `labels` this begins no series."""
        child = self._by_labels.get(labelvalues)
        return None if child is None else child.value

    def set(self, value: float) -> None:
        """Set the gauge, and keep the value for `value` and `of`."""
        self.value = value
        super().set(value)


_LATENCY_S = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

received_lsn = Gauge("cdc_received_lsn", "End of the last WAL position received from the server", registry=REGISTRY)
durable_lsn = Gauge("cdc_durable_lsn", "Position up to which a sink is durable", ["sink"], registry=REGISTRY)
acknowledged_lsn = Gauge("cdc_acknowledged_lsn", "Position acknowledged to the server", registry=REGISTRY)
changes = Total("cdc_changes", "Changes received", registry=REGISTRY)
transactions = Counter("cdc_transactions", "Transactions received", registry=REGISTRY)
latency_s = Histogram(
    "cdc_commit_to_durable_seconds",
    "Time from a transaction's commit to its durability in a sink",
    ["sink"],
    buckets=_LATENCY_S,
    registry=REGISTRY,
)
queue_bytes = Gauge("cdc_queue_bytes", "Memory of changes waiting for a sink", ["sink"], registry=REGISTRY)
segments = Total("cdc_segments", "Segments written to the archive", ["kind"], registry=REGISTRY)
gaps = Total("cdc_gaps", "Gaps recorded in the archive: changes that could not be kept", registry=REGISTRY)
forks = Total("cdc_forks", "Changes of timeline recorded in the archive", registry=REGISTRY)
gap_open = Level("cdc_gap_open", "Whether a gap in the archive waits for its snapshot", registry=REGISTRY)
segment_bytes = Total("cdc_segment_bytes", "Compressed bytes written to the archive", registry=REGISTRY)
puts = Total("cdc_puts", "PUT requests sent to the bucket, retries included", registry=REGISTRY)
reconnects = Counter("cdc_reconnects", "Replication connections lost and opened again", registry=REGISTRY)
retries = Total("cdc_retries", "Attempts at a sink that failed for now", ["sink"], registry=REGISTRY)
catch_ups = Counter("cdc_cache_catch_ups", "Times the cache went back to the archive", registry=REGISTRY)
warm_ups = Counter("cdc_cache_warm_ups", "Times the cache was filled from a snapshot", registry=REGISTRY)
proof_ok = Level("cdc_proof_ok", "Whether the last verify, comparison or drill succeeded", ["proof"], registry=REGISTRY)
proof_at_s = Level(
    "cdc_proof_timestamp_seconds", "When a proof last succeeded, Unix time", ["proof"], registry=REGISTRY
)
proof_lsn = Level("cdc_proof_lsn", "Position up to which a proof last succeeded", ["proof"], registry=REGISTRY)
drill_s = Gauge("cdc_drill_seconds", "Time that the restore of the last good drill took", registry=REGISTRY)
drill_rows_per_s = Gauge("cdc_drill_rows_per_second", "Rows and changes a second of that restore", registry=REGISTRY)
archive_seq = Level("cdc_archive_seq", "Number of the last segment that this service wrote", registry=REGISTRY)

# Every slot of the server has these, ours and others'. No limit is infinite; a lost slot retains infinitely much.
slot_retained_bytes = Gauge("cdc_slot_retained_bytes", "WAL kept for the slot", ["slot"], registry=REGISTRY)
slot_unacknowledged_bytes = Gauge(
    "cdc_slot_unacknowledged_bytes", "WAL that the slot's reader has not acknowledged", ["slot"], registry=REGISTRY
)
slot_safe_wal_bytes = Gauge(
    "cdc_slot_safe_wal_bytes", "WAL that may be written before the slot may be lost", ["slot"], registry=REGISTRY
)
slot_active = Gauge("cdc_slot_active", "Whether the slot has a reader", ["slot"], registry=REGISTRY)
slot_ours = Gauge("cdc_slot_ours", "Whether the slot is that of postgres.slot", ["slot"], registry=REGISTRY)
slot_wal_status = Gauge(
    "cdc_slot_wal_status", "1 for the wal_status that the slot has", ["slot", "wal_status"], registry=REGISTRY
)
slot_lost = Gauge("cdc_slot_lost", "Whether the slot can never be read again", ["slot"], registry=REGISTRY)
slot_forecast_seconds = Gauge(
    "cdc_slot_forecast_seconds",
    "Time until the slot reaches max_slot_wal_keep_size or fills the disk",
    ["slot"],
    registry=REGISTRY,
)
slot_inactive_seconds = Gauge(
    "cdc_slot_inactive_seconds", "Time since the slot had a reader", ["slot"], registry=REGISTRY
)
slot_catalog_xmin_age = Gauge(
    "cdc_slot_catalog_xmin_age", "Transactions for which the slot holds back VACUUM", ["slot"], registry=REGISTRY
)
wal_bytes_per_second = Gauge("cdc_wal_bytes_per_second", "Rate at which the server writes WAL", registry=REGISTRY)
oldest_transaction_seconds = Gauge(
    "cdc_oldest_transaction_seconds", "Age of the oldest transaction that has written something", registry=REGISTRY
)
disk_free_bytes = Gauge("cdc_disk_free_bytes", "Free space on the disk of the server's WAL", registry=REGISTRY)
monitor_up = Gauge("cdc_monitor_up", "Whether the last look at the slots succeeded", registry=REGISTRY)

# The service's own state at the time of the request (cdc/web/exposition.py). NaN: not known.
ready = Gauge("cdc_ready", "Whether the service does its work: the verdict of /readyz", registry=REGISTRY)
alive = Gauge("cdc_alive", "Whether starting the service again cannot help: the verdict of /livez", registry=REGISTRY)
phase = Gauge("cdc_phase", "1 for what the service is doing", ["phase"], registry=REGISTRY)
phase_seconds = Gauge("cdc_phase_seconds", "Time since the service began to do that", registry=REGISTRY)
cache_state = Gauge(
    "cdc_cache_state", "1 for what the cache is doing; nothing without a cache", ["state"], registry=REGISTRY
)
server_lsn = Gauge("cdc_server_lsn", "Position at which the server writes WAL", registry=REGISTRY)
lag_bytes = Gauge(
    "cdc_lag_bytes",
    "WAL between a position and what was received, or, of what was received, the server's",
    ["position"],
    registry=REGISTRY,
)
lag_seconds = Gauge(
    "cdc_lag_seconds", "Age of the oldest change that was received and is not in the sink", ["sink"], registry=REGISTRY
)
bucket_cost = Gauge(
    "cdc_bucket_usd_per_month", "What PUTs at the rate of the last half hour cost in a month at R2", registry=REGISTRY
)
table_changes = Counter(
    "cdc_table_changes", "Changes received, by table and operation", ["table", "operation"], registry=REGISTRY
)
errors = Counter(
    "cdc_errors", "Errors, where it was decided what to do about them", ["room", "kind"], registry=REGISTRY
)
rpo_s = Gauge(
    "cdc_rpo_seconds",
    "Age of the newest barrier that the archive is known to hold: what a lost machine costs",
    registry=REGISTRY,
)
barrier_s = Histogram(
    "cdc_barrier_seconds",
    "Time from writing a barrier into the WAL to its place being archived",
    buckets=_LATENCY_S,
    registry=REGISTRY,
)
build = Info(
    "cdc_build", "What runs: its version, its Python, and whether the pure rooms are compiled", registry=REGISTRY
)
process = ProcessCollector(registry=REGISTRY)
