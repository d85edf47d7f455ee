"""The verdict, for every state that a service can be in: pure, so each case is a line."""

import asyncio
import time
from collections.abc import Callable

import pytest
from pydantic import SecretStr

from cdc import metrics
from cdc.change import Transaction
from cdc.config import ArchiveSettings, PostgresSettings, Settings
from cdc.errors import Unavailable
from cdc.finding import Finding
from cdc.health.heartbeat import Heartbeat
from cdc.health.verdict import Budget, Health, judge
from cdc.health.vitals import CacheState, Now, Phase, SourceFacts, Vitals
from cdc.service.companions import TaskKeeper

SETTINGS = Settings(
    postgres=PostgresSettings(dsn=SecretStr("postgresql://localhost/chat")), archive=ArchiveSettings(url="file:///a")
)
BUDGET = Budget.of(SETTINGS)
UPSTREAM = SourceFacts("1", 1, "chat", "18.0", "cdc", "cdc")


def streaming() -> Vitals:
    vitals = Vitals()
    vitals.stream(UPSTREAM)
    return vitals


def verdict(vitals: Vitals, after_s: float = 0.0, clock_step_s: float = 0.0) -> Health:
    now = Now.take()
    return judge(vitals, Now(now.unix_s + after_s + clock_step_s, now.steady_s + after_s), BUDGET)


def committed(ago_s: float, lsn: int = 100) -> Transaction:
    return Transaction(1, lsn, int((time.time() - ago_s) * 1_000_000), [])


def test_one_that_streams_and_owes_nothing_is_alive_and_ready() -> None:
    found = verdict(streaming())
    assert (found.alive, found.ready, found.reasons, found.warnings) == (True, True, (), ())


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.STREAMING])
def test_whoever_does_not_stream_is_alive_and_not_ready_and_says_why_with_a_hint(phase: Phase) -> None:
    vitals = Vitals()
    vitals.enter(phase)
    found = verdict(vitals, 7)
    assert (found.alive, found.ready) == (True, False)
    (reason,) = found.reasons
    assert "for 7 s" in reason.message
    assert reason.hint


def test_a_start_counts_as_the_last_put_for_its_fence_was_one() -> None:
    assert Vitals().archived_at is None
    assert streaming().archived_at is not None


def test_one_that_stops_does_nothing_else_any_more() -> None:
    vitals = Vitals()
    vitals.enter(Phase.STOPPING)
    vitals.stream(UPSTREAM)
    vitals.interrupted(Unavailable("too late"))
    assert vitals.phase is Phase.STOPPING


def test_an_interruption_is_told_with_its_own_hint() -> None:
    vitals = Vitals()
    vitals.interrupted(Unavailable("the server is away", hint="pg_ctl start"))
    assert str(verdict(vitals, 3).reasons[0]) == "service: interrupted for 3 s: the server is away; hint: pg_ctl start"


def test_a_reason_is_one_line_whatever_it_holds() -> None:
    assert str(Finding("slot", "b\nc", "d\r\n e")) == "slot: b c; hint: d e"


def test_the_age_of_the_oldest_change_counts_and_only_until_it_is_archived() -> None:
    vitals = streaming()
    vitals.backlog.received([committed(70)])
    assert "70 s old" in verdict(vitals).reasons[0].message
    vitals.archived(101)
    assert verdict(vitals).ready


def owing(bytes_waiting: int = 1) -> Vitals:
    vitals = streaming()
    vitals.pulse.waiting_bytes = bytes_waiting
    return vitals


def test_an_archive_that_does_not_move_while_wal_waits_is_not_ready() -> None:
    vitals = owing()
    for after_s, ready in ((BUDGET.stall_s - 1, True), (BUDGET.stall_s + 1, False)):
        vitals.reported_at = time.monotonic() + after_s
        assert verdict(vitals, after_s).ready is ready
    assert verdict(streaming(), 0).ready


def test_one_that_owes_nothing_may_rest_for_ever() -> None:
    vitals = owing(0)
    vitals.reported_at = time.monotonic() + 100_000
    assert verdict(vitals, 100_000).ready


def test_an_archive_that_does_not_even_try_is_not_alive_but_a_bucket_that_is_away_kills_nobody() -> None:
    vitals = owing()
    assert not verdict(vitals, BUDGET.wedge_s + 1).alive
    vitals.pulse.tried_at = time.monotonic() + BUDGET.wedge_s
    assert verdict(vitals, BUDGET.wedge_s + 1).alive
    assert not verdict(vitals, BUDGET.wedge_s + 1).ready


@pytest.mark.parametrize("days", [400, -400])
def test_a_clock_that_is_set_while_wal_waits_is_no_silence_and_no_wedge(days: int) -> None:
    assert verdict(owing(), 1, clock_step_s=days * 86_400).ready


def test_a_server_that_is_not_told_how_far_we_are_is_a_reason() -> None:
    vitals = streaming()
    assert "was not told for" in verdict(vitals, BUDGET.silence_s + 1).reasons[0].message
    vitals.reported(1, 1)
    assert verdict(vitals).ready


