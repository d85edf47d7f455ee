"""The service is killed at each point that `cdc/crash.py` names, started again, and the checker finds nothing.

A scenario says what must happen for a point to be passed, the first time and again. The process must have died by its
own hand, there: a point that is not reached fails its test, and so does a point without a scenario.
`make test` runs a handful, `make faults` as many as fit into two fifths of CDC_FAULTS_SECONDS (by default: all), drawn
by CDC_FAULTS_SEED.
"""

import contextlib
import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import psycopg
import pytest
import redis

from cdc.crash import STORIES, VARIABLE, CrashPoint
from cdc.embedded import PostgresServer
from tests.conftest import MakePostgres
from tests.faults.checker import TABLES, acknowledgement_sampler, cache_sampler, check
from tests.faults.objects import read_directory, tail_of
from tests.faults.restore_points import digests
from tests.faults.witness import Witness
from tests.faults.workload import Workload
from tests.support.cdc_process import PATIENCE_S, Service, install, query, run_cdc
from tests.support.s3 import S3Server
from tests.support.servers import PostgresAddress, fresh_database

KILLED = -9

BUDGET_S = float(os.environ.get("CDC_FAULTS_SECONDS", "600"))
SEED = int(os.environ.get("CDC_FAULTS_SEED", str(random.randrange(1_000_000))))
# Of the budget; and about what a case takes.
SHARE, CASE_S = 0.4, 3.5


@dataclass
class Stage:
    """What one scenario plays on. The `victim` dies at the point, and another service goes on in its place."""

    dsn: str
    redis_url: str
    directory: Path
    running: ExitStack
    server: PostgresServer | None = None
    s3: S3Server | None = None
    options: dict[str, Any] = field(default_factory=dict)
    _victim: Service | None = None
    holder: Service | None = None
    _came: int = 0

    def service(self, name: str = "service", **environment: str) -> Service:
        options = dict(self.options)
        if self.s3 is not None:
            options["archive"] = {"endpoint_url": self.s3.endpoint_url, **options.get("archive", {})}
            environment |= self.s3.environment
        service = Service(
            self.directory,
            dsn=self.dsn.replace("postgres@", "cdc_replicator@"),
            archive_url="s3://archive/crash" if self.s3 else (self.directory / "archive").as_uri(),
            cache_url=self.redis_url,
            environment=environment,
            name=name,
            **options,
        )
        self.running.callback(service.__exit__, None, None, None)
        return service

    @property
    def victim(self) -> Service:
        assert self._victim is not None
        return self._victim

    def start_victim(self, point: str, nth: int) -> Service:
        self._victim = self.service(**{VARIABLE: f"{point}:{nth}"}).start()
        return self._victim

    def objects(self) -> dict[str, bytes]:
        return self.s3.objects() if self.s3 else read_directory((self.directory / "archive").as_uri())

    def came_to(self, event: str) -> bool:
        """Whether the victim has logged it once more since this was last true."""
        if len(self.victim.events(event)) <= self._came:
            return False
        self._came += 1
        return True


Act = Callable[[Stage], None]


def nothing(_: Stage) -> None:
    pass


@dataclass(frozen=True)
class Scenario:
    """What brings a service to these points: `before` it starts, and again and again `while_it_runs`."""

    points: tuple[CrashPoint, ...]
    passings: tuple[int, ...] = (1, 2)
    before: Act = nothing
    while_it_runs: Act = nothing
    afterwards: Act = nothing
    load: bool = True
    on_s3: bool = False
    own_server: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def interrupt(stage: Stage) -> None:
    """End all its connections whenever it streams: it begins its start again."""
    if stage.came_to("streaming"):
        end_connections(stage)


def interrupt_the_backfill(stage: Stage) -> None:
    if stage.came_to("backfill_started"):
        end_connections(stage)


def end_connections(stage: Stage) -> None:
    query(stage.dsn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                     " WHERE usename = 'cdc_replicator' AND datname = current_database()")  # fmt: skip


def hold_base_chunks(stage: Stage) -> None:
    write_rows(stage)
    assert stage.s3 is not None
    stage.s3.delay(before_s=0.5, key_contains="base/")


