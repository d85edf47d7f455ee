"""What is wrong is said at once: an exit code for the supervisor, and for a person a message with a hint to paste."""

import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg import conninfo

from tests.acceptance.conftest import MakeService, on_bucket
from tests.conftest import MakePostgres
from tests.faults.objects import read_directory
from tests.support.cdc_process import Service, install, query, run_cdc
from tests.support.s3 import S3Server
from tests.support.servers import PostgresAddress, fresh_database

USAGE, PERSON = 2, 78


def assert_refused(service: Service, exit_code: int, *words: str) -> dict[str, Any]:
    """It ends with this code, and says why and what to do in these words."""
    assert service.run_to_end() == exit_code, service.log_tail()
    failure = service.failure()
    told = f"{failure['reason']}\n{failure['detail']}\n{failure['hint']}"
    assert failure["hint"], told
    for word in words:
        assert word in told, told
    assert not [line for line in service.log() if "Traceback" in str(line)]
    return failure


@pytest.fixture
def other_database(postgres_server: PostgresAddress) -> Iterator[str]:
    with fresh_database(postgres_server) as dsn:
        install(dsn)
        yield dsn


def test_a_bucket_that_does_not_exist(installed: str, s3: S3Server, make_service: MakeService) -> None:
    service = make_service(installed, "s3://elsewhere/prefix", **on_bucket(s3))
    assert_refused(service, USAGE, "elsewhere", "NoSuchBucket", "create-bucket")


def test_credentials_that_the_bucket_does_not_know(installed: str, s3: S3Server, make_service: MakeService) -> None:
    options = on_bucket(s3)
    options["environment"] = {**options["environment"], "AWS_ACCESS_KEY_ID": "AKIAOTHER"}
    assert_refused(make_service(installed, "s3://archive/prefix", **options), USAGE)


def test_a_bucket_that_ignores_if_none_match(installed: str, s3: S3Server, make_service: MakeService) -> None:
    s3.ignore_if_none_match = True
    assert_refused(make_service(installed, "s3://archive/prefix", **on_bucket(s3)), USAGE, "If-None-Match")
    assert query(installed, "SELECT * FROM pg_replication_slots WHERE slot_name = 'cdc'") == []


def test_an_archive_of_another_database(
    installed: str, other_database: str, archive_dir: str, make_service: MakeService
) -> None:
    with make_service(installed, archive_dir) as service:
        service.wait_until_caught_up(installed)
        assert service.stop() == 0
    before = read_directory(archive_dir)
    stranger = make_service(other_database, archive_dir, name="stranger", postgres={"slot": "another"})
    assert_refused(stranger, PERSON, "archive.url")
    assert read_directory(archive_dir) == before


def test_an_archive_of_another_cluster(
    installed: str, make_postgres: MakePostgres, archive_dir: str, make_service: MakeService
) -> None:
    with make_service(installed, archive_dir) as service:
        service.wait_until_caught_up(installed)
        assert service.stop() == 0
    before = read_directory(archive_dir)
    elsewhere = make_postgres().dsn()
    install(elsewhere)
    assert_refused(make_service(elsewhere, archive_dir, name="stranger"), PERSON, "archive")
    assert read_directory(archive_dir) == before


def test_a_slot_whose_archive_is_not_there(installed: str, archive_dir: str, make_service: MakeService) -> None:
    with make_service(installed, archive_dir) as service:
        service.wait_until_caught_up(installed)
        assert service.stop() == 0
    assert_refused(make_service(installed, f"{archive_dir}-empty", name="wrong"), PERSON, "slot", "archive.url")


def test_a_slot_that_was_dropped(installed: str, archive_dir: str, make_service: MakeService) -> None:
    service = make_service(installed, archive_dir).start()
    service.wait_until_caught_up(installed)
    assert service.stop() == 0
    query(installed, "SELECT pg_drop_replication_slot('cdc')")
    assert_refused(service, PERSON, "slot", "cdc")


def test_a_slot_that_somebody_advanced(installed: str, archive_dir: str, make_service: MakeService) -> None:
    service = make_service(installed, archive_dir).start()
    service.wait_until_caught_up(installed)
    assert service.stop() == 0
    query(installed, "INSERT INTO outbox (event_type, idempotency_key, payload) VALUES ('lost', '1', '{}')")
    query(installed, "SELECT pg_replication_slot_advance('cdc', pg_current_wal_flush_lsn())")
    assert_refused(service, PERSON, "cdc", "cdc repair")


def test_a_publication_that_is_missing(installed: str, archive_dir: str, make_service: MakeService) -> None:
    query(installed, "DROP PUBLICATION cdc")
    assert_refused(make_service(installed, archive_dir), USAGE, "publication", "cdc init")