@pytest.mark.parametrize(
    "ail", [lambda v: setattr(v.pulse, "late_s", 6.0), lambda v: v.pulse.dead.update(history="KeyError")]
)
def test_a_held_loop_or_a_dead_task_is_neither_alive_nor_ready(ail: Callable[[Vitals], None]) -> None:
    vitals = streaming()
    ail(vitals)
    found = verdict(vitals)
    assert (found.alive, found.ready) == (False, False)
    assert found.reasons[0].hint


@pytest.mark.parametrize("state", [CacheState.AWAY, CacheState.WARMING, CacheState.CATCHING_UP])
def test_a_cache_that_is_behind_is_a_warning(state: CacheState) -> None:
    vitals = streaming()
    vitals.cache_state = state
    found = verdict(vitals)
    assert (found.ready, [warning.subject for warning in found.warnings]) == (True, ["cache"])


def test_warnings_of_others_go_with_our_own_and_leave_it_ready() -> None:
    notice = Finding("slot", "nobody reads slot 'theirs'", "cdc slots")
    assert judge(streaming(), Now.take(), BUDGET, warnings=[notice]).ready
    assert judge(streaming(), Now.take(), BUDGET, warnings=[notice]).warnings == (notice,)


def test_our_slot_on_the_brink_is_a_reason() -> None:
    notice = Finding("slot", "slot cdc is about to be lost", "ALTER SYSTEM")
    assert judge(streaming(), Now.take(), BUDGET, reasons=[notice]).reasons == (notice,)


# the pulse ------------------------------------------------------------------------------------------------------------


def beat(heart: Heartbeat, vitals: Vitals, now: float, *, received: int, archived: int) -> None:
    vitals.positions.received, vitals.positions.archived = received, archived
    heart.feel(now)


def test_the_pulse_tells_an_archive_that_moves_from_one_that_tries_and_one_that_does_nothing() -> None:
    vitals = streaming()
    heart, pulse = Heartbeat(vitals), vitals.pulse
    beat(heart, vitals, 10, received=100, archived=50)
    beat(heart, vitals, 20, received=200, archived=50)
    assert (pulse.waiting_bytes, pulse.moved_at, pulse.tried_at) == (150, 10, 10)
    metrics.puts.inc()
    beat(heart, vitals, 30, received=200, archived=50)
    assert (pulse.moved_at, pulse.tried_at) == (10, 30)
    metrics.segments.labels("part").inc()  # of a large transaction
    beat(heart, vitals, 40, received=200, archived=50)
    assert (pulse.moved_at, pulse.tried_at) == (40, 40)
    metrics.retries.labels("cache").inc()
    beat(heart, vitals, 45, received=200, archived=50)
    assert (pulse.moved_at, pulse.tried_at) == (40, 40)
    metrics.retries.labels("archive").inc()
    beat(heart, vitals, 47, received=200, archived=50)
    assert (pulse.moved_at, pulse.tried_at) == (40, 47)
    beat(heart, vitals, 50, received=200, archived=200)
    beat(heart, vitals, 60, received=200, archived=200)
    assert (pulse.waiting_bytes, pulse.moved_at) == (0, 60)


def test_what_a_service_received_before_it_was_interrupted_waits_for_nothing() -> None:
    vitals = streaming()
    vitals.enter(Phase.WAITING)
    beat(Heartbeat(vitals), vitals, 10, received=200, archived=50)
    assert vitals.pulse.waiting_bytes == 0


async def test_a_loop_that_is_held_is_felt_as_late() -> None:
    vitals = Vitals()
    async with TaskKeeper(vitals) as keeper:
        keeper.start("heartbeat", Heartbeat(vitals).run())
        await asyncio.sleep(0)
        time.sleep(1.5)  # what nothing on this loop may do
        await asyncio.sleep(0.01)
        assert vitals.pulse.late_s > 0.3
        async with asyncio.timeout(30):
            while vitals.pulse.late_s > 0.3:  # it beats on, and on a busy machine not at the first beat in time
                await asyncio.sleep(0.1)


async def test_a_companion_that_dies_is_named_and_the_service_no_longer_alive() -> None:
    async def die() -> None:
        raise KeyError("a bug")

    async def end() -> None:
        return

    vitals = streaming()
    async with TaskKeeper(vitals) as keeper:
        keeper.start("history", die())
        keeper.start("ping", end())
        keeper.start("heartbeat", Heartbeat(vitals).run())
        await asyncio.sleep(0.05)
        found = verdict(vitals)
    assert [finding.message for finding in found.not_alive] == [
        "the task history has died of KeyError",
        "the task ping has died of nothing",
    ]


def test_the_cache_has_an_age_of_its_own() -> None:
    vitals = streaming()
    vitals.backlog.received([committed(30, lsn=100)])
    vitals.backlog.archived(101)
    assert (vitals.backlog.age_s(), round(vitals.backlog.cache_age_s())) == (0, 30)
    vitals.backlog.cached(101)
    assert vitals.backlog.cache_age_s() == 0
