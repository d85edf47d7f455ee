"""What orders rows: scores that Redis accepts, ranks that are exact."""

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.cache.order import DECIMAL, FLOAT, TIME, order_kind, rank, score_of_type, time_us

DAY_US = 86_400_000_000
NUMERIC, FLOAT8, INT8, TIMESTAMPTZ, TEXT = 1700, 701, 20, 1184, 25


@given(st.datetimes(min_value=datetime(1, 1, 1), max_value=datetime(9999, 12, 31)))
def test_any_moment_of_pythons_calendar_is_its_microseconds(moment: datetime) -> None:
    expected = (moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    text = moment.isoformat(sep=" ")
    assert time_us(text.encode()) == time_us(f"{text}+00".encode()) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"infinity", math.inf),
        (b"-infinity", -math.inf),
        (b"1970-01-02", DAY_US),
        (b"1970-01-01 00:00:00.5", 500_000),
        (b"1970-01-01 02:00:00+02", 0),
        (b"1969-12-31 22:29:59-01:30:01", 0),
        (b"0001-01-01 00:00:00+00", -719_162 * DAY_US),
        (b"0001-12-31 BC", -719_163 * DAY_US),
        (b"0001-12-31 23:59:59.999999+00 BC", -719_162 * DAY_US - 1),
        (b"10000-01-01 00:00:00", 2_932_897 * DAY_US),
        (b"294276-12-31 23:59:59.999999+00", 9_223_371_331_200_000_000 + 946_684_800_000_000 - 1),  # END_TIMESTAMP
    ],
)
def test_a_moment_beyond_pythons_calendar_is_its_microseconds(text: bytes, expected: float) -> None:
    assert time_us(text) == expected


@pytest.mark.parametrize("text", [b"", b"soon", b"24:00:00", b"2026-11-22T"])
def test_what_is_no_moment_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        time_us(text)


@pytest.mark.parametrize(
    ("type_oid", "text", "score"),
    [
        (INT8, b"-9223372036854775808", b"-9223372036854775808"),
        (NUMERIC, b"1.50", b"1.5"),
        (NUMERIC, b"NaN", b"inf"),
        (NUMERIC, b"-Infinity", b"-inf"),
        (NUMERIC, b"9" * 400, b"inf"),
        (NUMERIC, b"0." + b"0" * 320 + b"1", b"0"),
        (FLOAT8, b"4.9406564584124654e-324", b"0"),
        (FLOAT8, b"1e+308", b"1e+308"),
        (TIMESTAMPTZ, b"2026-11-22 18:07:13.802498+00", b"1795370833802498"),
        (TIMESTAMPTZ, b"infinity", b"inf"),
    ],
)
def test_a_score_is_what_redis_reads_as_a_double(type_oid: int, text: bytes, score: bytes) -> None:
    assert score_of_type(type_oid)(text) == score


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_integers_rank_exactly(a: int, b: int) -> None:
    assert (rank(DECIMAL, str(a).encode()) < rank(DECIMAL, str(b).encode())) == (a < b)


@given(st.decimals(allow_nan=False, allow_infinity=False), st.decimals(allow_nan=False, allow_infinity=False))
def test_numerics_rank_exactly(a: Decimal, b: Decimal) -> None:
    assert (rank(DECIMAL, f"{a:f}".encode()) < rank(DECIMAL, f"{b:f}".encode())) == (a < b)


def test_nan_ranks_above_everything() -> None:
    assert rank(DECIMAL, b"NaN") > rank(DECIMAL, b"9" * 500)
    assert rank(FLOAT, b"NaN") > rank(FLOAT, b"1e+308")
    assert rank(TIME, b"infinity") > rank(TIME, b"294276-12-31 23:59:59.999999+00")


def test_text_gives_no_order() -> None:
    assert order_kind(TEXT) is None
    with pytest.raises(KeyError):
        score_of_type(TEXT)
