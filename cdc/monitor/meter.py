"""The meter measures how fast the WAL grows, and how fast each slot's retained WAL does (pure).

It works from positions and the server's clock. The two need two measures, because they move differently. WAL only
grows, in bursts and pauses: its rate is the slope of a line through the last minutes, in which the newest positions
count most. A slot's distance is a sawtooth, because a reader acknowledges in steps (coverage once a minute, running
transactions every 15 s): its growth is that of the troughs.

A restart leaves the position where it was, which looks like a pause. A position that goes back (a crash lost the end,
another timeline) makes the earlier samples worthless: they are forgotten.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

# The sawtooth of an idle but healthy reader has teeth of a minute (`archive.coverage_interval_s`). A third of the
# window is longer than that.
WINDOW_S: Final = 300.0

# A position of this age counts half.
HALF_LIFE_S: Final = 60.0

# In less time than this, troughs cannot be told from teeth.
SETTLED_S: Final = 240.0

# A trough that rises by less than this part of the WAL's rate counts as standing still: the measure is no finer.
NOISE: Final = 0.1


# After a long spell without a look two positions remain, and the old one still counts.
_LEAST_WEIGHT: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Sample:
    """One look: the WAL's position at Unix time `at`, and the bytes by which each slot was behind it.

    The distance is by the WAL that a slot retains, and by the WAL that its reader has not acknowledged.
    """

    at: float
    wal_lsn: int
    retained_bytes: Mapping[str, float]
    unacknowledged_bytes: Mapping[str, float]


class Meter:
    """Keeps the samples of the last minutes, and answers with rates. Feed it every observation."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()
        self._history: object = None

    @property
    def empty(self) -> bool:
        return not self._samples

    @property
    def span_s(self) -> float:
        """The seconds between the first sample and the last."""
        return self._samples[-1].at - self._samples[0].at if self._samples else 0.0

    def note(self, history: object, sample: Sample) -> None:
        """Take a sample of a history (system identifier and timeline). Another history discards the earlier samples."""
        last = self._samples[-1] if self._samples else None
        if last is not None and (history != self._history or sample.wal_lsn < last.wal_lsn or sample.at <= last.at):
            self._samples.clear()
        self._history = history
        self._samples.append(sample)
        while len(self._samples) > 2 and self.span_s > WINDOW_S:
            self._samples.popleft()

    def wal_rate(self) -> float:
        """The bytes of WAL a second; 0 while fewer than two positions are known."""
        if len(self._samples) < 2:
            return 0.0
        last = self._samples[-1]
        points = [(sample.at - last.at, sample.wal_lsn - last.wal_lsn) for sample in self._samples]
        return max(0.0, _slope(points))

    def growth(self, slot: str) -> float | None:
        """The bytes a second by which the slot retains more; None until troughs can be told from teeth."""
        known = _known(slot, [(sample.at, sample.retained_bytes) for sample in self._samples])
        if len(known) < 3 or known[-1][0] - known[0][0] < SETTLED_S:
            return None
        third = (known[-1][0] - known[0][0]) / 3
        early = min((nbytes, at) for at, nbytes in known if at <= known[0][0] + third)
        late = min((nbytes, at) for at, nbytes in known if at >= known[-1][0] - third)
        return self._beyond_noise((late[0] - early[0]) / (late[1] - early[1]))

    def drift(self, slot: str) -> float | None:
        """The bytes a second by which the reader falls behind, from two looks or more; None after one look."""
        known = _known(slot, [(sample.at, sample.unacknowledged_bytes) for sample in self._samples])
        if len(known) < 2:
            return None
        return self._beyond_noise((known[-1][1] - known[0][1]) / (known[-1][0] - known[0][0]))

    def _beyond_noise(self, growth: float) -> float:
        return growth if growth > NOISE * self.wal_rate() else 0.0


def _known(slot: str, samples: Sequence[tuple[float, Mapping[str, float]]]) -> list[tuple[float, float]]:
    """The slot's finite sizes, oldest first, back to the last sample without one."""
    known: list[tuple[float, float]] = []
    for at, bytes_of in reversed(samples):
        nbytes = bytes_of.get(slot, math.inf)
        if math.isinf(nbytes):
            break
        known.append((at, nbytes))
    return known[::-1]


def _slope(points: list[tuple[float, int]]) -> float:
    """The slope by least squares, weighed by age. Coordinates are differences, so floats are exact enough."""
    weights = [max(_LEAST_WEIGHT, 0.5 ** (-at / HALF_LIFE_S)) for at, _ in points]
    total = sum(weights)
    mean_at = sum(weight * at for weight, (at, _) in zip(weights, points, strict=True)) / total
    mean_lsn = sum(weight * lsn for weight, (_, lsn) in zip(weights, points, strict=True)) / total
    over = sum(weight * (at - mean_at) * (lsn - mean_lsn) for weight, (at, lsn) in zip(weights, points, strict=True))
    under = sum(weight * (at - mean_at) ** 2 for weight, (at, _) in zip(weights, points, strict=True))
    return over / under if under else 0.0
