"""sql/ on a real server: applied twice it changes nothing, rows stay, each role may do what it needs and no more."""

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import conninfo

from cdc.embedded import PostgresServer
from cdc.errors import Invalid, Unavailable
from cdc.postgres.install import apply, read_sql
from tests.conftest import MakePostgres
from tests.support.clock import SHIFTED
from tests.support.servers import fresh_database

NAMES = ["01_turns.sql", "02_outbox.sql", "03_publication.sql", "04_roles.sql"]
MINIMAL_TURN = (
    "INSERT INTO turns (domain, channel, session_hash, role, content) VALUES ('shop', 'web', 's1', 'user', 'hello')"
)
MINIMAL_EVENT = "INSERT INTO outbox (event_type, idempotency_key, payload) VALUES ('turn_added', 'k1', '{}')"


def _as(dsn: str, role: str) -> str:
    return conninfo.make_conninfo(dsn, user=role)


@contextmanager
def _connect(dsn: str, **options: Any) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True, **options) as connection:
        yield connection


def _dump(bin_dir: Path, dsn: str) -> list[str]:
    """The whole schema and the roles, without the lines that differ each time."""
    schema = subprocess.run([bin_dir / "pg_dump", "--schema-only", dsn], check=True, capture_output=True, text=True)
    roles = subprocess.run(
        [bin_dir / "pg_dumpall", "--roles-only", "-d", dsn], check=True, capture_output=True, text=True
    )
    lines = (schema.stdout + roles.stdout).splitlines()
    return [line for line in lines if not line.startswith(("\\restrict", "\\unrestrict", "-- Started", "-- Completed"))]


async def _applying_twice_changes_nothing(server: PostgresServer) -> None:
    with fresh_database(server) as dsn:
        assert await apply(dsn) == NAMES
        with _connect(dsn) as connection:
            connection.execute("CREATE TABLE mine (id int PRIMARY KEY)")
            connection.execute("ALTER PUBLICATION cdc ADD TABLE mine")
            connection.execute(MINIMAL_TURN)
            connection.execute(MINIMAL_EVENT)
            before = _dump(server.bin_dir, dsn), connection.execute("SELECT xmin, * FROM turns").fetchall()
            assert any("CREATE PUBLICATION cdc" in line for line in before[0])
            assert await apply(dsn) == NAMES
            after = _dump(server.bin_dir, dsn), connection.execute("SELECT xmin, * FROM turns").fetchall()
        assert after == before


async def test_applying_twice_changes_nothing_and_rows_and_added_tables_stay(make_postgres: MakePostgres) -> None:
    await _applying_twice_changes_nothing(make_postgres())


@pytest.mark.wide
async def test_applying_twice_changes_nothing_on_debians_postgres(debian_postgres: PostgresServer) -> None:
    await _applying_twice_changes_nothing(debian_postgres)


async def test_two_operators_at_once_both_succeed(database: str) -> None:
    assert await asyncio.gather(*(apply(database) for _ in range(4))) == [NAMES] * 4


async def test_applying_again_does_not_wait_for_an_application_that_writes(database: str) -> None:
    await apply(database)
    with psycopg.connect(database) as writer:
        writer.execute(MINIMAL_TURN)
        assert await apply(database) == NAMES
        writer.rollback()


async def test_an_application_gives_only_the_columns_it_knows(database: str) -> None:
    await apply(database)
    with _connect(database) as connection:
        connection.execute(MINIMAL_TURN)
        connection.execute(MINIMAL_EVENT)
        turn = connection.execute(
            "SELECT id, turn_id IS NOT NULL, confidence, state, metadata, redaction_version, created_at <= now() "
            "FROM turns"
        ).fetchone()
        event = connection.execute("SELECT id, aggregate_id, created_at <= now() FROM outbox").fetchone()
    assert turn == (1, True, None, None, {}, 0, True)
    assert event == (1, None, True)


async def test_an_event_cannot_be_told_twice(database: str) -> None:
    await apply(database)
    with _connect(database) as connection:
        connection.execute(MINIMAL_EVENT)
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute(MINIMAL_EVENT)


async def test_a_restore_can_put_back_the_numbers_of_old(database: str) -> None:
    await apply(database)
    with _connect(database) as connection:
        connection.execute(MINIMAL_TURN.replace("(domain", "(id, domain").replace("('shop'", "(4711, 'shop'"))
        assert connection.execute("SELECT id FROM turns").fetchall() == [(4711,)]


async def test_turns_send_their_old_rows_and_events_their_keys(database: str) -> None:
    await apply(database)
    with _connect(database) as connection:
        found = connection.execute(
            "SELECT relname, relreplident::text FROM pg_class WHERE relname IN ('turns', 'outbox') ORDER BY 1"
        ).fetchall()
    assert found == [("outbox", "d"), ("turns", "f")]


async def test_the_replicator_streams_and_copies_what_is_published(database: str) -> None:
    await apply(database)
    dsn = _as(database, "cdc_replicator")
    with _connect(database) as admin:
        admin.execute(MINIMAL_TURN)
    with _connect(conninfo.make_conninfo(dsn, replication="database")) as replication:
        slot = replication.execute("CREATE_REPLICATION_SLOT cdc LOGICAL pgoutput EXPORT_SNAPSHOT").fetchone()
        assert slot is not None
        with psycopg.connect(dsn) as reader:
            reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            reader.execute(f"SET TRANSACTION SNAPSHOT '{slot[2]}'")
            for table in ("turns", "outbox"):
                with reader.cursor().copy(f"COPY public.{table} TO STDOUT") as copy:
                    assert len(list(copy)) == (1 if table == "turns" else 0)
            assert reader.execute("SELECT active FROM pg_replication_slots WHERE slot_name = 'cdc'").fetchone() == (
                False,
            )
            assert reader.execute("SELECT system_identifier > 0 FROM pg_control_system()").fetchone() == (True,)


