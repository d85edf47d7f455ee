"""Alive, ready, and why not (pure): from the vitals to a verdict that an orchestrator or a person can act on.

Alive means that the loop turns and no task has died; the service ends when one does, so whoever gets an answer at all
talks to one that lives. Ready means that it replicates, that the archive is not further behind than its budget, and
that nothing waits for a person. A service that is alive and does not replicate is not ready.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from cdc.vitals import Phase, Vitals


@dataclass(frozen=True, slots=True)
class Reason:
    """Why the service is not ready: who it concerns, what it is, and a line to paste."""

    subject: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """`ready` is the absence of reasons."""

    reasons: tuple[Reason, ...] = ()

    @property
    def ready(self) -> bool:
        return not self.reasons


def judge(vitals: Vitals, now: float, *, archive_lag_s: float) -> Health:
    """Everything that keeps the service from being ready."""
    return Health(tuple(_reasons(vitals, now, archive_lag_s)))


def _reasons(vitals: Vitals, now: float, archive_lag_s: float) -> Iterator[Reason]:
    if vitals.phase is not Phase.STREAMING:
        yield _not_streaming(vitals, now)
    age_s = vitals.backlog.age_s(now)
    if age_s > archive_lag_s:
        yield Reason("archive", f"the oldest change that is not archived is {age_s:.0f} s old", "cdc status")


def _not_streaming(vitals: Vitals, now: float) -> Reason:
    since = f"for {max(0.0, now - vitals.since):.0f} s"
    mishap = vitals.mishap
    if vitals.phase is Phase.WAITING and mishap is not None:
        return Reason("service", f"interrupted {since}: {mishap.message}", mishap.hint)
    words = {
        Phase.STARTING: "starting",
        Phase.BACKFILLING: "filling the archive with the rows that exist",
        Phase.STANDING_BY: "standing by: another service has the slot",
        Phase.STOPPING: "stopping",
        Phase.WAITING: "waiting",
    }
    return Reason("service", f"{words.get(vitals.phase, vitals.phase.value)} {since}")
