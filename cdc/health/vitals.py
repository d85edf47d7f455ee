"""The vitals hold what the running service knows of itself: its phase, its source, its positions, and what waits.

The service, its pipeline and the slot watch write them. Heartbeat, health verdict, `/status.json` and `/metrics` read
them. Positions are LSNs as integers, 0 while they are unknown. Times are seconds since 1970, as from `time.time()`.
"""

import enum
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cdc import metrics
from cdc.change import Transaction
from cdc.errors import CdcError

# Marks of the backlog are this far apart in time, and this many at most. More than that make them coarser: a day fits.
_MARK_S = 0.25
_MARKS = 4096


class Phase(enum.StrEnum):
    """The service's activity. Only `streaming` replicates."""

    STARTING = "starting"
    BACKFILLING = "backfilling"
    STANDING_BY = "standing_by"
    STREAMING = "streaming"
    WAITING = "waiting"
    STOPPING = "stopping"


class CacheState(enum.StrEnum):
    """The cache's activity. Only `live` is fresh."""

    OPENING = "opening"
    AWAY = "away"
    WARMING = "warming"
    CATCHING_UP = "catching_up"
    LIVE = "live"


@dataclass(frozen=True, slots=True)
class Interruption:
    """The last error that interrupted the service, in its three parts."""

    kind: str
    message: str
    detail: str
    hint: str
    at: float


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """The source of the changes: the server, the slot and the publication."""

    system_identifier: str
    timeline: int
    database: str
    server_version: str
    slot: str
    publication: str


@dataclass(slots=True)
class Positions:
    """The places that a change passes, as LSNs; 0 while one is unknown.

    `server` is where the server wrote WAL at the slot watch's last look. `received` is the end of what it has sent.
    `archived` and `cached` are how far those two are durable. `acknowledged` is the position reported to the server.
    """

    server: int = 0
    received: int = 0
    archived: int = 0
    acknowledged: int = 0
    cached: int = 0


class ArchiveCounts:
    """This process's writes to the archive, as integers. The archive's own code counts them.

    `seq` is the last segment that was written, None before the first. `retries` counts failed PUTs.
    """

    @property
    def seq(self) -> int | None:
        return int(metrics.archive_seq.value or 0) if self.segments else None

    @property
    def segments(self) -> int:
        return metrics.segments.total

    @property
    def nbytes(self) -> int:
        return metrics.segment_bytes.total

    @property
    def puts(self) -> int:
        return metrics.puts.total

    @property
    def retries(self) -> int:
        return metrics.retries.labels("archive").total

    @property
    def gaps(self) -> int:
        return metrics.gaps.total

    @property
    def forks(self) -> int:
        return metrics.forks.total

    @property
    def open_gap(self) -> bool:
        return bool(metrics.gap_open.value)


class _Marks(deque[tuple[int, float]]):
    """Marks that a sink has not reached: the commit_lsn of a mark's last change, the commit time of its first."""

    def note(self, transaction: Transaction) -> None:
        committed_at = transaction.commit_time_us / 1_000_000
        if self and (len(self) >= _MARKS or committed_at - self[-1][1] < _MARK_S):
            self[-1] = (transaction.commit_lsn, self[-1][1])
        else:
            self.append((transaction.commit_lsn, committed_at))

    def reach(self, lsn: int) -> None:
        while self and self[0][0] < lsn:
            self.popleft()

    def age_s(self, now: float | None) -> float:
        if not self:
            return 0.0
        return max(0.0, (time.time() if now is None else now) - self[0][1])


class Backlog:
    """The age of what was received and is not in a sink yet. It is bounded, so a long backlog is measured coarsely."""

    def __init__(self) -> None:
        self._archive = _Marks()
        self._cache = _Marks()

    def clear(self) -> None:
        """Forget everything: a new connection begins, and the server sends again what was not archived."""
        self._archive.clear()
        self._cache.clear()

    def received(self, transactions: Sequence[Transaction]) -> None:
        """Note the transactions, or pieces of a large one, that one read gave."""
        for marks in (self._archive, self._cache):
            marks.note(transactions[0])
            marks.note(transactions[-1])

    def archived(self, lsn: int) -> None:
        """Note that everything which ends at or before `lsn` is archived."""
        self._archive.reach(lsn)

    def cached(self, lsn: int) -> None:
        """Note that everything which ends at or before `lsn` is in the cache."""
        self._cache.reach(lsn)

    def age_s(self, now: float | None = None) -> float:
        """The age of the oldest change that is not archived, in seconds since its commit; 0 if there is none."""
        return self._archive.age_s(now)

    def cache_age_s(self, now: float | None = None) -> float:
        """The age of the oldest change that is not in the cache, in seconds; 0 if there is none.

        Only this connection's changes count, not those that the cache catches up from the archive.
        """
        return self._cache.age_s(now)


