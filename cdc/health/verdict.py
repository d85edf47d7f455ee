"""Judges the vitals (pure): is the service alive, is it ready, and why not. An orchestrator or a person acts on that.

**Alive** means that a restart could not help. The loop turns, every long-lived task lives, and the archive tries to
write while something waits for it. A bucket that is away does not make the service dead. The tasks of replication are
watched by their own groups: one that dies ends its session or the service.

**Ready** means that the service is alive and replicates. The archive moves and is no further behind than its budget,
the server is told so, and no gap waits for its snapshot. A service that is alive and does not replicate is not ready.
A fenced service has ended (exit 75), so it says nothing at all.

**Warnings** name what will hurt, or what hurts others. They do not make the service unready.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cdc.config import Settings
from cdc.finding import Finding
from cdc.health.vitals import CacheState, Now, Phase, Vitals
from cdc.words import duration, size

# A loop later than this misses its deadlines: pings, watchdog, status updates.
LOOP_LATE_S = 5.0
# Allowed between the announcement of a new session and its first status update; a loaded machine needs its time.
_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Budget:
    """The seconds that each thing may take until it counts as wrong.

    - `archive_lag_s`: the age of the oldest change that is not archived.
    - `stall_s`: the archive does not move while WAL waits. Idle WAL is covered once in `archive.coverage_interval_s`.
    - `silence_s`: no status update was sent.
    - `wedge_s`: no write was tried while something waits. One PUT and the pause after it are over within
      `archive.put_timeout_s` and 15 s.
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
    """The verdict: the service is alive without a finding in `not_alive`, and ready without any in both."""

    not_alive: tuple[Finding, ...] = ()
    not_ready: tuple[Finding, ...] = ()
    warnings: tuple[Finding, ...] = ()

    @property
    def alive(self) -> bool:
        return not self.not_alive

    @property
    def reasons(self) -> tuple[Finding, ...]:
        """The reasons why it is not ready: those why it is not alive, then the others."""
        return self.not_alive + self.not_ready

    @property
    def ready(self) -> bool:
        return not self.reasons


def judge(
    vitals: Vitals, now: Now, budget: Budget, *, reasons: Iterable[Finding] = (), warnings: Iterable[Finding] = ()
) -> Health:
    """Judge the vitals at `now`. `reasons` and `warnings` of the slot watch are added to our own."""
    return Health(
        tuple(_not_alive(vitals, now, budget)),
        (*_not_ready(vitals, now, budget), *reasons),
        (*_warnings(vitals), *warnings),
    )


def _not_alive(vitals: Vitals, now: Now, budget: Budget) -> Iterator[Finding]:
    pulse = vitals.pulse
    if pulse.late_s > LOOP_LATE_S:
        yield Finding("loop", f"the event loop was held for {duration(pulse.late_s)}", "journalctl -u waltier -n 50")
    for name, error in pulse.dead.items():
        yield Finding("task", f"the task {name} has died of {error}", "systemctl restart waltier")
    untried_s = now.steady_s - pulse.tried_at
    if vitals.phase is Phase.STREAMING and pulse.waiting_bytes and untried_s > budget.wedge_s:
        yield Finding("archive", f"wedged: nothing was tried for {duration(untried_s)}", "systemctl restart waltier")


def _not_ready(vitals: Vitals, now: Now, budget: Budget) -> Iterator[Finding]:
    if vitals.phase is not Phase.STREAMING:
        yield _not_streaming(vitals, now)
    elif vitals.reported_at is not None and now.steady_s - vitals.reported_at > budget.silence_s:
        yield Finding(
            "postgres", f"was not told for {duration(now.steady_s - vitals.reported_at)} how far we are", "cdc slots"
        )
    age_s = vitals.backlog.age_s(now.unix_s)
    if age_s > budget.archive_lag_s:
        yield Finding("archive", f"the oldest change that is not archived is {duration(age_s)} old", "cdc doctor")
    elif vitals.phase is Phase.STREAMING:
        yield from _stalled(vitals, now, budget)
    if vitals.pulse.open_gap:
        yield Finding("archive", "a gap waits for its snapshot", "cdc status")


def _stalled(vitals: Vitals, now: Now, budget: Budget) -> Iterator[Finding]:
    pulse = vitals.pulse
    stalled_s = now.steady_s - pulse.moved_at
    if pulse.waiting_bytes and stalled_s > budget.stall_s:
        message = f"has taken nothing for {duration(stalled_s)}, and {size(pulse.waiting_bytes)} of WAL wait for it"
        yield Finding("archive", message, "cdc doctor")


def _not_streaming(vitals: Vitals, now: Now) -> Finding:
    since = f"for {duration(max(0.0, now.unix_s - vitals.since))}"
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