def write_rows(stage: Stage) -> None:
    query(stage.dsn, "INSERT INTO turns (domain, channel, session_hash, role, content)"
                     " SELECT 'd', 'c', 's' || n % 5, 'user', 'row ' || n FROM generate_series(1, 99) n")  # fmt: skip
    query(stage.dsn, "INSERT INTO outbox (event_type, idempotency_key, payload)"
                     " SELECT 'e', gen_random_uuid(), '{}' FROM generate_series(1, 100)")  # fmt: skip


def lose_slot(stage: Stage) -> None:
    """Drop the slot of a service that streams; each time that it streams again."""
    if not stage.came_to("streaming"):
        return
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        try:
            query(stage.dsn, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
                             " WHERE slot_name = 'cdc' AND active")  # fmt: skip
            query(stage.dsn, "SELECT pg_drop_replication_slot('cdc')")
        except psycopg.errors.ObjectInUse:
            continue
        except psycopg.errors.UndefinedObject:
            return


def promote(stage: Stage) -> None:
    """Restart the server as a standby of nobody, and promote it: the same rows and slots on a new timeline."""
    if stage.server is None or not stage.came_to("streaming"):
        return
    write_rows(stage)
    stage.server.stop()
    (stage.server.data_dir / "standby.signal").touch()
    stage.server.start()
    query(stage.dsn, "SELECT pg_promote()")
    write_rows(stage)


def hold_the_slot(stage: Stage) -> None:
    stage.holder = stage.service("holder").start()
    stage.holder.wait_until_caught_up(stage.dsn)


def release_the_slot(stage: Stage) -> None:
    assert stage.holder is not None
    assert stage.holder.stop() == 0


def slow_bucket(stage: Stage) -> None:
    assert stage.s3 is not None
    stage.s3.delay(before_s=0.6, key_contains="log/")


def slow_answers(stage: Stage) -> None:
    assert stage.s3 is not None
    stage.s3.delay(after_s=0.6, key_contains="log/")


def write_unpublished(stage: Stage) -> None:
    query(stage.dsn, "CREATE TABLE IF NOT EXISTS unpublished (n int)")
    query(stage.dsn, "INSERT INTO unpublished VALUES (1)")
    time.sleep(0.2)


def forget_the_checkpoint(stage: Stage) -> None:
    if stage.came_to("warm_up_finished"):
        with redis.Redis.from_url(stage.redis_url) as client:
            client.delete("cdc:meta")


def pause_the_cache(stage: Stage) -> None:
    """For longer than the feed has patience with a full queue; then let it catch up."""
    if stage.victim.events("streaming"):
        with redis.Redis.from_url(stage.redis_url) as client:
            client.client_pause(1500)
        time.sleep(2)


def terminate_under_load(stage: Stage) -> None:
    if stage.came_to("streaming"):
        slow_bucket(stage)
        time.sleep(0.8)
        stage.victim.process.terminate()


REPAIRS = {"archive": {"on_gap": "resnapshot"}}
SMALL = {"archive": {"segment_bytes": 64 * 1024}, "cache": {"batch_rows": 50}}

SCENARIOS: Sequence[Scenario] = (
    Scenario(("bucket_probed",)),
    Scenario(("server_examined", "slot_held", "fence_unwritten", "fence_written"), while_it_runs=interrupt),
    Scenario(("archive_begun",), before=hold_base_chunks, while_it_runs=interrupt_the_backfill, on_s3=True),
    Scenario(
        ("backfill_slot_created", "snapshot_unwritten", "snapshot_written"),
        before=write_rows,
        while_it_runs=lose_slot,
        options=REPAIRS,
    ),
    Scenario(("base_chunk_written",), (1, 2, 3), before=write_rows, while_it_runs=lose_slot, options=REPAIRS),
    Scenario(("standing_by",), before=hold_the_slot, afterwards=release_the_slot),
    Scenario(("transactions_queued", "status_sent", "script_unsent", "script_answered"), (1, 8)),
    Scenario(("segment_put_unsent", "segment_put_answered"), (1, 4)),
    Scenario(("segment_put_in_flight",), (1, 4), before=slow_bucket, on_s3=True),
    Scenario(("segment_put_in_flight",), (2,), before=slow_answers, on_s3=True),
    Scenario(("part_written", "cache_part_sent"), (1, 3), options=SMALL),
    Scenario(
        ("coverage_written",),
        while_it_runs=write_unpublished,
        load=False,
        options={"archive": {"coverage_interval_s": 1}},
    ),
    Scenario(
        ("warm_up_begun", "warm_up_filling"), before=write_rows, while_it_runs=forget_the_checkpoint, options=SMALL
    ),
    Scenario(("catch_up_applied",), while_it_runs=pause_the_cache, options={"cache": {"queue_bytes": 1024 * 1024}}),
    Scenario(("draining",), (1, 3), while_it_runs=terminate_under_load, on_s3=True),
    Scenario(
        ("gap_unwritten", "gap_written", "repair_fenced", "repair_slot_dropped"),
        while_it_runs=lose_slot,
        options=REPAIRS,
    ),
    Scenario(("fork_unwritten", "fork_written"), while_it_runs=promote, load=False, own_server=True),
)

