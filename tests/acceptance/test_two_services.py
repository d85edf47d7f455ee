"""Two services on one slot and one archive: one works, one stands by; a zombie changes nothing."""

import itertools
import time

import pytest

from tests.acceptance.conftest import MakeService, on_bucket, settled_and_equal
from tests.conftest import MakePostgres
from tests.faults.checker import TABLES, check
from tests.faults.objects import log_objects, read_lines
from tests.faults.witness import Witness
from tests.faults.workload import Workload
from tests.support.cdc_process import install, query, wait_until
from tests.support.s3 import S3Server


def test_a_standby_takes_over_when_the_first_is_killed(
    installed: str, redis_url: str, s3: S3Server, make_service: MakeService
) -> None:
    witness = Witness(installed, TABLES)
    first = make_service(installed, "s3://archive/two", redis_url, name="first", **on_bucket(s3)).start()
    first.wait_until_caught_up(installed)
    second = make_service(installed, "s3://archive/two", redis_url, name="second", **on_bucket(s3)).start()
    second.wait_for_event("standing_by")
    with Workload(installed, seed=8):
        time.sleep(1)
        assert not second.events("streaming")
        first.kill()
        second.wait_for_event("streaming")
        time.sleep(1)
    verdict = settled_and_equal(second, installed, s3, redis_url, witness)
    assert verdict.figures["writers"] == 2


def test_two_services_that_begin_an_archive_together_begin_it_once(
    installed: str, redis_url: str, s3: S3Server, make_service: MakeService
) -> None:
    witness = Witness(installed, TABLES)
    Workload(installed, seed=9, rate=200).run_for(1)
    services = [
        make_service(installed, "s3://archive/race", redis_url, name=name, **on_bucket(s3)).start()
        for name in ("left", "right")
    ]
    Workload(installed, seed=10).run_for(3)
    wait_until(lambda: any(service.events("streaming") for service in services), "one of the two streams")
    working = next(service for service in services if service.events("streaming"))
    working.wait_until_caught_up(installed)
    verdict = check(installed, s3.objects(), redis_url, witness.transactions())
    assert verdict.findings == [], str(verdict)
    assert all(service.running for service in services)


def test_a_paused_and_resumed_writer_ends_with_75_and_changes_nothing(
    make_postgres: MakePostgres, redis_url: str, s3: S3Server, make_service: MakeService
) -> None:
    dsn = make_postgres(settings={"wal_sender_timeout": "2s"}).dsn()
    install(dsn)
    witness = Witness(dsn, TABLES)
    first = make_service(dsn, "s3://archive/zombie", redis_url, name="first", **on_bucket(s3)).start()
    first.wait_until_caught_up(dsn)
    with Workload(dsn, seed=11):
        time.sleep(1)
        first.pause()
        second = make_service(dsn, "s3://archive/zombie", redis_url, name="second", **on_bucket(s3)).start()
        second.wait_for_event("streaming")
        time.sleep(1)
        first.resume()
        assert first.wait() == 75
        assert first.failure()["kind"] == "Fenced"
        time.sleep(1)
    settled_and_equal(second, dsn, s3, redis_url, witness)
    assert writers_in_turn(s3) == 2


def writers_in_turn(s3: S3Server) -> int:
    """How often the log's writer changes, and one."""
    writers = [str(read_lines(body)[0]["writer"]["id"]) for body in log_objects(s3.objects()).values()]
    return 1 + sum(before != after for before, after in itertools.pairwise(writers))


@pytest.mark.wide
def test_a_zombie_that_wakes_with_nothing_to_write_ends_with_75_too(
    make_postgres: MakePostgres, s3: S3Server, make_service: MakeService
) -> None:
    dsn = make_postgres(settings={"wal_sender_timeout": "2s"}).dsn()
    install(dsn)
    first = make_service(dsn, "s3://archive/idle", name="first", **on_bucket(s3)).start()
    first.wait_until_archived(dsn)
    first.pause()
    second = make_service(dsn, "s3://archive/idle", name="second", **on_bucket(s3)).start()
    second.wait_for_event("streaming")
    second.wait_until_archived(dsn)
    first.resume()
    assert first.wait() == 75
    assert query(dsn, "SELECT active FROM pg_replication_slots WHERE slot_name = 'cdc'") == [(True,)]
