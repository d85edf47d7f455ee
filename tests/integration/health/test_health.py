"""Alive is not ready: what /livez and /readyz say while a real service cannot do its work, and when it can again."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.conftest import MakePostgres, MakeValkey
from tests.support.cdc_process import Service, install, query, wait_until
from tests.support.http import address_of, ask, get
from tests.support.s3 import S3Server

MakeService = Callable[..., Service]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeService]:
    """Services with an archive in a directory; not started yet."""
    made: list[Service] = []

    def make(dsn: str, **options: object) -> Service:
        options = {"archive_url": f"file://{tmp_path}/archive", **options}
        made.append(Service(tmp_path, dsn=dsn, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for service in made:
        if service.running:
            service.kill()


def say(dsn: str) -> None:
    query(dsn, "INSERT INTO turns (domain, channel, session_hash, role, content) VALUES ('d', 'c', 's', 'user', 'x')")


def is_ready(service: Service) -> bool:
    answer = get(service, "/readyz")
    assert (answer.status == 200) == (answer.body.splitlines()[0] == "ok")
    return answer.status == 200


def why_not(service: Service, word: str) -> str:
    """Wait until /readyz says no with this word among its reasons; the line. Meanwhile it is alive."""
    found: list[str] = []

    def says_so() -> bool:
        answer = get(service, "/readyz")
        found[:] = [line for line in answer.body.splitlines() if word in line and not line.startswith("warning: ")]
        return answer.status == 503 and bool(found)

    wait_until(says_so, f"not ready because of {word}")
    assert get(service, "/livez").body == "ok\n"
    return found[0]


@contextmanager
def open_transaction(dsn: str) -> Iterator[None]:
    """What a new slot waits for."""
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS elsewhere (id int)")
        yield


def test_one_that_stands_by_is_alive_and_not_ready_until_it_takes_over(make: MakeService, database: str) -> None:
    install(database)
    first = make(database, name="first").start()
    first.wait_until_archived(database)
    second = make(database, name="second").start()
    assert "; hint: cdc slots" in why_not(second, "standing by")
    assert is_ready(first)
    first.stop()
    wait_until(lambda: is_ready(second), "the second is ready")


def test_one_that_fills_its_archive_is_not_ready_until_it_is_full(make: MakeService, database: str) -> None:
    install(database)
    with open_transaction(database):
        service = make(database).start()
        assert "hint: cdc status" in why_not(service, "filling the archive")
    wait_until(lambda: is_ready(service), "ready")


def test_postgres_gone_is_not_ready_and_the_reason_is_what_was_raised(
    make: MakeService, make_postgres: MakePostgres
) -> None:
    server = make_postgres()
    install(server.dsn())
    service = make(server.dsn()).start()
    wait_until(lambda: is_ready(service), "ready")
    server.stop()
    assert "service: interrupted for " in why_not(service, "interrupted")
    server.start()
    wait_until(lambda: is_ready(service), "ready again")


def test_a_bucket_away_is_unready_once_the_oldest_change_is_over_budget(make: MakeService, database: str) -> None:
    install(database)
    with S3Server() as s3:
        service = on_bucket(make, database, s3).start()
        wait_until(lambda: is_ready(service), "ready")
        s3.fail(503, methods="PUT GET HEAD")
        say(database)
        assert "; hint: cdc doctor" in why_not(service, "the oldest change that is not archived is")
        s3.heal()
        wait_until(lambda: is_ready(service), "ready again")


def test_a_bucket_away_is_unready_also_where_only_idle_wal_waits(make: MakeService, database: str) -> None:
    install(database)
    with S3Server() as s3:
        service = on_bucket(make, database, s3, coverage_interval_s=1.0).start()
        wait_until(lambda: is_ready(service), "ready")
        s3.fail(503, methods="PUT GET HEAD")
        query(database, "CREATE TABLE unpublished (id int)")
        query(database, "SELECT pg_switch_wal()")
        assert " of WAL wait for it" in why_not(service, "has taken nothing for")
        s3.heal()
        wait_until(lambda: is_ready(service), "ready again")


def on_bucket(make: MakeService, dsn: str, s3: S3Server, **archive: object) -> Service:
    return make(
        dsn,
        archive_url="s3://archive/health",
        archive={"endpoint_url": s3.endpoint_url, "put_timeout_s": 2.0, **archive},
        http={"archive_lag_s": 1.0},
        environment=s3.environment,
    )


def test_a_gap_that_waits_for_its_snapshot_is_a_reason_of_its_own(make: MakeService, database: str) -> None:
    install(database)
    service = make(database, archive={"on_gap": "resnapshot"}).start()
    service.wait_until_archived(database)
    service.stop()
    query(database, "SELECT pg_drop_replication_slot('cdc')")
    with open_transaction(database):
        service.start()
        service.wait_for_event("listening", more_than=1)
        assert "hint: cdc status" in why_not(service, "a gap waits for its snapshot")
    wait_until(lambda: is_ready(service), "ready again")


def test_a_cache_that_is_away_is_a_warning_and_leaves_it_ready(
    make: MakeService, database: str, make_valkey: MakeValkey
) -> None:
    install(database)
    valkey = make_valkey()
    service = make(database, cache_url=valkey.url).start()
    wait_until(lambda: is_ready(service) and "cache" not in get(service, "/readyz").body, "ready, no word of the cache")
    valkey.stop()
    say(database)
    wait_until(lambda: "\nwarning: cache: away" in get(service, "/readyz").body, "a warning")
    assert is_ready(service)


def test_a_slot_of_somebody_else_that_nobody_reads_is_a_warning_with_the_line_that_ends_it(
    make: MakeService, make_postgres: MakePostgres
) -> None:
    dsn = make_postgres().dsn()
    install(dsn)
    service = make(dsn, monitor={"interval_s": 0.2}).start()
    wait_until(lambda: is_ready(service), "ready")
    query(dsn, "SELECT pg_create_physical_replication_slot('theirs', true)")
    wait_until(lambda: "warning: slot: slot theirs, not ours," in get(service, "/readyz").body, "a warning")
    assert "pg_drop_replication_slot('theirs')" in get(service, "/readyz").body
    assert is_ready(service)


def test_a_process_that_does_not_turn_answers_nobody_and_answers_again_when_it_does(
    make: MakeService, database: str
) -> None:
    install(database)
    service = make(database).start()
    wait_until(lambda: is_ready(service), "ready")
    address = address_of(service)
    service.pause()
    with pytest.raises(TimeoutError):
        ask(address, "/livez", timeout_s=1)
    service.resume()
    wait_until(lambda: get(service, "/livez").status == 200, "alive again")


def test_one_that_stops_says_so_while_it_drains(make: MakeService, database: str) -> None:
    install(database)
    with S3Server() as s3:
        service = on_bucket(make, database, s3).start()
        wait_until(lambda: is_ready(service), "ready")
        s3.delay(before_s=3.0, methods="PUT")
        say(database)
        wait_until(lambda: bool(s3.seen("PUT", "log/", 0)), "a PUT in flight")
        service.process.send_signal(signal.SIGTERM)
        assert "service: stopping" in why_not(service, "stopping")
        assert service.wait() == 0