Case = tuple[Scenario, CrashPoint, int]
CASES: list[Case] = [(one, point, nth) for one in SCENARIOS for point in one.points for nth in one.passings]
# For `make test`: points whose rows of the crash table no other test guards. The wide suite takes three more.
HANDFUL = {("snapshot_unwritten", 1), ("fence_written", 2), ("segment_put_in_flight", 1), ("segment_put_answered", 4)}
WIDE_HANDFUL = {("part_written", 3), ("script_answered", 8), ("repair_slot_dropped", 1)}
RESTORE_POINTS: tuple[CrashPoint, ...] = ("restore_chunk_committed", "restore_transactions_committed")


def name_of(case: Case) -> str:
    _, point, nth = case
    return f"{point}:{nth}"


@pytest.fixture
def make_stage(
    postgres_server: PostgresAddress, redis_url: str, tmp_path: Path, make_postgres: MakePostgres
) -> Iterator[Callable[[Scenario], Stage]]:
    with ExitStack() as running:

        def make(scenario: Scenario) -> Stage:
            server = make_postgres() if scenario.own_server else None
            dsn = server.dsn() if server else running.enter_context(fresh_database(postgres_server))
            install(dsn)
            s3 = running.enter_context(S3Server()) if scenario.on_s3 else None
            return Stage(dsn, redis_url, tmp_path, running, server, s3, scenario.options)

        yield make


MakeStage = Callable[[Scenario], Stage]


@contextlib.contextmanager
def load(stage: Stage, scenario: Scenario, seed: int) -> Iterator[None]:
    if not scenario.load:
        yield
        return
    with Workload(stage.dsn, seed=seed, rate=150, large_every_s=1.5, large_rows=1200):
        yield


def kill_at(stage: Stage, scenario: Scenario, point: str, nth: int) -> None:
    """Start the victim, and do what the scenario says until it has killed itself at the point."""
    deadline_s = time.monotonic() + PATIENCE_S
    victim = stage.start_victim(point, nth)
    while victim.running:
        assert time.monotonic() < deadline_s, f"{point} was not passed {nth} times:\n{victim.log_tail()}"
        with contextlib.suppress(psycopg.OperationalError):
            scenario.while_it_runs(stage)
        time.sleep(0.05)
    assert victim.process.returncode == KILLED, victim.log_tail()
    died = victim.log()[-1]
    assert (died["event"], died["point"], died["passing"]) == ("crashing_on_purpose", point, nth), died


def play(make_stage: MakeStage, case: Case) -> None:
    """Kill at the point, start again, catch up, and let the checker judge."""
    scenario, point, nth = case
    stage = make_stage(scenario)
    witness = Witness(stage.dsn, TABLES)
    scenario.before(stage)
    acknowledgements = acknowledgement_sampler(stage.dsn, lambda: tail_of(stage.objects()))
    # Emptied: a warm-up takes all keys away before it brings them back.
    cache = cache_sampler(stage.redis_url, dsn=stage.dsn, flushed=True)
    with acknowledgements, cache, load(stage, scenario, nth):
        kill_at(stage, scenario, point, nth)
        scenario.afterwards(stage)
        if stage.s3 is not None:
            stage.s3.heal()  # what was sent before is still applied late
        survivor = stage.service().start()
        survivor.wait_for_event("streaming", more_than=len(survivor.events("streaming")))
        write_rows(stage)
        time.sleep(0.3)
    survivor.wait_until_caught_up(stage.dsn)
    assert survivor.stop() == 0, survivor.log_tail()
    told = witness.transactions()
    verdict = check(stage.dsn, stage.objects(), stage.redis_url, told, breaks_are_told=True, reads=cache.reads)
    verdict.findings += acknowledgements.findings + cache.findings
    assert verdict.findings == [], f"{verdict}\n{survivor.log_tail()}"
    assert verdict.figures["transactions"] > 0


