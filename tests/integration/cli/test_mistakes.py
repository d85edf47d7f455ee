"""What an operator can get wrong, tried: each mistake ends `cdc run` with its exit code, a clear reason and a hint."""

import json
import signal
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.conftest import MakePostgres
from tests.support.cdc_process import Command
from tests.support.s3 import S3Server
from tests.support.servers import PostgresAddress, fresh_database


@pytest.fixture
def cdc(database: str, archive_dir: str, tmp_path: Path) -> Command:
    command = Command(
        {
            "CDC_POSTGRES__DSN": database,
            "CDC_POSTGRES__ALLOW_INSECURE": "true",
            "CDC_POSTGRES__SLOT": f"cdc_{uuid4().hex[:12]}",
            "CDC_ARCHIVE__URL": archive_dir,
        },
        tmp_path,
    )
    assert command("init").returncode == 0
    return command


def refusal(cdc: Command, exit_code: int, **settings: str) -> dict[str, Any]:
    """What `cdc run` says with its last line."""
    done = cdc("run", **settings)
    assert done.returncode == exit_code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    last: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
    assert (last["event"], last["level"], last["exit_code"]) == ("service_failed", "error", exit_code)
    assert last["hint"]
    return last


def execute(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement.encode())


def test_a_missing_publication(cdc: Command) -> None:
    said = refusal(cdc, 2, CDC_POSTGRES__PUBLICATION="nothing")
    assert said["reason"] == "publication nothing does not exist"
    assert said["hint"].startswith('CREATE PUBLICATION "nothing"')


def test_a_table_without_a_key(cdc: Command, database: str) -> None:
    execute(database, "CREATE TABLE public.bare (x int)")
    execute(database, "ALTER PUBLICATION cdc ADD TABLE public.bare")
    said = refusal(cdc, 2)
    assert "public.bare has no usable replica identity" in said["reason"]
    assert 'ALTER TABLE "public"."bare" REPLICA IDENTITY FULL' in said["hint"]


def test_a_projection_of_a_table_that_is_not_published(cdc: Command, redis_url: str) -> None:
    projections = '[{"kind":"row","table":"public.nowhere","key":"x:{id}"}]'
    said = refusal(cdc, 2, CDC_CACHE__URL=redis_url, CDC_CACHE__PROJECTIONS=projections)
    assert "reads public.nowhere, which is not published" in said["reason"]
    assert 'ADD TABLE "public"."nowhere"' in said["hint"]


def test_a_server_with_wal_level_replica(cdc: Command, make_postgres: MakePostgres) -> None:
    server = make_postgres(settings={"wal_level": "replica"})
    said = refusal(cdc, 2, CDC_POSTGRES__DSN=server.dsn())
    assert "wal_level is not logical" in said["reason"]
    assert "ALTER SYSTEM SET wal_level = logical" in said["hint"]


def test_a_database_that_does_not_exist(cdc: Command, postgres_server: PostgresAddress) -> None:
    said = refusal(cdc, 2, CDC_POSTGRES__DSN=postgres_server.dsn(database="nowhere"))
    assert "the database named in postgres.dsn does not exist" in said["reason"]


def test_a_role_that_does_not_exist(cdc: Command, postgres_server: PostgresAddress) -> None:
    said = refusal(cdc, 2, CDC_POSTGRES__DSN=postgres_server.dsn(user="nobody_here"))
    assert "postgres.dsn" in said["reason"] + said["hint"]


def test_a_dsn_that_is_none(cdc: Command) -> None:
    done = cdc("run", CDC_POSTGRES__DSN="hunter2")
    assert done.returncode == 2
    assert "postgres.dsn (from CDC_POSTGRES__DSN): is neither a postgresql:// address" in done.stderr
    assert "hunter2" not in done.stderr


def test_a_dsn_that_libpq_refuses_is_not_quoted(cdc: Command) -> None:
    said = refusal(cdc, 2, CDC_POSTGRES__DSN="postgresql://cdc:hunter2%@localhost/chat")
    assert said["reason"] == "postgres.dsn is not a connection string"
    assert "hunter2" not in json.dumps(said)


def test_a_remote_host_without_verification(cdc: Command) -> None:
    dsn, insecure = "postgresql://cdc@db.example.net/chat", "false"
    said = refusal(cdc, 2, CDC_POSTGRES__DSN=dsn, CDC_POSTGRES__ALLOW_INSECURE=insecure)
    assert "without sslmode=verify-full: db.example.net" in said["reason"]
    assert "?sslmode=verify-full" in said["hint"]


