"""Prints sizes, durations and times for people (pure), in one way for every command, page and message."""

import math
from datetime import UTC, datetime
from typing import Final

_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86_400


def size(nbytes: float) -> str:
    """Print a size in Postgres's units of 1024: `812 kB`, `1.4 GB`, or `infinite`."""
    if math.isinf(nbytes):
        return "infinite"
    for unit in ("bytes", "kB", "MB", "GB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if nbytes >= 10 or unit == "bytes" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TB"


def duration(seconds: float) -> str:
    """Print seconds as a duration: `0.8 ms`, `12 ms`, `1.2 s`, `40 s`, `12 min`, `3.5 h`, `12 days`.

    Seconds, minutes and hours are used up to two of the next unit: `90 min`, not `1.5 h`. Infinity is `never`.
    """
    if 0 < seconds < 0.9995:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.00995 else f"{seconds * 1000:.0f} ms"
    if seconds < 2 * _MINUTE_S:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    if seconds < 2 * _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    if seconds < 2 * _DAY_S:
        return f"{seconds / _HOUR_S:.1f}".removesuffix(".0") + " h"
    return "never" if math.isinf(seconds) else f"{seconds / _DAY_S:.0f} days"


def remaining(seconds: float) -> str:
    """Print the seconds until something as `duration` does; `never` from 1000 days on."""
    return duration(seconds if seconds < 1000 * _DAY_S else math.inf)


def since(at: float | None, now: float) -> str:
    """Print ` since 02:14 UTC`, with the date if that was a day ago or more; nothing if `at` is not known.

    Both are Unix times in seconds.
    """
    if at is None:
        return ""
    form = "%H:%M UTC" if now - at < _DAY_S else "%Y-%m-%d %H:%M UTC"
    return f" since {datetime.fromtimestamp(at, UTC).strftime(form)}"


def iso(at: float) -> str:
    """Print a Unix time in seconds as ISO 8601 in UTC, to the millisecond: `2026-11-22T02:14:00.000Z`."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
