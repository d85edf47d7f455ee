"""The charts' numbers: from counters and buckets to rates and percentiles."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from cdc import metrics
from cdc.web.history import INTERVAL_S, KEPT_S, MONTH_S, Counts, History, quantile


def counts(changes: int = 0, puts: int = 0, **latencies: dict[float, float]) -> Counts:
    return Counts(changes, puts, latencies)


def test_a_point_is_what_happened_since_the_one_before() -> None:
    history = History(lambda: 4711)
    history.add(counts(100, archive={0.1: 5, 0.2: 5, math.inf: 5}), at=1000, now=10)
    assert history.columns()["at"] == []
    history.add(counts(150, archive={0.1: 5, 0.2: 15, math.inf: 15}), at=1005, now=15)
    history.add(counts(150, archive={0.1: 5, 0.2: 15, math.inf: 15}), at=1010, now=20)
    columns = history.columns()
    assert columns["at"] == [1005, 1010]
    assert columns["changes_per_s"] == [10, 0]
    assert columns["archive_p50_ms"] == [150, None]
    assert columns["redis_p50_ms"] == [None, None]
    assert columns["retained_bytes"] == [4711, 4711]


def test_it_keeps_half_an_hour_and_no_more() -> None:
    history = History()
    for step in range(1000):
        history.add(counts(step), at=step * INTERVAL_S, now=step * INTERVAL_S)
    assert {len(values) for values in history.columns().values()} == {KEPT_S // INTERVAL_S}
    assert history.columns()["at"][-1] == 999 * INTERVAL_S


def test_puts_per_month_are_those_of_the_time_that_is_kept_and_unknown_before_a_minute() -> None:
    history = History()
    history.add(counts(puts=10), at=0, now=0)
    history.add(counts(puts=40), at=30, now=30)
    assert history.puts_per_month is None
    history.add(counts(puts=70), at=60, now=60)
    assert history.puts_per_month == pytest.approx(MONTH_S)


def test_quantiles_are_those_of_prometheus() -> None:
    """The example of "Histograms and summaries" in its manual, and the edges of histogram_quantile()."""
    assert quantile({0.1: 0, 0.2: 10, float("inf"): 10}, 0.5) == pytest.approx(0.15)
    assert quantile({0.1: 10, float("inf"): 20}, 0.99) == 0.1
    assert quantile({0.1: 0, float("inf"): 0}, 0.5) is None
    assert quantile({}, 0.5) is None


@given(st.lists(st.floats(0.0001, 50), min_size=1, max_size=50), st.sampled_from([0.5, 0.99]))
def test_a_quantile_lies_in_the_bucket_of_the_value_that_has_this_rank(values: list[float], q: float) -> None:
    registry = CollectorRegistry()
    histogram = Histogram("h", "", buckets=(0.001, 0.01, 0.1, 1, 10, 60), registry=registry)
    for value in values:
        histogram.observe(value)
    cumulative = {float(s.labels["le"]): s.value for m in registry.collect() for s in m.samples if "le" in s.labels}
    found = quantile(cumulative, q)
    exact = sorted(values)[max(0, -int(-(q * len(values)) // 1) - 1)]
    bounds = [0.0, 0.001, 0.01, 0.1, 1, 10, 60]
    low, high = next((a, b) for a, b in pairwise(bounds) if a < exact <= b)
    assert found is not None
    assert low <= found <= high


def test_counts_are_taken_from_the_metrics_and_begin_no_series() -> None:
    before = Counts.take()
    metrics.changes.inc(3)
    metrics.puts.inc()
    metrics.latency_s.labels(sink="archive").observe(0.3)
    after = Counts.take()
    assert (after.changes - before.changes, after.puts - before.puts) == (3, 1)
    assert after.latencies["archive"].keys() >= {0.001, 60.0, math.inf}
    assert after.latencies["archive"][math.inf] - before.latencies.get("archive", {}).get(math.inf, 0) == 1
    assert after.latencies.keys() - before.latencies.keys() <= {"archive"}
