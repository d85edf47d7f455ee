"""Rates of WAL and of what slots retain, from positions at any times."""

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.monitor.meter import WINDOW_S, Meter, Sample

MIB = 1024 * 1024
HISTORY = "one"

times = st.lists(st.floats(0.1, 120), min_size=2, max_size=40).map(
    lambda gaps: [1.7e9 + at for at in itertools.accumulate(gaps)]
)
growths = st.lists(st.tuples(st.floats(0.1, 200), st.integers(0, 2**34)), min_size=1, max_size=40)


def measured(samples: Sequence[tuple[float, float]], retained: list[float] | None = None) -> Meter:
    """A meter that has seen these positions, and what the slot `s` retained at each."""
    meter = Meter()
    for number, (at, lsn) in enumerate(samples):
        held = {} if retained is None else {"s": retained[number]}
        meter.note(HISTORY, Sample(at, int(lsn), held, held))
    return meter


@given(times, st.integers(0, 2**33), st.integers(0, 2**62))
def test_a_steady_rate_is_measured_whatever_the_times_of_looking(at: list[float], rate: int, start: int) -> None:
    meter = measured([(moment, start + round(rate * (moment - at[0]))) for moment in at])
    assert meter.wal_rate() == pytest.approx(rate, rel=1e-3, abs=20)


@given(growths)
def test_a_rate_is_never_negative_nor_beyond_the_fastest_that_was_seen(steps: list[tuple[float, int]]) -> None:
    at, lsn, samples = 1.7e9, 10**12, [(1.7e9, 10**12)]
    for seconds, nbytes in steps:
        at, lsn = at + seconds, lsn + nbytes
        samples.append((at, lsn))
    fastest = max(nbytes / seconds for seconds, nbytes in steps)
    assert 0 <= measured(samples).wal_rate() <= fastest * 1.001 + 1


def test_one_position_is_no_rate() -> None:
    assert Meter().wal_rate() == 0
    assert measured([(1.7e9, 5)]).wal_rate() == 0


def test_an_idle_spell_is_forgotten_as_quickly_as_a_burst_is_noticed() -> None:
    busy = [(1.7e9 + 10 * i, MIB * 100 * i) for i in range(20)]
    rate = measured(busy).wal_rate()
    assert rate == pytest.approx(10 * MIB, rel=0.01)
    idle = [(1.7e9 + 190 + 10 * i, busy[-1][1]) for i in range(1, 19)]
    assert measured(busy + idle).wal_rate() < rate / 5
    assert measured([(at, lsn) for at, lsn in busy + idle if at >= 1.7e9 + 200]).wal_rate() == 0
    again = [(idle[-1][0] + 10 * i, idle[-1][1] + MIB * 100 * i) for i in range(1, 13)]
    assert measured(busy + idle + again).wal_rate() > rate / 2


def test_after_a_long_spell_without_a_look_the_two_positions_still_count() -> None:
    assert measured([(1.7e9, 0), (1.7e9 + 86_400, 86_400 * MIB)]).wal_rate() == pytest.approx(MIB)


def test_a_restart_is_a_spell_without_wal() -> None:
    assert measured([(1.7e9, 0), (1.7e9 + 10, 10 * MIB), (1.7e9 + 20, 10 * MIB)]).wal_rate() < MIB


@pytest.mark.parametrize(
    ("history", "at", "lsn"), [("one", 20, 5 * MIB), ("two", 20, 30 * MIB), ("one", 10, 30 * MIB), ("one", 5, 30 * MIB)]
)
def test_a_position_or_clock_that_goes_back_and_another_timeline_begin_anew(history: str, at: float, lsn: int) -> None:
    meter = measured([(1.7e9, 0), (1.7e9 + 10, 10 * MIB)])
    meter.note(history, Sample(1.7e9 + at, lsn, {}, {}))
    assert meter.wal_rate() == 0
    meter.note(history, Sample(1.7e9 + at + 10, lsn + 20 * MIB, {}, {}))
    assert meter.wal_rate() == pytest.approx(2 * MIB)


@given(st.integers(1, 60), st.floats(0.5, 15), st.integers(1, 2**30))
def test_a_reader_that_keeps_up_in_steps_does_not_fall_behind(tooth_s: int, look_s: float, rate: int) -> None:
    at = [1.7e9 + look_s * i for i in range(int(2 * WINDOW_S / look_s))]
    teeth = [rate * ((moment - 1.7e9) % tooth_s) for moment in at]
    meter = measured([(moment, rate * (moment - 1.7e9)) for moment in at], teeth)
    assert meter.growth("s") == 0


@given(st.integers(2, 10), st.floats(0.2, 1), st.integers(2**12, 2**30))
def test_a_reader_that_falls_behind_does_so_at_the_difference(look_s: int, part: float, rate: int) -> None:
    at = [1.7e9 + look_s * i for i in range(int(WINDOW_S / look_s))]
    meter = measured(
        [(moment, rate * (moment - 1.7e9)) for moment in at], [rate * part * (moment - 1.7e9) for moment in at]
    )
    assert meter.growth("s") == pytest.approx(rate * part, rel=0.01, abs=2)
    assert meter.drift("s") == pytest.approx(rate * part, rel=0.01, abs=2)


def test_growth_takes_time_to_be_told_from_teeth() -> None:
    young = measured([(1.7e9 + i, i * MIB) for i in range(60)], [i * MIB for i in range(60)])
    assert young.growth("s") is None
    assert young.drift("s") == pytest.approx(MIB)
    assert young.growth("another") is None


def test_what_a_lost_slot_retained_is_not_measured() -> None:
    held = [*(float(i * MIB) for i in range(290)), *[math.inf] * 10]
    meter = measured([(1.7e9 + i, i * MIB) for i in range(300)], held)
    assert meter.growth("s") is None
    assert meter.drift("s") is None
