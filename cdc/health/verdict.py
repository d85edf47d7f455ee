"""Alive, ready, and why not (pure): from the vitals to a verdict that an orchestrator or a person can act on.

**Alive** means that starting the service again could not help: the loop turns, every task that was to last lives, and
the archive, while it owes something, at least tries. A bucket that is away is no reason to be dead. The tasks of
replication itself are looked at by their groups: one that dies ends its session or the service.

**Ready** means that it replicates, that the archive is not further behind than its budget and moves, that the server is
told so, that no gap waits for its snapshot, and that it is alive. A service that is alive and does not replicate is
not ready. A fenced one has ended (exit 75), so it says nothing at all.

**Warnings** are what will hurt, or hurts others: they do not make the service unready.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cdc.config import Settings
from cdc.health.vitals import Phase, Vitals

# Later than this, and whatever has a deadline on this loop misses it: pings, watchdog, status updates.
LOOP_LATE_S = 5.0
# Between the announcement of a new session and its first status update; a loaded machine needs its time.
_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Reason:
    """Something that is not as it should be: who it concerns, what it is, and a line to paste."""

    subject: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        hint = f"; hint: {self.hint}" if self.hint else ""
        return " ".join(f"{self.subject}: {self.message}{hint}".split())


@dataclass(frozen=True, slots=True)
class Budget:
    """How long things may take until they count as wrong.

    `archive_lag_s`: age of the oldest change not archived. `stall_s`: the archive moves not at all while WAL waits;
    idle WAL is covered once in `archive.coverage_interval_s`. `silence_s`: no status update. `wedge_s`: no attempt to
    write while something waits, where one PUT and the pause after it are over within `archive.put_timeout_s` and 15 s.
    """

    archive_lag_s: float
    stall_s: float
    silence_s: float
    wedge_s: float

    @classmethod
    def of(cls, settings: Settings) -> "Budget":
        archive = settings.archive
        return cls(
            archive_lag_s=settings.http.archive_lag_s,
            stall_s=max(settings.http.archive_lag_s, 3 * archive.coverage_interval_s),
            silence_s=_GRACE_S + 2 * settings.postgres.status_interval_s,
            wedge_s=2 * (archive.put_timeout_s + archive.coverage_interval_s) + 30.0,
        )


@dataclass(frozen=True, slots=True)
class Health:
    """`alive` and `ready` are the absence of reasons."""

    ailments: tuple[Reason, ...] = ()
    obstacles: tuple[Reason, ...] = ()
    warnings: tuple[Reason, ...] = ()

    @property
    def alive(self) -> bool:
        return not self.ailments

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why it is not ready: what ails it, and what keeps it from its work."""
        return self.ailments + self.obstacles

    @property
    def ready(self) -> bool:
        return not self.reasons


def judge(
    vitals: Vitals, now: float, budget: Budget, *, reasons: Iterable[Reason] = (), warnings: Iterable[Reason] = ()
) -> Health:
    """The verdict. `reasons` and `warnings` are the slot watch's, which go with our own."""
    return Health(
        tuple(_ailments(vitals, now, budget)),
        (*_obstacles(vitals, now, budget), *reasons),
        (*_warnings(vitals), *warnings),
    )


def _ailments(vitals: Vitals, now: float, budget: Budget) -> Iterator[Reason]:
    pulse = vitals.pulse
    if pulse.late_s > LOOP_LATE_S:
        yield Reason("loop", f"the event loop was held for {pulse.late_s:.0f} s", "journalctl -u waltier -n 50")
    for name, error in pulse.dead.items():
        yield Reason("task", f"the task {name} has died of {error}", "systemctl restart waltier")
    untried_s = now - pulse.tried_at
    if vitals.phase is Phase.STREAMING and pulse.waiting_bytes and untried_s > budget.wedge_s:
        yield Reason("archive", f"wedged: nothing was tried for {untried_s:.0f} s", "systemctl restart waltier")


def _obstacles(vitals: Vitals, now: float, budget: Budget) -> Iterator[Reason]:
    if vitals.phase is not Phase.STREAMING:
        yield _not_streaming(vitals, now)
    elif vitals.reported_at is not None and now - vitals.reported_at > budget.silence_s:
        yield Reason("postgres", f"was not told for {now - vitals.reported_at:.0f} s how far we are", "cdc slots")
    age_s = vitals.backlog.age_s(now)
    if age_s > budget.archive_lag_s:
        yield Reason("archive", f"the oldest change that is not archived is {age_s:.0f} s old", "cdc doctor")
    elif vitals.phase is Phase.STREAMING:
        yield from _stalled(vitals, now, budget)
    if vitals.pulse.open_gap:
        yield Reason("archive", "a gap waits for its snapshot", "cdc status")


def _stalled(vitals: Vitals, now: float, budget: Budget) -> Iterator[Reason]:
    pulse = vitals.pulse
    stalled_s = now - pulse.moved_at
    if pulse.waiting_bytes and stalled_s > budget.stall_s:
        message = f"has taken nothing for {stalled_s:.0f} s, and {pulse.waiting_bytes} bytes of WAL wait for it"
        yield Reason("archive", message, "cdc doctor")


def _not_streaming(vitals: Vitals, now: float) -> Reason:
    since = f"for {max(0.0, now - vitals.since):.0f} s"
    mishap = vitals.mishap
    match vitals.phase:
        case Phase.WAITING if mishap is not None:
            return Reason("service", f"interrupted {since}: {mishap.message}", mishap.hint or "cdc doctor")
        case Phase.STANDING_BY:
            return Reason("service", f"standing by {since}: another service has the slot", "cdc slots")
        case Phase.BACKFILLING:
            return Reason("service", f"filling the archive with the rows that exist {since}", "cdc status")
        case phase:
            return Reason("service", f"{phase.value.replace('_', ' ')} {since}", "cdc doctor")


def _warnings(vitals: Vitals) -> Iterator[Reason]:
    match vitals.cache_state:
        case "away":
            yield Reason("cache", "away: readers get what is old, or nothing", "cdc doctor")
        case "warming" | "catching_up" as state:
            yield Reason("cache", f"{state.replace('_', ' ')}: readers get what is old, or nothing", "cdc status")
        case _:
            return
