"""What the running service knows of itself: its phase, whose changes it reads, how old its oldest debt is.

Written by the service and its pipeline, read by the health verdict and the status page. Positions and counts are
metrics (`metrics.py`); here is what no number says. Times are seconds since 1970, as `time.time()` gives them.
"""

import enum
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from cdc.change import Transaction
from cdc.errors import CdcError

# Marks of the backlog are so far apart, and so many at most; beyond that they grow coarser. A day fits.
_MARK_S = 0.25
_MARKS = 4096


class Phase(enum.StrEnum):
    """What the service is doing. Only `streaming` replicates."""

    STARTING = "starting"
    BACKFILLING = "backfilling"
    STANDING_BY = "standing_by"
    STREAMING = "streaming"
    WAITING = "waiting"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Mishap:
    """The last error that interrupted the service, in its three parts."""

    kind: str
    message: str
    detail: str
    hint: str
    at: float


@dataclass(frozen=True, slots=True)
class Upstream:
    """Whose changes are read: the server, the slot and the publication."""

    system_identifier: str
    timeline: int
    database: str
    server_version: str
    slot: str
    publication: str


class Backlog:
    """What was received and is not archived, by the time of its commit; bounded, so coarse where it is long."""

    def __init__(self) -> None:
        self._marks: deque[tuple[int, float]] = deque()  # commit_lsn of the last, commit time of the first

    def clear(self) -> None:
        """A new connection begins: what the last one received and did not archive will be sent again."""
        self._marks.clear()

    def received(self, transactions: Sequence[Transaction]) -> None:
        """Note what one read gave: transactions, or pieces of a large one."""
        self._note(transactions[0])
        self._note(transactions[-1])

    def archived(self, lsn: int) -> None:
        """Note that everything which ends at or before `lsn` is archived."""
        while self._marks and self._marks[0][0] < lsn:
            self._marks.popleft()

    def age_s(self, now: float | None = None) -> float:
        """How long ago the oldest change was committed that is not archived; 0 if there is none."""
        if not self._marks:
            return 0.0
        return max(0.0, (time.time() if now is None else now) - self._marks[0][1])

    def _note(self, transaction: Transaction) -> None:
        committed_at, marks = transaction.commit_time_us / 1_000_000, self._marks
        if marks and (len(marks) >= _MARKS or committed_at - marks[-1][1] < _MARK_S):
            marks[-1] = (transaction.commit_lsn, marks[-1][1])
        else:
            marks.append((transaction.commit_lsn, committed_at))


@dataclass(slots=True)
class Vitals:
    """One service's. `cache_state` is None without a cache; `archived_at` when the archive last took something."""

    started_at: float = field(default_factory=time.time)
    phase: Phase = Phase.STARTING
    since: float = field(default_factory=time.time)
    upstream: Upstream | None = None
    mishap: Mishap | None = None
    cache_state: str | None = None
    archived_at: float | None = None
    backlog: Backlog = field(default_factory=Backlog)

    def enter(self, phase: Phase) -> None:
        """The service now does this; `since` is when it began to."""
        if phase is not self.phase:
            self.phase, self.since = phase, time.time()

    def stream(self, upstream: Upstream) -> None:
        """A replication connection of this upstream is at work."""
        self.upstream = upstream
        self.backlog.clear()
        self.enter(Phase.STREAMING)

    def archived(self, lsn: int) -> None:
        """The archive is durable up to `lsn`."""
        self.archived_at = time.time()
        self.backlog.archived(lsn)

    def interrupted(self, error: CdcError) -> None:
        """An error ended an attempt; another follows."""
        self.mishap = Mishap(type(error).__name__, error.message, error.detail, error.hint, time.time())
        self.enter(Phase.WAITING)
