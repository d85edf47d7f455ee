"""Keeps the last half hour in steps of five seconds, for the page's charts: rates and latencies from the metrics.

A point tells what happened since the point before it. Percentiles come from the histogram's buckets, so they are as
exact as the buckets are narrow. Where nothing happened a percentile is None, not 0.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from prometheus_client import Histogram

from cdc import metrics
from cdc.archive.bucket.cost import MONTH_S as MONTH_S

INTERVAL_S = 5
KEPT_S = 30 * 60


@dataclass(frozen=True, slots=True)
class Counts:
    """The metrics' counts at one moment. `latencies` has, by sink, how many were at most each bound in seconds."""

    changes: int
    puts: int
    latencies: Mapping[str, Mapping[float, float]]

    @classmethod
    def take(cls) -> "Counts":
        """Take the counts as they are now."""
        return cls(metrics.changes.total, metrics.puts.total, buckets_by_sink(metrics.latency_s))


def buckets_by_sink(histogram: Histogram) -> dict[str, dict[float, float]]:
    """The cumulative buckets of a histogram with the label `sink`: by sink, then by bound."""
    found: dict[str, dict[float, float]] = {}
    for family in histogram.collect():
        for sample in family.samples:
            if "le" in sample.labels:
                found.setdefault(sample.labels["sink"], {})[float(sample.labels["le"])] = sample.value
    return found


@dataclass(frozen=True, slots=True)
class Point:
    """One step, which ended at Unix time `at`. Its latencies are those of commits that became durable in it."""

    at: int
    changes_per_s: float | None
    redis_p50_ms: float | None
    redis_p99_ms: float | None
    archive_p50_ms: float | None
    archive_p99_ms: float | None
    retained_bytes: float | None


class History:
    """A bounded ring of points, one for each step."""

    def __init__(self, retained_bytes: Callable[[], float | None] = lambda: None) -> None:
        self._retained_bytes = retained_bytes
        self._points: deque[Point] = deque(maxlen=KEPT_S // INTERVAL_S)
        self._puts: deque[tuple[float, float]] = deque(maxlen=KEPT_S // INTERVAL_S)
        self._last: tuple[float, Counts] | None = None

    async def run(self) -> None:
        """Take a point every five seconds until cancelled."""
        while True:
            self.add(Counts.take(), time.time(), time.monotonic())
            await asyncio.sleep(INTERVAL_S)

    def add(self, counts: Counts, at: float, now: float) -> None:
        """Take a point. `at` is Unix time, `now` is the monotonic clock, both in seconds."""
        self._puts.append((now, counts.puts))
        if self._last is not None and now > self._last[0]:
            self._points.append(self._point(counts, at, now, *self._last))
        self._last = (now, counts)

    def columns(self) -> dict[str, list[float | None]]:
        """The points as columns: a list for each field, oldest first."""
        return {field.name: [getattr(point, field.name) for point in self._points] for field in fields(Point)}

    @property
    def puts_per_month(self) -> float | None:
        """The PUTs a month at the rate of the time that is kept; None before a minute is over."""
        if not self._puts or self._puts[-1][0] - self._puts[0][0] < 60:
            return None
        (since, before), (until, after) = self._puts[0], self._puts[-1]
        return (after - before) / (until - since) * MONTH_S

    def _point(self, counts: Counts, at: float, now: float, before: float, last: Counts) -> Point:
        changes = counts.changes - last.changes
        redis, archive = (_latencies(counts, last, sink) for sink in ("cache", "archive"))
        return Point(
            at=int(at),
            changes_per_s=round(changes / (now - before), 1),
            redis_p50_ms=_ms(quantile(redis, 0.5)),
            redis_p99_ms=_ms(quantile(redis, 0.99)),
            archive_p50_ms=_ms(quantile(archive, 0.5)),
            archive_p99_ms=_ms(quantile(archive, 0.99)),
            retained_bytes=self._retained_bytes(),
        )


def _latencies(counts: Counts, last: Counts, sink: str) -> dict[float, float]:
    before = last.latencies.get(sink, {})
    return {bound: count - before.get(bound, 0) for bound, count in counts.latencies.get(sink, {}).items()}


def quantile(cumulative: Mapping[float, float], q: float) -> float | None:
    """The value that a share of `q` does not exceed, as Prometheus's histogram_quantile() finds it; None if empty.

    Values count as evenly spread within a bucket. A value beyond the last bound counts as that bound.
    """
    bounds = sorted(cumulative)
    if not bounds or cumulative[bounds[-1]] <= 0:
        return None
    rank, low, below = q * cumulative[bounds[-1]], 0.0, 0.0
    for bound in bounds:
        count = cumulative[bound]
        if count >= rank and count > below:
            # Rounding may go past the bound by the last bit.
            return low if bound == float("inf") else min(bound, low + (bound - low) * (rank - below) / (count - below))
        low, below = (low if bound == float("inf") else bound), count
    return low


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
