"""Clocks: ours against those of the three neighbours.

Commit times are Postgres's clock. Latencies are reckoned from them by ours, and a key's end is the commit time and its
ttl, which Redis compares with its own. S3 refuses requests whose clock is a quarter of an hour off.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cdc.finding import Finding, Subject

# Below this nobody notices: expiries are minutes and days.
_ALLOWED_S = 2.0

_CONSEQUENCES: dict[Subject, str] = {
    "postgres": "latencies are off by that, and so are expiries if Redis has our time",
    "archive": "at a quarter of an hour S3 refuses every request",
    "cache": "keys live that much shorter or longer if Postgres has our time",
}

_SET_CLOCK = "timedatectl set-ntp true"


@dataclass(frozen=True, slots=True)
class Clock:
    """`offset_s` is theirs less ours, known to within `uncertainty_s`."""

    offset_s: float
    uncertainty_s: float


async def compare(ask: Callable[[], Awaitable[float | None]], resolution_s: float = 0.0) -> Clock | None:
    """Ask for their time (seconds since 1970), cut off to `resolution_s`; None if they do not tell."""
    before = time.time()
    theirs = await ask()
    after = time.time()
    if theirs is None:
        return None
    middle = (before + after) / 2
    return Clock(theirs + resolution_s / 2 - middle, max(0.0, after - before) / 2 + resolution_s / 2)


def judge_clock(subject: Subject, whose: str, clock: Clock | None) -> list[Finding]:
    """Two clocks differ; which of them is wrong is not ours to say."""
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
