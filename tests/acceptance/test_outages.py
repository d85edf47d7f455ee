"""Redis away or emptied, the bucket away, Postgres shut down or crashed: under load, and nobody lifts a finger.

CDC_OUTAGE_SECONDS says how long each outage lasts (default 5; the promise is a minute for Redis, two for the bucket).
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import psycopg
import pytest
import redis

from tests.acceptance.conftest import MakeService, on_bucket, settled_and_equal
from tests.conftest import MakePostgres, MakeValkey
from tests.faults.checker import TABLES, acknowledgement_sampler, cache_sampler
from tests.faults.objects import directory_tail, tail_of
from tests.faults.witness import Witness
from tests.faults.workload import Workload
from tests.support.cdc_process import Service, confirmed_flush_lsn, install, query, settled, wait_until
from tests.support.s3 import S3Server

OUTAGE_S = float(os.environ.get("CDC_OUTAGE_SECONDS", "5"))

pytestmark = pytest.mark.timeout(300 + 3 * OUTAGE_S)

MIB = 1024 * 1024

# How long a bucket that hangs leaves a request without answer: longer than anybody waits for it, so that what is
# applied then is applied late. Not so long that it never happens within the test.
HANGS_S = OUTAGE_S + 4


@contextmanager
def load(dsn: str, **options: float) -> Iterator[None]:
    """The workload, for as long as the block takes."""
    with Workload(dsn, seed=7, large_every_s=6, **options):  # type: ignore[arg-type]
        yield


def assert_slot_advances_throughout(dsn: str, seconds: float) -> None:
    """It advances in each of three thirds of this time."""
    for _ in range(3):
        before = confirmed_flush_lsn(dsn)
        time.sleep(seconds / 3)
        wait_until(lambda before=before: confirmed_flush_lsn(dsn) > before, "the slot advances")  # type: ignore[misc]


@pytest.mark.parametrize("how", ["restarted empty", pytest.param("frozen", marks=pytest.mark.wide)])
def test_redis_away_never_holds_the_slot_and_comes_back_equal(
    installed: str, make_valkey: MakeValkey, archive_dir: str, make_service: MakeService, how: str
) -> None:
    valkey = make_valkey()
    witness = Witness(installed, TABLES)
    service = make_service(installed, archive_dir, valkey.url, cache={"timeout_s": 1.0}).start()
    service.wait_until_caught_up(installed)
    with acknowledgement_sampler(installed, lambda: directory_tail(archive_dir)) as acknowledgements, load(installed):
        time.sleep(1)
        if how == "frozen":
            os.kill(valkey.pid, signal.SIGSTOP)
        else:
            valkey.stop()
        assert_slot_advances_throughout(installed, OUTAGE_S)
        if how == "frozen":
            os.kill(valkey.pid, signal.SIGCONT)
        else:
            valkey.start()
        time.sleep(1)
    settled_and_equal(service, installed, archive_dir, valkey.url, witness, acknowledgements)


def test_a_cache_that_is_flushed_under_load_fills_itself_again(
    installed: str, redis_url: str, archive_dir: str, make_service: MakeService
) -> None:
    witness = Witness(installed, TABLES)
    service = make_service(installed, archive_dir, redis_url).start()
    service.wait_until_caught_up(installed)
    with cache_sampler(redis_url, flushed=True) as cache, load(installed):
        for _ in range(3):
            time.sleep(OUTAGE_S / 3)
            with redis.Redis.from_url(redis_url) as client:
                client.flushall()
        time.sleep(1)
    settled_and_equal(service, installed, archive_dir, redis_url, witness, cache)


@pytest.mark.wide
def test_a_checkpoint_that_alone_is_lost_is_no_harm(
    installed: str, redis_url: str, archive_dir: str, make_service: MakeService
) -> None:
    """As an eviction policy of `allkeys-*` loses it. The warm-up that follows empties the cache first."""
    witness = Witness(installed, TABLES)
    service = make_service(installed, archive_dir, redis_url).start()
    service.wait_until_caught_up(installed)
    with cache_sampler(redis_url, flushed=True) as cache, load(installed):
        time.sleep(1)
        with redis.Redis.from_url(redis_url) as client:
            client.delete("cdc:meta")
        time.sleep(2)
    settled_and_equal(service, installed, archive_dir, redis_url, witness, cache)


def impatient_with(s3: S3Server, **options: object) -> dict[str, Any]:
    """Options of a service that soon gives up a PUT."""
    return on_bucket(s3, **{"put_timeout_s": 2.0, **options})


def insert_turn(dsn: str) -> str:
    """Commit one turn; its key in the cache."""
    statement = (
        "INSERT INTO turns (domain, channel, session_hash, role, content)"
        " VALUES ('support', 'web', 'live', 'user', 'hello') RETURNING turn_id::text"
    )
    return f"turn:{query(dsn, statement)[0][0]}"


def assert_cached_soon(cache_url: str, key: str) -> None:
    with redis.Redis.from_url(cache_url) as client:
        wait_until(lambda: bool(client.exists(key)), f"{key} is in the cache")


@pytest.mark.parametrize(
    "how",
    [
        "answers 503",
        pytest.param("refuses connections", marks=pytest.mark.wide),
        pytest.param("hangs", marks=pytest.mark.wide),
    ],
)
def test_the_bucket_away_nothing_is_acknowledged_and_nothing_lost(
    installed: str, redis_url: str, s3: S3Server, make_service: MakeService, how: str
) -> None:
    witness = Witness(installed, TABLES)
    service = make_service(installed, "s3://archive/outage", redis_url, **impatient_with(s3, queue_bytes=MIB)).start()
    service.wait_until_caught_up(installed)
    tail = lambda: tail_of(s3.objects())  # noqa: E731 - one expression, used twice
    with acknowledgement_sampler(installed, tail) as acknowledgements, cache_sampler(redis_url) as cache:
        with load(installed, rate=120):
            time.sleep(1)
            break_bucket(s3, how)
            service.wait_for_event("put_failed")  # so what was in flight before is in
            acknowledged = settled(lambda: confirmed_flush_lsn(installed))
            ends_s = time.monotonic() + OUTAGE_S
            while time.monotonic() < ends_s:
                assert_cached_soon(redis_url, insert_turn(installed))
                time.sleep(0.3)
            assert confirmed_flush_lsn(installed) == acknowledged
            assert service.rss_bytes < 256 * MIB
            s3.heal()
            wait_until(lambda: confirmed_flush_lsn(installed) > acknowledged, "the slot advances again")
        service.wait_until_caught_up(installed)
    settled_and_equal(service, installed, s3, redis_url, witness, acknowledgements, cache)
    if how != "hangs":  # PUTs that were given up are still there
        assert s3.most_puts_in_flight == 1


@pytest.mark.wide
def test_a_queue_that_is_shed_while_idle_wal_is_being_covered_is_read_again(
    installed: str, s3: S3Server, make_service: MakeService
) -> None:
    witness = Witness(installed, TABLES)
    bucket = impatient_with(s3, queue_bytes=MIB, coverage_interval_s=1)
    service = make_service(installed, "s3://archive/shed", **bucket).start()
    service.wait_until_caught_up(installed)
    query(installed, "CREATE TABLE elsewhere (id int)")
    s3.fail(503)
    query(installed, "SELECT pg_switch_wal()")
    service.wait_for_event("put_failed")
    with load(installed, rate=120):
        service.wait_for_event("archive_queue_shed")
    s3.heal()
    settled_and_equal(service, installed, s3, None, witness)


def break_bucket(s3: S3Server, how: str) -> None:
    match how:
        case "answers 503":
            s3.fail(503, methods="PUT GET HEAD")
        case "refuses connections":
            s3.refuse_connections()
        case "hangs":
            s3.delay(before_s=HANGS_S, methods="PUT GET HEAD")
        case other:
            raise ValueError(other)


def test_postgres_shuts_down_fast_while_the_bucket_is_away(
    make_postgres: MakePostgres, redis_url: str, s3: S3Server, make_service: MakeService
) -> None:
    postgres = make_postgres(settings={"wal_sender_timeout": "10min"})
    dsn = postgres.dsn()
    install(dsn)
    witness = Witness(dsn, TABLES)
    service = make_service(dsn, "s3://archive/shutdown", redis_url, **impatient_with(s3)).start()
    service.wait_until_caught_up(dsn)
    with load(dsn):
        time.sleep(1)
        s3.fail(503)
        time.sleep(3)
        postgres.stop("fast", timeout_s=120)  # long before Postgres itself would give the service up
        time.sleep(1)
        postgres.start()
        s3.heal()
        time.sleep(1)
    settled_and_equal(service, dsn, s3, redis_url, witness)


def test_a_crash_of_postgres_doubles_nothing(
    make_postgres: MakePostgres, redis_url: str, archive_dir: str, make_service: MakeService
) -> None:
    """After one, the slot goes back, and what was acknowledged comes again."""
    postgres = make_postgres(settings={"fsync": "on", "synchronous_commit": "on"})
    dsn = postgres.dsn()
    install(dsn)
    witness = Witness(dsn, TABLES)
    service = make_service(dsn, archive_dir, redis_url).start()
    service.wait_until_caught_up(dsn)
    with cache_sampler(redis_url) as cache, load(dsn):
        for _ in range(2):
            time.sleep(2)
            postgres.kill()
            postgres.start()
        time.sleep(1)
    settled_and_equal(service, dsn, archive_dir, redis_url, witness, cache)


@pytest.mark.wide
def test_a_lost_replication_connection_is_opened_again(
    installed: str, redis_url: str, archive_dir: str, make_service: MakeService
) -> None:
    witness = Witness(installed, TABLES)
    service = make_service(installed, archive_dir, redis_url).start()
    service.wait_until_caught_up(installed)
    with load(installed):
        for _ in range(3):
            time.sleep(1)
            with psycopg.connect(installed, autocommit=True) as connection:
                connection.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
    settled_and_equal(service, installed, archive_dir, redis_url, witness)


def test_an_answer_that_is_lost_is_not_a_second_segment(
    installed: str, s3: S3Server, make_service: MakeService
) -> None:
    witness = Witness(installed, TABLES)
    service = make_service(installed, "s3://archive/lost", **impatient_with(s3)).start()
    service.wait_until_caught_up(installed)
    with load(installed):
        for _ in range(3):
            s3.lose_answer(times=1, key_contains="log/")
            time.sleep(1.5)
    settled_and_equal(service, installed, s3, None, witness)
    assert s3.seen("PUT", "log/", 599)
    assert s3.most_puts_in_flight == 1


def open_files(service: Service) -> int:
    return psutil.Process(service.process.pid).num_fds()


def test_nothing_leaks_over_many_interruptions(
    installed: str, redis_url: str, archive_dir: str, make_service: MakeService
) -> None:
    service = make_service(installed, archive_dir, redis_url).start()
    service.wait_until_caught_up(installed)
    before = open_files(service)
    for _ in range(4):
        query(installed, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
        service.wait_until_caught_up(installed)
    assert open_files(service) <= before + 4