class Now(NamedTuple):
    """One moment by two clocks, in seconds.

    `unix_s` is Unix time, which is comparable with commit times. `steady_s` is the monotonic clock's: a span between
    two of our own moments is taken from it, because the machine's clock can be set while we run.
    """

    unix_s: float
    steady_s: float

    @classmethod
    def take(cls) -> "Now":
        return cls(time.time(), time.monotonic())


@dataclass(slots=True)
class Pulse:
    """The heartbeat's last measurement (`cdc/health/heartbeat.py`), at most a second old while the loop turns.

    - `late_s`: how much later than planned the loop came back.
    - `dead`: the long-lived tasks that have ended, with the error.
    - `waiting_bytes`: the WAL that was received and is not archived.
    - `moved_at`: when the archive last held more of it, or nothing waited.
    - `tried_at`: when the archive was last seen to do anything at all, or nothing waited.

    Both times are the monotonic clock's: a step of the machine's clock is no silence.
    """

    late_s: float = 0.0
    dead: dict[str, str] = field(default_factory=dict)
    waiting_bytes: int = 0
    moved_at: float = field(default_factory=time.monotonic)
    tried_at: float = field(default_factory=time.monotonic)
    open_gap: bool = False


@dataclass(frozen=True, slots=True)
class Barrier:
    """A mark in the WAL, written at `at`; its record ends at `lsn`."""

    lsn: int
    at: float


@dataclass(slots=True)
class Recovery:
    """The barriers' proof (`cdc/monitor/barriers.py`): the archive holds what was committed at `proved_at`."""

    waiting: Barrier | None = None
    proved_at: float | None = None

    def age_s(self, now: float | None = None) -> float | None:
        """The age in seconds of the newest proof, or else of the attempt under way; None if there is neither."""
        since = self.proved_at if self.proved_at is not None or self.waiting is None else self.waiting.at
        return None if since is None else max(0.0, (time.time() if now is None else now) - since)


@dataclass(slots=True)
class Vitals:
    """The vitals of one service.

    `cache_state` is None without a cache. `archived_at` is when the archive last took something. `reported_at` is when
    the server was last told how far we are, by the monotonic clock; None before the first stream.
    """

    started_at: float = field(default_factory=time.time)
    phase: Phase = Phase.STARTING
    since: float = field(default_factory=time.time)
    upstream: SourceFacts | None = None
    interruption: Interruption | None = None
    cache_state: CacheState | None = None
    archived_at: float | None = None
    reported_at: float | None = None
    positions: Positions = field(default_factory=Positions)
    archive: ArchiveCounts = field(default_factory=ArchiveCounts)
    backlog: Backlog = field(default_factory=Backlog)
    recovery: Recovery = field(default_factory=Recovery)
    pulse: Pulse = field(default_factory=Pulse)

    def enter(self, phase: Phase) -> None:
        """Begin a phase, and set `since` to now. `STOPPING` is the last phase: nothing follows it."""
        if phase is not self.phase and self.phase is not Phase.STOPPING:
            self.phase, self.since = phase, time.time()

    def stream(self, upstream: SourceFacts, archived_lsn: int = 0) -> None:
        """Note that a connection to `upstream` streams, and that the archive holds all up to `archived_lsn`.

        An archived position of another upstream says nothing of this one, and is forgotten.
        """
        known = self.positions.archived if upstream == self.upstream else 0
        self.positions.archived = max(known, archived_lsn)
        self.upstream = upstream
        self.archived_at = self.archived_at or time.time()  # our fence, the last step of the start
        self.backlog.clear()
        self.reported_at = time.monotonic()
        self.enter(Phase.STREAMING)

    def archived(self, lsn: int) -> None:
        """Note that the archive is durable up to `lsn`."""
        self.archived_at = time.time()
        self.positions.archived = max(self.positions.archived, lsn)
        self.backlog.archived(lsn)

    def reported(self, received_lsn: int, acknowledged_lsn: int) -> None:
        """Note the positions that the server was told."""
        self.reported_at = time.monotonic()
        self.positions.received, self.positions.acknowledged = received_lsn, acknowledged_lsn

    def interrupted(self, error: CdcError) -> None:
        """Note the error that ended an attempt; another attempt follows."""
        self.interruption = Interruption(type(error).__name__, error.message, error.detail, error.hint, time.time())
        self.enter(Phase.WAITING)