def test_a_published_table_without_a_key(installed: str, archive_dir: str, make_service: MakeService) -> None:
    query(installed, "CREATE TABLE keyless (n int)")
    query(installed, "ALTER PUBLICATION cdc ADD TABLE keyless")
    query(installed, "GRANT SELECT ON keyless TO cdc_reader")
    assert_refused(make_service(installed, archive_dir), USAGE, "public.keyless", "ALTER TABLE")


def test_a_server_without_logical_wal(make_postgres: MakePostgres, archive_dir: str, make_service: MakeService) -> None:
    dsn = make_postgres(settings={"wal_level": "replica"}).dsn()
    install(dsn)
    assert_refused(make_service(dsn, archive_dir), USAGE, "wal_level", "ALTER SYSTEM SET wal_level")


def test_a_role_that_may_not_replicate(installed: str, archive_dir: str, make_service: MakeService) -> None:
    reader = conninfo.make_conninfo(installed, user="cdc_reader")
    assert_refused(make_service(installed, archive_dir, dsn=reader), USAGE, "REPLICATION")


@pytest.mark.parametrize(
    ("dsn", "word"),
    [
        ("postgresql://nobody_of_this_name@{host}/{database}", "nobody_of_this_name"),
        ("postgresql://cdc_replicator@{host}/no_database_of_this_name", "no_database_of_this_name"),
        ("postgresql://cdc_replicator@db.example.com/app", "verify-full"),
    ],
)
def test_a_bad_dsn(installed: str, archive_dir: str, make_service: MakeService, dsn: str, word: str) -> None:
    parts = conninfo.conninfo_to_dict(installed)
    made = dsn.format(host=f"127.0.0.1:{parts['port']}", database=parts["dbname"])
    assert_refused(make_service(installed, archive_dir, dsn=made), USAGE, word)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_server_that_is_away_is_waited_for_and_said_so(
    installed: str, archive_dir: str, make_service: MakeService
) -> None:
    nowhere = conninfo.make_conninfo(installed, user="cdc_replicator", port=str(free_port()))
    service = make_service(installed, archive_dir, dsn=nowhere).start()
    told = service.wait_for_event("interrupted", more_than=1)
    assert told["hint"]
    assert service.running
    assert service.stop() == 0


def test_a_redis_that_is_away_is_said_so_and_the_archive_goes_on(
    installed: str, archive_dir: str, make_service: MakeService
) -> None:
    service = make_service(installed, archive_dir, f"redis://127.0.0.1:{free_port()}/0").start()
    told = service.wait_for_event("cache_unavailable")
    assert told["hint"]
    assert "cache.url" in str(told) or "redis" in str(told).lower()
    service.archive_and_stop(installed)


def test_every_mistake_of_a_configuration_is_told_at_once(tmp_path: Any) -> None:
    file = tmp_path / "cdc.toml"
    file.write_text(
        '[postgres]\ndsn = "none"\nslot = "Not A Name"\n[archive]\nurl = "ftp://x"\nlinger_s = -1\nfoo = 1\n'
    )
    done = run_cdc("run", "--config", str(file))
    assert done.returncode == USAGE
    assert done.stdout == ""
    for word in ("postgres.dsn", "postgres.slot", "archive.url", "archive.linger_s", "archive.foo", "hint:"):
        assert word in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_a_secret_is_never_printed(installed: str, archive_dir: str, make_service: MakeService) -> None:
    secret = "p@ss w0rd"
    parts = conninfo.conninfo_to_dict(installed)
    dsn = f"postgresql://nobody_here:{quote(secret)}@127.0.0.1:{parts['port']}/{parts['dbname']}"
    service = make_service(installed, archive_dir, f"redis://:{quote(secret)}@127.0.0.1:{free_port()}/0", dsn=dsn)
    assert service.run_to_end() == USAGE
    assert secret not in service.log_file.read_text()
    assert quote(secret) not in service.log_file.read_text()


def test_a_slot_that_cannot_be_created_names_who_is_in_the_way(
    installed: str, archive_dir: str, make_service: MakeService
) -> None:
    with psycopg.connect(installed) as blocker:
        blocker.execute("SELECT pg_current_xact_id()")
        pid = blocker.info.backend_pid
        service = make_service(installed, archive_dir, postgres={"slot_deadline_s": 2.0}).start()
        told = service.wait_for_event("interrupted")
        assert str(pid) in str(told), told
        blocker.rollback()
        service.wait_until_caught_up(installed)
    assert service.stop() == 0


def test_a_table_that_leaves_the_publication_is_noticed(
    installed: str, archive_dir: str, make_service: MakeService
) -> None:
    service = make_service(installed, archive_dir, archive={"coverage_interval_s": 1}).start()
    service.wait_until_caught_up(installed)
    query(installed, "ALTER PUBLICATION cdc DROP TABLE outbox")
    query(installed, "CREATE TABLE unpublished AS SELECT generate_series(1, 1000)")

    assert service.wait() == PERSON
    assert "public.outbox was taken out of the publication" in service.failure()["reason"]