def test_an_archive_directory_that_cannot_be(cdc: Command) -> None:
    said = refusal(cdc, 2, CDC_ARCHIVE__URL="file:///dev/null/archive")
    assert "the archive's directory cannot be used" in said["reason"]


def on(s3: S3Server, url: str) -> dict[str, str]:
    return {**s3.environment, "CDC_ARCHIVE__URL": url, "CDC_ARCHIVE__ENDPOINT_URL": s3.endpoint_url}


def test_a_bucket_that_does_not_exist(cdc: Command) -> None:
    with S3Server() as s3:
        said = refusal(cdc, 2, **on(s3, "s3://nowhere/chat"))
    assert "s3://nowhere/chat refuses: NoSuchBucket" in said["reason"]


def test_credentials_that_the_bucket_does_not_know(cdc: Command) -> None:
    with S3Server() as s3:
        said = refusal(cdc, 2, **on(s3, "s3://archive/chat") | {"AWS_ACCESS_KEY_ID": "somebody"})
    assert "s3://archive/chat refuses" in said["reason"]


def test_a_bucket_that_overwrites(cdc: Command) -> None:
    with S3Server(mode="plain") as s3:
        s3.ignore_if_none_match = True
        said = refusal(cdc, 2, **on(s3, "s3://archive/chat"))
    assert "overwrites objects that it was asked only to create" in said["reason"]
    assert "use a store with conditional writes" in said["hint"]


def test_the_archive_of_another_database(cdc: Command, postgres_server: PostgresAddress) -> None:
    with cdc.running():
        cdc.wait_until(lambda: cdc("status").returncode == 0)
    with fresh_database(postgres_server) as other:
        assert cdc("init", CDC_POSTGRES__DSN=other).returncode == 0
        said = refusal(cdc, 78, CDC_POSTGRES__DSN=other, CDC_POSTGRES__SLOT=f"cdc_{uuid4().hex[:12]}")
    assert "tells the history of another database" in said["reason"]
    assert "archive.url" in said["hint"]


def test_an_empty_archive_beside_a_slot(cdc: Command, database: str) -> None:
    slot = cdc.settings["CDC_POSTGRES__SLOT"]
    execute(database, f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")
    said = refusal(cdc, 78)
    assert "is empty" in said["reason"]
    assert "pg_drop_replication_slot" in said["hint"]


def test_a_slot_of_another_plugin(cdc: Command, database: str) -> None:
    with cdc.running():
        cdc.wait_until(lambda: cdc("status").returncode == 0)
    other = f"cdc_{uuid4().hex[:12]}"
    execute(database, f"SELECT pg_create_logical_replication_slot('{other}', 'test_decoding')")
    said = refusal(cdc, 2, CDC_POSTGRES__SLOT=other)
    assert "belongs to something else" in said["reason"]
    assert "postgres.slot" in said["hint"]


def test_a_postgres_that_is_away_is_waited_for_until_somebody_stops_us(cdc: Command) -> None:
    with cdc.running(CDC_POSTGRES__DSN="postgresql://postgres@127.0.0.1:1/chat") as service:
        cdc.wait_until(lambda: '"interrupted"' in cdc.log)
        said = next(json.loads(line) for line in cdc.log.splitlines() if '"interrupted"' in line)
        assert said["reason"] == "no server listens at this address"
        assert "postgres.dsn" in said["hint"]
        service.send_signal(signal.SIGTERM)
        assert service.wait(60) == 0


def test_a_redis_that_is_away_does_not_stop_the_archive(cdc: Command, database: str) -> None:
    with cdc.running(CDC_CACHE__URL="redis://127.0.0.1:1/0"):
        cdc.wait_until(lambda: "cache_unavailable" in cdc.log)
        said = next(json.loads(line) for line in cdc.log.splitlines() if "cache_unavailable" in line)
        assert said["reason"] == "Redis is away"
        assert said["hint"]
        cdc.wait_until(lambda: cdc("status").returncode == 0)
        execute(database, "INSERT INTO outbox (event_type, idempotency_key, payload) VALUES ('e', 'k', '{}')")
        cdc.wait_until(lambda: cdc.facts("status")["archive"]["transactions"] == 1)
