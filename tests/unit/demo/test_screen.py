"""What the demo shows, in words that people read."""

import pytest

from cdc.demo.meter import percentile
from cdc.demo.screen import Moment, facts, latency, open_screen

MOMENT = Moment(
    elapsed_s=3,
    seconds=20,
    phase="running",
    rate=199.6,
    committed=1234,
    rolled_back=56,
    cache_p50_s=0.0012,
    cache_p99_s=0.0234,
    cache_keys=789,
    archive_p50_s=0.5,
    archive_p99_s=1.25,
    archive_segments=3,
    archive_bytes=1_400_000,
    archive_lsn=0x1_0000_00FF,
    confirmed_lsn=None,
    lag_bytes=712,
    retained_bytes=float("inf"),
)


def test_the_facts_of_a_moment_name_rates_latencies_and_positions() -> None:
    told = dict(facts(MOMENT))
    assert told["application"] == "200 tx/s, 1,234 committed, 56 rolled back"
    assert told["commit → Redis"] == "p50 1.2 ms, p99 23 ms, 789 keys"
    assert told["commit → archive"] == "p50 500 ms, p99 1.2 s, 3 segments, 1.3 MB, up to 1/FF"
    assert told["slot"] == "confirmed none yet, 712 bytes behind, unknown of WAL retained"


def test_a_latency_that_was_not_measured_is_a_dash() -> None:
    assert (latency(None), latency(0.0123)) == ("-", "12 ms")


def test_without_a_terminal_the_screen_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with open_screen() as screen:
        screen.show(MOMENT)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "running" in printed
    assert "\x1b" not in printed


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 50), percentile(values, 99), percentile([7.0], 99)) == (50.0, 99.0, 7.0)
    assert percentile([], 50) is None