WRITES = [
    MINIMAL_TURN,
    "UPDATE turns SET content = 'x'",
    "DELETE FROM outbox",
    "TRUNCATE turns",
    "ALTER PUBLICATION cdc DROP TABLE turns",
    "DROP TABLE outbox",
    "CREATE ROLE another",
]


@pytest.mark.parametrize("statement", WRITES)
@pytest.mark.parametrize("role", ["cdc_reader", "cdc_replicator"])
async def test_neither_role_changes_anything(database: str, role: str, statement: str) -> None:
    await apply(database)
    with _connect(_as(database, role)) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement)


@pytest.mark.parametrize("role", ["cdc_reader", "cdc_replicator"])
async def test_neither_role_reads_a_table_that_is_not_published(database: str, role: str) -> None:
    await apply(database)
    with _connect(database) as admin:
        admin.execute("CREATE TABLE secrets (id int PRIMARY KEY)")
    with _connect(_as(database, role)) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("SELECT * FROM secrets")


async def test_the_reader_reads_and_sees_what_holds_back_wal_but_cannot_replicate(database: str) -> None:
    await apply(database)
    dsn = _as(database, "cdc_reader")
    with psycopg.connect(database) as writer:
        writer.execute(MINIMAL_TURN)
        with _connect(dsn) as connection:
            assert connection.execute("SELECT count(*) FROM turns").fetchone() == (0,)
            assert connection.execute("SELECT count(*) FROM pg_replication_slots").fetchone() is not None
            since = connection.execute(
                "SELECT xact_start FROM pg_stat_activity WHERE pid = %s", [writer.info.backend_pid]
            ).fetchone()
            assert since is not None
            assert since[0] is not None
            for statement in (
                "SELECT pg_create_logical_replication_slot('mine', 'pgoutput')",
                "SELECT pg_drop_replication_slot('cdc')",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement)
        writer.rollback()
    with pytest.raises(psycopg.OperationalError, match=r"(?i)replication"):
        psycopg.connect(conninfo.make_conninfo(dsn, replication="database"))


async def test_the_roles_have_no_attribute_but_those_they_need(database: str) -> None:
    await apply(database)
    with _connect(database) as connection:
        found = connection.execute(
            "SELECT rolname, rolcanlogin, rolreplication, rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, "
            "rolpassword IS NOT NULL FROM pg_authid WHERE rolname LIKE 'cdc%' ORDER BY 1"
        ).fetchall()
    assert found == [
        ("cdc_reader", True, False, False, False, False, False, False),
        ("cdc_replicator", True, True, False, False, False, False, False),
    ]


async def test_a_role_without_privileges_is_told_who_may(database: str) -> None:
    with _connect(database) as connection:
        connection.execute("DROP ROLE IF EXISTS nobody_much")
        connection.execute("CREATE ROLE nobody_much LOGIN")
    try:
        with pytest.raises(Invalid) as caught:
            await apply(_as(database, "nobody_much"))
        assert "cdc init --print" in caught.value.hint
        with _connect(database) as connection:
            assert connection.execute("SELECT to_regclass('public.turns')").fetchone() == (None,)
    finally:
        with _connect(database) as connection:
            connection.execute("DROP ROLE nobody_much")


async def test_a_turns_table_of_another_shape_is_left_alone_and_nothing_is_installed(database: str) -> None:
    with _connect(database) as connection:
        connection.execute("CREATE TABLE turns (number int PRIMARY KEY)")
        with pytest.raises(Invalid, match=r"01_turns\.sql"):
            await apply(database)
        assert connection.execute("SELECT count(*) FROM pg_publication").fetchone() == (0,)
        assert connection.execute("SELECT relreplident::text FROM pg_class WHERE relname = 'turns'").fetchone() == (
            "d",
        )


@pytest.mark.skipif(SHIFTED, reason="libfaketime 0.9.10 keeps Postgres's lock_timeout from ever ending")
async def test_a_lock_that_an_application_holds_is_not_waited_for_long(database: str) -> None:
    with psycopg.connect(database) as application:
        application.execute("CREATE TABLE turns (session_hash text, id int PRIMARY KEY)")
        application.commit()
        application.execute("INSERT INTO turns VALUES ('s1', 1)")
        with pytest.raises(Unavailable) as caught:
            await apply(database)
        application.rollback()
    assert "pg_stat_activity" in caught.value.hint


async def test_a_server_that_is_away_and_a_dsn_that_cannot_be_read_are_told_apart() -> None:
    with pytest.raises(Unavailable):
        await apply("postgresql://postgres@127.0.0.1:1/postgres")
    with pytest.raises(Invalid):
        await apply("this is not a dsn")


def test_no_file_holds_a_password() -> None:
    for file in read_sql():
        statements = [line for line in file.text.splitlines() if not line.lstrip().startswith("--")]
        assert "password" not in "\n".join(statements).lower()
