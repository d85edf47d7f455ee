"""The bench's judge and scribe: a contender that read too little has failed, and the table says what was measured."""

from dataclasses import asdict

import pytest

from tests.bench.figures import Figure, Findings, Machine, Reading, percentile, standings
from tests.bench.sizes import Sizes, read_sizes
from tests.bench.table import figures_table, render, workload_table


def _reading(contender: str, seconds: float, changes: int = 1000, cpu_s: float | None = None) -> Reading:
    return Reading(contender, 1000, changes, seconds, cpu_s)


def test_a_contender_that_read_fewer_changes_than_the_wal_holds_has_failed_rather_than_won() -> None:
    table = workload_table(standings([_reading("walsender", 1.0), _reading("hasty", 0.1, changes=999)]))
    assert "failed: read 999 changes of 1,000" in table
    assert "10,000" not in table


def test_a_contender_that_read_more_changes_than_the_wal_holds_has_failed_too() -> None:
    assert _reading("eager", 1.0, changes=1001).failure == "read 1,001 changes of 1,000"


def test_one_bad_repetition_fails_the_contender() -> None:
    standing = standings([_reading("flaky", 1.0), _reading("flaky", 1.0, changes=0)])[0]
    assert standing.failure == "read 0 changes of 1,000"


def test_a_rate_is_the_median_of_the_repetitions_and_the_ratio_is_to_the_first_contender() -> None:
    readings = [_reading("walsender", s) for s in (1.0, 2.0, 4.0)]
    readings += [_reading("ours", s, cpu_s=0.01) for s in (4.0, 4.0, 4.0)]
    table = workload_table(standings(readings))
    assert "| walsender | 500 (250 … 1,000) | 1.00 |" in table
    assert "| ours | 250 (250 … 250) | 0.50 | 10.0 |" in table


def test_a_ratio_compares_within_each_repetition() -> None:
    slow_machine, quick_machine = 10.0, 1.0
    yardstick, ours = standings(
        [_reading("walsender", s) for s in (slow_machine, quick_machine, slow_machine)]
        + [_reading("ours", s * 2) for s in (slow_machine, quick_machine, slow_machine)]
    )
    assert ours.ratio_to(yardstick) == 0.5


def test_a_contender_that_did_not_run_says_why() -> None:
    table = workload_table(standings([Reading("decoder", 1000, 0, 0, error="no | module")]))
    assert "failed: no \\| module" in table


def test_ratios_to_a_yardstick_that_failed_are_left_out() -> None:
    table = workload_table(standings([_reading("walsender", 1.0, changes=1), _reading("ours", 1.0)]))
    assert "| ours | 1,000 (1,000 … 1,000) |  |" in table


def test_a_figure_says_whether_it_is_reached() -> None:
    table = figures_table(
        [Figure("latency", "1 ms", "<= 2 ms", True), Figure("memory", "300 MiB", "<= 256 MiB", False)]
    )
    assert "| latency | 1 ms | <= 2 ms | yes |" in table
    assert "| memory | 300 MiB | <= 256 MiB | **no** |" in table


@pytest.mark.parametrize(("percent", "value"), [(50, 5), (90, 9), (99, 10), (100, 10), (1, 1)])
def test_a_percentile_is_a_value_that_was_measured(percent: float, value: float) -> None:
    assert percentile([float(n) for n in range(10, 0, -1)], percent) == value


def test_a_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_the_document_tells_the_machine_the_sizes_and_every_workload() -> None:
    machine = Machine(2, 8.0, "x86_64", "3.13", "18.6", "Valkey 9.1")
    findings = Findings("2026-11-22", machine, asdict(Sizes()))
    findings.workloads["turns: chat rows"] = standings([_reading("walsender", 1.0)])
    findings.figures.append(Figure("idle", "1 PUT a minute", "<= 1", True))
    findings.notes.append("a note")
    text = render(findings)
    for said in ("2 cores", "8 GiB", "Python 3.13", "PostgreSQL 18.6", "### turns: chat rows", "CDC_BENCH_CHANGES="):
        assert said in text


def test_sizes_come_from_the_environment() -> None:
    assert read_sizes({"CDC_BENCH_CHANGES": "50"}).changes == 50
    assert read_sizes({}) == Sizes()
