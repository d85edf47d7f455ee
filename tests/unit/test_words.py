"""Sizes and times, as every command, page and log line says them."""

import math
from datetime import UTC, datetime

import pytest

from cdc.words import duration, iso, remaining, since, size

NOW = datetime(2026, 11, 22, 2, 30, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("nbytes", "said"),
    [
        (0, "0 bytes"), (712, "712 bytes"), (1023, "1023 bytes"), (1024, "1.0 kB"), (80_400, "79 kB"),
        (1_400_000, "1.3 MB"), (4 * 1024**3, "4.0 GB"), (5e12, "4.5 TB"), (5e15, "4547.5 TB"), (math.inf, "infinite"),
    ],
)  # fmt: skip
def test_sizes_are_in_the_units_of_postgres(nbytes: float, said: str) -> None:
    assert size(nbytes) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"), (0.0008, "0.8 ms"), (0.00999, "10 ms"), (0.0123, "12 ms"), (0.9999, "1 s"), (1, "1 s"),
        (1.25, "1.2 s"), (3, "3 s"), (9.99, "10 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"),
        (9000, "2.5 h"), (200_000, "2 days"), (1e8, "1157 days"), (math.inf, "never"),
    ],
)  # fmt: skip
def test_times_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_what_comes_in_years_is_not_forecast() -> None:
    assert [remaining(seconds) for seconds in (60, 9e7, math.inf)] == ["60 s", "never", "never"]


def test_a_moment_has_its_date_if_it_was_not_within_the_last_day() -> None:
    quarter = NOW - 16 * 60
    assert since(quarter, NOW) == " since 02:14 UTC"
    assert since(quarter - 2 * 86_400, NOW) == " since 2026-11-20 02:14 UTC"
    assert since(None, NOW) == ""
    assert iso(NOW) == "2026-11-22T02:30:00.000Z"
