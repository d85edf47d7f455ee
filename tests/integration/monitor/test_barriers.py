"""The recovery point of a real service: what barriers prove, and what keeps them from proving it."""

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cdc.config import PostgresSettings
from cdc.health.vitals import Barrier, Phase, Recovery, SourceFacts, Vitals
from cdc.monitor.barriers import Barriers
from tests.support.cdc_process import Service, install, query, wait_until
from tests.support.http import get
from tests.support.s3 import S3Server

MakeService = Callable[..., Service]


@pytest.fixture
def make(database: str, tmp_path: Path) -> Iterator[MakeService]:
    """Services that write barriers often; not started yet."""
    install(database)
    made: list[Service] = []

    def make(*, archive_url: str = f"file://{tmp_path}/archive", **options: object) -> Service:
        options = {"monitor": {"barrier_interval_s": 0.5}, **options}
        made.append(Service(tmp_path, dsn=database, archive_url=archive_url, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for service in made:
        if service.running:
            service.resume()
            service.kill()


def value(service: Service, name: str) -> float:
    return next(float(line.split()[1]) for line in get(service, "/metrics").body.splitlines() if line.startswith(name))


def rpo_s(service: Service) -> float:
    return value(service, "cdc_rpo_seconds ")


def found(service: Service) -> float:
    return value(service, "cdc_barrier_seconds_count ")


def wait_for_barriers(service: Service, number: int) -> None:
    target = found(service) + number
    wait_until(lambda: found(service) >= target, f"{number} barriers more")


def test_an_idle_database_proves_a_recovery_point_again_and_again_and_the_archive_shows_it(make: MakeService) -> None:
    service = make().start()
    service.wait_for_event("streaming")
    assert math.isnan(rpo_s(service))
    wait_for_barriers(service, 1)
    for _ in range(4):
        wait_for_barriers(service, 1)
        assert rpo_s(service) < 10
    lines = service.command("archive", "cat").stdout.splitlines()
    barriers = [json.loads(line) for line in lines if '"prefix":"cdc.barrier"' in line]
    assert [json.loads(line["content"])["number"] for line in barriers[:4]] == [0, 1, 2, 3]
    assert not any(line["transactional"] for line in barriers)


@pytest.mark.wide
def test_without_a_bucket_it_grows_until_the_bucket_answers(make: MakeService) -> None:
    with S3Server() as s3:
        service = make(
            archive_url="s3://archive/chat", environment=s3.environment, archive={"endpoint_url": s3.endpoint_url}
        ).start()
        wait_for_barriers(service, 1)
        s3.fail(503, methods="PUT GET HEAD")
        wait_until(lambda: rpo_s(service) > 4, "the recovery point grows")
        before = found(service)
        s3.heal()
        wait_until(lambda: found(service) > before, "the barrier is found")
        wait_until(lambda: rpo_s(service) < 2, "the recovery point is near again")


def test_it_grows_also_where_nothing_is_received_and_nothing_seems_to_be_owed(make: MakeService, database: str) -> None:
    service = make().start()
    wait_for_barriers(service, 1)
    pid = query(database, "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'cdc'")[0][0]
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: rpo_s(service) > 3, "the recovery point grows")
        assert value(service, 'cdc_lag_seconds{sink="archive"}') == 0
        assert value(service, "cdc_ready ") == 1
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: rpo_s(service) < 2, "the recovery point is near again")


def test_one_that_stands_by_proves_nothing_and_writes_nothing(make: MakeService, database: str) -> None:
    make(name="first", monitor={"barrier_interval_s": 0}).start().wait_until_archived(database)
    second = make(name="second").start()
    second.wait_for_event("standing_by")
    time.sleep(1.5)
    assert math.isnan(rpo_s(second))
    assert not query(database, "SELECT 1 FROM pg_stat_activity WHERE application_name = 'waltier barriers'")


def upstream(timeline: int) -> SourceFacts:
    return SourceFacts("1", timeline, "db", "18", "cdc", "cdc")


def test_a_barrier_is_found_when_the_archive_holds_its_last_byte() -> None:
    vitals = Vitals()
    barriers = Barriers(PostgresSettings(dsn="dbname=x"), 60.0, vitals)
    vitals.stream(upstream(1))
    barriers.look(100.0)
    vitals.recovery.waiting = Barrier(50, 100.0)
    vitals.archived(49)
    barriers.look(101.0)
    assert vitals.recovery == Recovery(waiting=Barrier(50, 100.0))
    assert vitals.recovery.age_s(110.0) == 10
    vitals.archived(50)
    barriers.look(102.0)
    assert vitals.recovery == Recovery(proved_at=100.0)
    assert vitals.recovery.age_s(110.0) == 10


def test_what_was_measured_on_another_timeline_is_forgotten() -> None:
    vitals = Vitals()
    barriers = Barriers(PostgresSettings(dsn="dbname=x"), 60.0, vitals)
    vitals.stream(upstream(1))
    barriers.look(100.0)
    vitals.archived(50)
    vitals.recovery.waiting, vitals.recovery.proved_at = Barrier(60, 110.0), 100.0
    vitals.stream(upstream(2))
    barriers.look(111.0)
    assert vitals.positions.archived == 0
    assert vitals.recovery == Recovery()
    assert vitals.recovery.age_s(120.0) is None


def test_standing_by_forgets_the_recovery_point_of_before() -> None:
    vitals = Vitals()
    barriers = Barriers(PostgresSettings(dsn="dbname=x"), 60.0, vitals)
    vitals.stream(upstream(1))
    barriers.look(100.0)
    vitals.recovery.proved_at = 100.0
    vitals.enter(Phase.STANDING_BY)
    barriers.look(101.0)
    assert vitals.recovery.age_s(110.0) is None
