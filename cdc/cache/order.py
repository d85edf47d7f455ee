"""Orders rows: turns a value of `order_by` into a sorted set's score and into an exact rank. Pure.

A score is a double, because Redis keeps no other: integers beyond 2^53 share scores with their neighbours. A rank is
exact, so that `latest` never mistakes an older row for a newer one. NULL has neither: such a row is in no order.

- integers and numerics are their own value, NaN above everything, as Postgres sorts;
- timestamps and dates are microseconds since 1970 (UTC), `infinity` and `-infinity` included.
"""

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from cdc.row import FLOAT_OIDS, INTEGER_OIDS, Oid

DECIMAL: Final = 0
FLOAT: Final = 1
TIME: Final = 2

# The types that can order a projection.
_INTEGERS: Final = INTEGER_OIDS | {Oid.OID}
_TIMES: Final = frozenset({Oid.DATE, Oid.TIMESTAMP, Oid.TIMESTAMPTZ})
_KIND_OF_TYPE: Final = {
    **dict.fromkeys(_INTEGERS, DECIMAL),
    Oid.NUMERIC: DECIMAL,
    **dict.fromkeys(FLOAT_OIDS, FLOAT),
    **dict.fromkeys(_TIMES, TIME),
}

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_US: Final = 86_400_000_000

# For doubles nearer to zero than this strtod reports a range error, and Redis refuses the score.
_TINY: Final = 1e-300

_TIMESTAMP = re.compile(
    rb"(\d+)-(\d\d)-(\d\d)(?: (\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?)?"
    rb"(?:([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?)?( BC)?"
)

Score = Callable[[bytes], bytes]
Rank = int | float | Decimal


def order_kind(type_oid: int) -> int | None:
    """The kind by which the script compares values of this type: DECIMAL, FLOAT or TIME; None without an order."""
    return _KIND_OF_TYPE.get(type_oid)


def is_time(type_oid: int) -> bool:
    """True if values of this type are times: timestamptz, timestamp or date."""
    return type_oid in _TIMES


def score_of_type(type_oid: int) -> Score:
    """The function that turns a value's text into a score Redis accepts. Raises KeyError for a type without order."""
    if type_oid in _INTEGERS:
        return _integer_score
    return _time_score if _KIND_OF_TYPE[type_oid] == TIME else _float_score


def _integer_score(text: bytes) -> bytes:
    return text


def _time_score(text: bytes) -> bytes:
    return str(time_us(text)).encode()


def _float_score(text: bytes) -> bytes:
    value = float(text)
    if math.isnan(value):
        return b"inf"
    return b"0" if abs(value) < _TINY else repr(value).encode()


def rank(kind: int, text: bytes) -> Rank:
    """An exact number that sorts as Postgres sorts these values. `kind` is from `order_kind`."""
    if text.isdigit():
        return int(text)
    if kind == TIME:
        return time_us(text)
    if text == b"NaN":
        return math.inf
    return Decimal(text.decode()) if kind == DECIMAL else float(text)


def time_us(text: bytes) -> int | float:
    """Read a timestamp or date in ISO style; return microseconds since 1970, ±inf for `infinity`. Raises ValueError."""
    try:
        moment = datetime.fromisoformat(text.decode())
    except ValueError:
        return _unusual_time_us(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    delta = moment - _UNIX_EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def _unusual_time_us(text: bytes) -> int | float:
    """Read a time outside Python's calendar: infinity, or a year before 1 or after 9999. Raises ValueError."""
    if text in (b"infinity", b"-infinity"):
        return math.inf if text == b"infinity" else -math.inf
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise ValueError(f"not a timestamp in ISO style ({len(text)} bytes)")
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    days = _days_since_1970(1 - year if match[12] else year, month, day)
    offset_s = sum(int(match[9 + place] or 0) * seconds for place, seconds in enumerate((3600, 60, 1)))
    offset_s = -offset_s if match[8] == b"-" else offset_s
    seconds_of_day = hour * 3600 + minute * 60 + second - offset_s
    return days * _DAY_US + seconds_of_day * 1_000_000 + int((match[7] or b"").ljust(6, b"0"))


def _days_since_1970(year: int, month: int, day: int) -> int:
    """Days of the proleptic Gregorian calendar, any year (H. Hinnant, "chrono-Compatible Date Algorithms")."""
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719_468
