"""Compares our clock with those of the three neighbours.

Commit times come from Postgres's clock. Latencies are their distance to ours. A key expires at its commit time plus its
ttl, by Redis's clock. S3 refuses requests whose clock is a quarter of an hour off.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cdc.finding import Finding, Subject

# A smaller difference has no visible effect: expiries are minutes and days.
_ALLOWED_S = 2.0

_CONSEQUENCES: dict[Subject, str] = {
    "postgres": "latencies are off by that, and so are expiries if Redis has our time",
    "archive": "at a quarter of an hour S3 refuses every request",
    "cache": "keys live that much shorter or longer if Postgres has our time",
}

_SET_CLOCK = "timedatectl set-ntp true"


@dataclass(frozen=True, slots=True)
class Clock:
    """A comparison of two clocks: `offset_s` is theirs minus ours, known to within `uncertainty_s`."""

    offset_s: float
    uncertainty_s: float


async def compare(ask: Callable[[], Awaitable[float | None]], resolution_s: float = 0.0) -> Clock | None:
    """Compare our clock with the one that `ask` reads; None if `ask` returns None. Raises what `ask` raises.

    `ask` returns seconds since 1970, cut off to multiples of `resolution_s`.
    """
    before = time.time()
    theirs = await ask()
    after = time.time()
    if theirs is None:
        return None
    middle = (before + after) / 2
    return Clock(theirs + resolution_s / 2 - middle, max(0.0, after - before) / 2 + resolution_s / 2)


def judge_clock(subject: Subject, whose: str, clock: Clock | None) -> list[Finding]:
    """Judge the difference between two clocks. It does not show which of them is wrong."""
    if clock is None:
        return []
    apart_s = abs(clock.offset_s)
    if apart_s - clock.uncertainty_s <= _ALLOWED_S:
        return [Finding(subject, f"{whose} has our time, to within {apart_s + clock.uncertainty_s:.1f} s", level="ok")]
    direction = "ahead of" if clock.offset_s > 0 else "behind"
    return [
        Finding(
            subject,
            f"{whose} is {apart_s:.1f} s {direction} this machine: {_CONSEQUENCES[subject]}",
            f"{_SET_CLOCK}  (on whichever machine is wrong)",
            command=_SET_CLOCK,
            optional=True,
        )
    ]
