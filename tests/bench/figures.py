"""What the bench found, and whether our figures are reached. Pure: readings in, verdicts out.

A `Reading` is one contender's pass over the WAL. It counts only if it saw every change that the WAL holds: a reader
that stopped early would look fast, so it is a failure here, with the two numbers in the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True, slots=True)
class Reading:
    """One pass: `expected` changes are in the WAL for this contender, `changes` were seen in `seconds`.

    `cpu_s` is the contender's own CPU; where it was measured, `walsender_cpu_s` and `redis_cpu_s` are its neighbours'.
    """

    contender: str
    expected: int
    changes: int
    seconds: float
    cpu_s: float | None = None
    error: str = ""
    walsender_cpu_s: float = 0.0
    redis_cpu_s: float = 0.0

    @property
    def failure(self) -> str:
        """Why this reading does not count; empty if it does."""
        if self.error:
            return self.error
        if self.changes != self.expected:
            return f"read {self.changes:,} changes of {self.expected:,}"
        return "" if self.seconds > 0 else "took no time at all"

    @property
    def rate(self) -> float:
        """Changes per second."""
        return self.changes / self.seconds


@dataclass(frozen=True, slots=True)
class Standing:
    """All readings of one contender on one workload: the median of those that count, or the reason why none does."""

    contender: str
    readings: tuple[Reading, ...]

    @property
    def failure(self) -> str:
        return next((reading.failure for reading in self.readings if reading.failure), "")

    @property
    def rate(self) -> float:
        return median(reading.rate for reading in self.readings)

    @property
    def spread(self) -> tuple[float, float]:
        rates = [reading.rate for reading in self.readings]
        return min(rates), max(rates)

    def ratio_to(self, yardstick: "Standing") -> float:
        """The median over repetitions: each is compared with the yardstick's of the same moment of the machine."""
        pairs = zip(self.readings, yardstick.readings, strict=False)
        return median(ours.rate / theirs.rate for ours, theirs in pairs)

    @property
    def cpu_s_per_million(self) -> float | None:
        spent = [reading.cpu_s * 1e6 / reading.changes for reading in self.readings if reading.cpu_s is not None]
        return median(spent) if spent else None

    @property
    def neighbours_cpu_s_per_million(self) -> tuple[float, float]:
        """The walsender's and Redis's."""
        walsender = median(reading.walsender_cpu_s * 1e6 / reading.changes for reading in self.readings)
        return walsender, median(reading.redis_cpu_s * 1e6 / reading.changes for reading in self.readings)


def standings(readings: Sequence[Reading]) -> list[Standing]:
    """One standing for each contender, in the order of their first appearance."""
    names = list(dict.fromkeys(reading.contender for reading in readings))
    return [Standing(name, tuple(r for r in readings if r.contender == name)) for name in names]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of all values do not exceed (nearest rank). Raises ValueError for none."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: what was measured, what we ask of it, and whether that is reached (None: no target)."""

    what: str
    measured: str
    target: str = ""
    reached: bool | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """The shape of the machine, without its name."""

    cores: int
    memory_gib: float
    processor: str
    python: str
    postgres: str
    redis: str


@dataclass(slots=True)
class Findings:
    """Everything one run found."""

    date: str
    machine: Machine
    sizes: dict[str, int]
    workloads: dict[str, list[Standing]] = field(default_factory=dict)
    restores: dict[str, list[Standing]] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
