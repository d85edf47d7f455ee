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
from cdc.finding import Finding
from cdc.health.vitals import CacheState, Phase, Vitals
from cdc.words import duration, size

# Later than this, and whatever has a deadline on this loop misses it: pings, watchdog, status updates.
LOOP_LATE_S = 5.0
# Between the announcement of a new session and its first status update; a loaded machine needs its time.
_GRACE_S = 5.0


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

    not_alive: tuple[Finding, ...] = ()
    not_ready: tuple[Finding, ...] = ()
    warnings: tuple[Finding, ...] = ()

    @property
    def alive(self) -> bool:
        return not self.not_alive

    @property
    def reasons(self) -> tuple[Finding, ...]:
        """Why it is not ready: what ails it, and what keeps it from its work."""
        return self.not_alive + self.not_ready

    @property
    def ready(self) -> bool:
        return not self.reasons


def judge(
    vitals: Vitals, now: float, budget: Budget, *, reasons: Iterable[Finding] = (), warnings: Iterable[Finding] = ()
) -> Health:
    """The verdict. `reasons` and `warnings` are the slot watch's, which go with our own."""
    return Health(
        tuple(_not_alive(vitals, now, budget)),
        (*_not_ready(vitals, now, budget), *reasons),
        (*_warnings(vitals), *warnings),
    )


def _not_alive(vitals: Vitals, now: float, budget: Budget) -> Iterator[Finding]:
    pulse = vitals.pulse
    if pulse.late_s > LOOP_LATE_S:
        yield Finding("loop", f"the event loop was held for {duration(pulse.late_s)}", "journalctl -u waltier -n 50")
    for name, error in pulse.dead.items():
        yield Finding("task", f"the task {name} has died of {error}", "systemctl restart waltier")
    untried_s = now - pulse.tried_at
    if vitals.phase is Phase.STREAMING and pulse.waiting_bytes and untried_s > budget.wedge_s:
        yield Finding("archive", f"wedged: nothing was tried for {duration(untried_s)}", "systemctl restart waltier")


def _not_ready(vitals: Vitals, now: float, budget: Budget) -> Iterator[Finding]:
    if vitals.phase is not Phase.STREAMING:
        yield _not_streaming(vitals, now)
    elif vitals.reported_at is not None and now - vitals.reported_at > budget.silence_s:
        yield Finding("postgres", f"was not told for {duration(now - vitals.reported_at)} how far we are", "cdc slots")
    age_s = vitals.backlog.age_s(now)
    if age_s > budget.archive_lag_s:
        yield Finding("archive", f"the oldest change that is not archived is {duration(age_s)} old", "cdc doctor")
    elif vitals.phase is Phase.STREAMING:
        yield from _stalled(vitals, now, budget)
    if vitals.pulse.open_gap:
        yield Finding("archive", "a gap waits for its snapshot", "cdc status")


def _stalled(vitals: Vitals, now: float, budget: Budget) -> Iterator[Finding]:
    pulse = vitals.pulse
    stalled_s = now - pulse.moved_at
    if pulse.waiting_bytes and stalled_s > budget.stall_s:
        message = f"has taken nothing for {duration(stalled_s)}, and {size(pulse.waiting_bytes)} of WAL wait for it"
        yield Finding("archive", message, "cdc doctor")


def _not_streaming(vitals: Vitals, now: float) -> Finding:
    since = f"for {duration(max(0.0, now - vitals.since))}"
    interruption = vitals.interruption
    match vitals.phase:
        case Phase.WAITING if interruption is not None:
            return Finding("service", f"interrupted {since}: {interruption.message}", interruption.hint or "cdc doctor")
        case Phase.STANDING_BY:
            return Finding("service", f"standing by {since}: another service has the slot", "cdc slots")
        case Phase.BACKFILLING:
            return Finding("service", f"filling the archive with the rows that exist {since}", "cdc status")
        case phase:
            return Finding("service", f"{phase.value.replace('_', ' ')} {since}", "cdc doctor")


def _warnings(vitals: Vitals) -> Iterator[Finding]:
    match vitals.cache_state:
        case CacheState.AWAY:
            yield Finding("cache", "away: readers get what is old, or nothing", "cdc doctor")
        case CacheState.WARMING | CacheState.CATCHING_UP as state:
            yield Finding(
                "cache", f"{state.value.replace('_', ' ')}: readers get what is old, or nothing", "cdc status"
            )
        case _:
            return