@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=name_of(case)) for case in CASES if case[1:] in HANDFUL),
        *(pytest.param(case, id=name_of(case), marks=pytest.mark.wide) for case in CASES if case[1:] in WIDE_HANDFUL),
    ],
)
def test_killed_at_one_of_a_handful_of_points_nothing_is_lost(make_stage: MakeStage, case: Case) -> None:
    play(make_stage, case)


@pytest.mark.faults
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_killed_at_any_point_nothing_is_lost_doubled_or_torn(make_stage: MakeStage, case: Case) -> None:
    if not is_drawn(name_of(case)):
        pytest.skip(f"not drawn: CDC_FAULTS_SECONDS is too short for all points (CDC_FAULTS_SEED={SEED})")
    play(make_stage, case)


def is_drawn(name: str, seconds: float = BUDGET_S, seed: int = SEED) -> bool:
    """Each case with the same chance, so that many short runs come to all of them."""
    return random.Random(f"{seed} {name}").random() < seconds * SHARE / (len(CASES) * CASE_S)


def test_a_long_run_plays_every_point_and_a_short_one_some() -> None:
    names = [name_of(case) for case in CASES]
    assert all(is_drawn(name, seconds=600) for name in names)
    some = [sum(is_drawn(name, seconds=120, seed=seed) for name in names) for seed in range(20)]
    assert 0 < min(some) <= max(some) < len(names)
    assert {name for seed in range(100) for name in names if is_drawn(name, seconds=120, seed=seed)} == set(names)


@pytest.mark.faults
@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("point", RESTORE_POINTS)
def test_a_restore_killed_at_any_point_goes_on_there(
    make_stage: MakeStage, postgres_server: PostgresAddress, point: CrashPoint, nth: int
) -> None:
    stage = make_stage(Scenario((point,)))
    write_rows(stage)
    service = stage.service().start()
    service.wait_until_caught_up(stage.dsn)
    Workload(stage.dsn, seed=nth, rate=150, large_every_s=0.8, large_rows=5000).run_for(2)
    service.wait_until_caught_up(stage.dsn)
    assert service.stop() == 0
    with fresh_database(postgres_server) as into:
        command = ("restore", "--config", str(service.config_file), "--into", into, "--json")
        killed = run_cdc(*command, environment={VARIABLE: f"{point}:{nth}"})
        assert killed.returncode == KILLED, killed.stderr
        assert json.loads(killed.stderr.splitlines()[-1])["point"] == point
        done = run_cdc(*command)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["resumed"]
        assert digests(into) == digests(stage.dsn)


def test_every_crash_point_has_a_scenario_and_a_story() -> None:
    played = {point for _, point, _ in CASES} | set(RESTORE_POINTS)
    assert played == set(get_args(CrashPoint))
    assert list(STORIES) == list(get_args(CrashPoint))
    assert {case[1:] for case in CASES} >= HANDFUL | WIDE_HANDFUL


def test_every_crash_point_stands_somewhere_in_the_code() -> None:
    sources = "".join(path.read_text() for path in (Path(__file__).parents[2] / "cdc").rglob("*.py"))
    placed = set(re.findall(r"crash_(?:point|soon)\(\"(\w+)\"\)", sources))
    assert placed == set(get_args(CrashPoint))


@pytest.mark.parametrize("mistake", ["nowhere", "nowhere:1", "slot_held:0", "slot_held:x", "slot_held:-1"])
def test_what_is_no_crash_point_is_refused_with_the_list(mistake: str) -> None:
    done = run_cdc("run", environment={VARIABLE: mistake})
    assert done.returncode == 2
    assert f"CDC_CRASH_AT={mistake} names no crash point" in done.stderr
    assert all(point in done.stderr for point in get_args(CrashPoint))
