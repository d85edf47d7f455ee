"""What the doctor finds on a real Postgres, made true first; and that the printed script mends it."""

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from cdc.doctor import slots
from cdc.embedded import PostgresServer
from tests.conftest import MakePostgres
from tests.support.cdc_process import needs_postgres, postgres_version, wait_until
from tests.support.clock import FAKETIME, shifted_environment
from tests.support.doctor_script import Pasted
from tests.support.proxy import Proxy
from tests.support.servers import CHOSEN_POSTGRES_BIN, TEST_SETTINGS, fresh_database
from tests.support.streaming import execute, fetch


@pytest.fixture(scope="module")
def server(server_dir: Path) -> Iterator[PostgresServer]:
    """Of this module: what the doctor's script changes is for the whole cluster."""
    with PostgresServer(server_dir / "doctor", settings=TEST_SETTINGS, bin_dir=CHOSEN_POSTGRES_BIN) as server:
        yield server


@pytest.fixture
def database(server: PostgresServer) -> Iterator[str]:
    with fresh_database(server) as dsn:
        yield dsn


@pytest.fixture
def pasted(database: str, archive_dir: str, redis_url: str, tmp_path: Path) -> Pasted:
    """The doctor of a database with sql/ installed, and a shell for what it prints."""
    return Pasted(tmp_path, database, archive_dir, redis_url, slot=f"cdc_{uuid4().hex[:12]}")


@pytest.fixture
def private(make_postgres: MakePostgres, archive_dir: str, redis_url: str, tmp_path: Path) -> Pasted:
    """The same with a server of its own, whose settings may be changed."""
    server = make_postgres()
    return Pasted(tmp_path, server.dsn(), archive_dir, redis_url, slot="cdc")


@pytest.mark.parametrize(
    ("made", "found"),
    [
        ("ALTER SYSTEM SET wal_sender_timeout = 0", "wal_sender_timeout is 0"),
        ("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'", "max_slot_wal_keep_size is only 1MB"),
        ("ALTER SYSTEM SET max_slot_wal_keep_size = '2000TB'", "is more than the disk of the WAL has free"),
        ("ALTER SYSTEM SET max_slot_wal_keep_size = -1", "max_slot_wal_keep_size is unlimited"),
        ("ALTER SYSTEM SET idle_replication_slot_timeout = '1d'", "idle_replication_slot_timeout 1d"),
        (
            "ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'; ALTER SYSTEM SET wal_keep_size = '2GB'",
            "wal_keep_size 2GB is more than max_slot_wal_keep_size 1GB",
        ),
    ],
)
def test_a_setting_that_hurts_later_is_found_and_mended(private: Pasted, made: str, found: str) -> None:
    if made.startswith("ALTER SYSTEM SET idle_replication_slot_timeout"):
        needs_postgres(private.dsn, 18)
    execute(private.dsn, *made.split("; "), "SELECT pg_reload_conf()")
    time.sleep(0.2)
    private.assert_mended(found, optional=found.startswith("wal_keep_size"))


def test_a_full_house_of_slots_is_found_before_it_is_full(
    make_postgres: MakePostgres, archive_dir: str, redis_url: str, tmp_path: Path
) -> None:
    server = make_postgres(settings={"max_replication_slots": "2", "max_wal_senders": "1"})
    pasted = Pasted(tmp_path, server.dsn(), archive_dir, redis_url, slot="cdc")
    execute(server.dsn(), "SELECT pg_create_physical_replication_slot('standby')")
    assert pasted.finds("1 of 2 replication slots are in use")
    assert pasted.finds("0 of 1 WAL senders are in use")
    pasted.paste()
    for setting in ("max_replication_slots", "max_wal_senders"):
        server.settings.pop(setting)
    server.restart()
    assert not pasted.finds("slots are in use; a repair")
    assert not pasted.finds("WAL senders are in use")


def test_what_was_spilled_is_found_and_more_memory_is_offered(private: Pasted) -> None:
    execute(private.dsn, "ALTER SYSTEM SET logical_decoding_work_mem = '64kB'", "SELECT pg_reload_conf()")
    execute(private.dsn, "SELECT pg_create_logical_replication_slot('cdc', 'pgoutput')")
    fill = "INSERT INTO public.outbox (event_type, idempotency_key, payload) SELECT 'e', n::text, '{}'"
    execute(private.dsn, f"{fill} FROM generate_series(1, 5000) n")
    peek = "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('cdc', NULL, NULL, {})"
    execute(private.dsn, peek.format("'proto_version', '1', 'publication_names', 'cdc'"))
    spilled = "did not fit into logical_decoding_work_mem (64kB)"
    wait_until(lambda: private.finds(spilled), "the server's statistics have it")
    private.assert_mended(spilled, optional=True)


@pytest.mark.parametrize(
    ("made", "found", "optional"),
    [
        ("CREATE TABLE public.notes (id int PRIMARY KEY)", "public.notes is not published", True),
        (
            "CREATE TABLE public.bare (id int)",
            "public.bare is not published: it is in neither archive nor cache, and",
            True,
        ),
        ('CREATE TABLE public."odd ""name" (id int)', 'public.odd "name is not published', True),
        ("CREATE UNLOGGED TABLE public.scratch (id int PRIMARY KEY)", "public.scratch is unlogged", True),
        (
            "CREATE TABLE public.bare (id int); ALTER PUBLICATION cdc ADD TABLE public.bare",
            "public.bare has no usable replica identity",
            False,
        ),
        ("ALTER PUBLICATION cdc SET (publish = 'insert, update')", "does not publish delete, truncate", False),
        ("ALTER PUBLICATION cdc DROP TABLE public.turns", "reads public.turns, which is not published", False),
        (
            "ALTER TABLE public.turns REPLICA IDENTITY DEFAULT",
            "needs session_hash of deleted and updated rows",
            False,
        ),
        (
            "ALTER TABLE public.turns REPLICA IDENTITY DEFAULT",
            "an UPDATE of public.turns does not send a long value",
            False,
        ),
        (
            "ALTER PUBLICATION cdc SET TABLE public.turns, public.outbox WHERE (id > 5)",
            "public.outbox has a row filter",
            True,
        ),
        (
            "ALTER PUBLICATION cdc SET TABLE public.turns, public.outbox (id, payload)",
            "public.outbox is published without event_type, idempotency_key, aggregate_id, created_at",
            True,
        ),
        (
            "CREATE TABLE public.parted (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE public.first "
            "PARTITION OF public.parted DEFAULT; ALTER PUBLICATION cdc ADD TABLE public.parted; "
            "ALTER PUBLICATION cdc SET (publish_via_partition_root = true)",
            "does not publish TRUNCATE of a single partition",
            True,
        ),
    ],
)
def test_what_is_wrong_with_what_is_published_is_found_and_mended(
    pasted: Pasted, made: str, found: str, optional: bool
) -> None:
    if made.startswith("ALTER PUBLICATION cdc SET TABLE"):
        needs_postgres(pasted.dsn, 15)
    execute(pasted.dsn, *made.split("; "))
    pasted.assert_mended(found, optional=optional)


def test_generated_columns_that_are_not_published_are_named_and_mended_where_that_can_be(pasted: Pasted) -> None:
    found = "generated columns of public.outbox are not published: kind"
    execute(
        pasted.dsn,
        "ALTER TABLE public.outbox ADD COLUMN kind text GENERATED ALWAYS AS (lower(event_type)) STORED",
    )
    assert pasted.finds(found)
    if postgres_version(pasted.dsn) >= 18:  # before, Postgres can publish none
        pasted.assert_mended(found, optional=True)


def test_partitions_and_the_tables_of_extensions_are_not_named_beside_their_roots(pasted: Pasted) -> None:
    execute(
        pasted.dsn,
        "CREATE TABLE public.parted (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE public.first PARTITION OF public.parted DEFAULT",
    )
    assert pasted.finds("public.parted is not published")
    assert not pasted.finds("public.first")
    execute(pasted.dsn, "ALTER PUBLICATION cdc ADD TABLE public.parted")
    assert not pasted.finds("is not published")


def test_a_role_without_rights_gets_them(private: Pasted) -> None:
    execute(
        private.dsn,
        'CREATE ROLE "Odd Role" LOGIN',
        'GRANT pg_read_all_stats TO "Odd Role"',
        "CREATE SCHEMA closed",
        "CREATE TABLE closed.notes (id int PRIMARY KEY)",
        "ALTER PUBLICATION cdc ADD TABLE closed.notes",
        "ALTER TABLE closed.notes ENABLE ROW LEVEL SECURITY",
    )
    private.cdc.settings["CDC_POSTGRES__DSN"] = private.dsn.replace("//postgres@", "//Odd%20Role@")
    assert private.finds('role "Odd Role" may not replicate')
    assert private.finds('row-level security hides rows of closed.notes from role "Odd Role"')
    private.assert_mended('role "Odd Role" may not read public.turns, public.outbox, closed.notes')
    assert not private.finds("row-level security")
    assert private.finds('role "Odd Role" may replicate and is no superuser')


def test_a_database_without_an_encoding_is_named(
    make_postgres: MakePostgres, archive_dir: str, redis_url: str, tmp_path: Path
) -> None:
    server = make_postgres(encoding="SQL_ASCII")
    pasted = Pasted(tmp_path, server.dsn(), archive_dir, redis_url, slot="cdc")
    assert pasted.finds("the database is SQL_ASCII")
    assert "# by hand: dump it" in pasted.script()
    with fresh_database(server, encoding="UTF8") as dsn:
        assert not Pasted(tmp_path, dsn, archive_dir, redis_url, slot="cdc").finds("SQL_ASCII")


def test_somebody_elses_slot_is_found_and_dropped_only_if_a_person_wants_it(pasted: Pasted) -> None:
    name = f"old_{uuid4().hex[:8]}"
    execute(pasted.dsn, f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")
    found = f"slot {name}, not ours, is read by nobody"
    pasted.paste()
    assert pasted.finds(found)
    script = pasted.script()
    assert f"#? SELECT pg_drop_replication_slot('{name}');" in script
    execute(pasted.dsn, f"SELECT pg_drop_replication_slot('{name}')")
    assert not pasted.finds(found)


def test_transactions_that_are_open_for_long_are_found_and_ended(
    make_postgres: MakePostgres,
    archive_dir: str,
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = make_postgres(settings={"max_prepared_transactions": "5"})
    dsn = server.dsn()
    pasted = Pasted(tmp_path, dsn, archive_dir, redis_url, slot="cdc")
    monkeypatch.setattr(slots, "LONG_S", 0.5)
    write = "INSERT INTO public.outbox (event_type, idempotency_key, payload) VALUES ('e', %s, '{}')"
    with psycopg.connect(dsn, autocommit=True) as prepared:
        prepared.execute("BEGIN")
        prepared.execute(write, ["prepared"])
        prepared.execute("PREPARE TRANSACTION 'it''s late'")
    forgotten = psycopg.connect(dsn)
    forgotten.execute(write, ["open"])
    time.sleep(1)
    found = [one for one in pasted.findings() if "moves past it" in one.message]
    assert [one.level for one in found] == ["warning", "warning"]
    execute(dsn, *(one.sql for one in found))
    with pytest.raises(psycopg.errors.AdminShutdown):
        forgotten.execute("SELECT 1")
    forgotten.close()
    assert [one for one in pasted.findings() if "moves past it" in one.message] == []
    assert fetch(dsn, "SELECT count(*) FROM pg_prepared_xacts") == (0,)


def test_the_script_holds_no_secret(pasted: Pasted) -> None:
    execute(pasted.dsn, "CREATE TABLE public.bare (x int)", "ALTER PUBLICATION cdc ADD TABLE public.bare")
    pasted.cdc.settings["CDC_POSTGRES__DSN"] = re.sub(r"postgres@", "postgres:canary@", pasted.dsn)
    done = pasted.cdc("doctor", "--fix")
    assert done.returncode == 1
    assert "CDC_ADMIN_DSN" in done.stdout
    assert "canary" not in done.stdout
    assert pasted.cdc.facts("doctor")[0].keys() == {
        *("level", "subject", "message", "hint", "sql", "command", "optional")
    }


class Pooler(Proxy):
    """Answers with a process and a key of its own, as PgBouncer and pgcat do, so that it can route cancellations."""

    async def _send(self, piece: bytes, writer: asyncio.StreamWriter) -> None:
        head, key_data, rest = piece.partition(b"K\x00\x00\x00\x0c")
        await super()._send(
            head + key_data + (bytes(byte ^ 1 for byte in rest[:4]) + rest[4:] if key_data else b""), writer
        )


def test_a_pooler_on_the_way_is_an_error_and_a_plain_proxy_is_not(private: Pasted) -> None:
    port = int(private.dsn.rpartition(":")[2].partition("/")[0])
    for kind, found in ((Proxy, False), (Pooler, True)):
        with kind(port) as proxy:
            private.cdc.settings["CDC_POSTGRES__DSN"] = private.dsn.replace(f":{port}/", f":{proxy.port}/")
            assert private.finds("a pooler (PgBouncer, pgcat) stands between us and Postgres") == found


@pytest.mark.wide
def test_a_clock_that_is_wrong_is_told_of_all_neighbours(pasted: Pasted) -> None:
    if not FAKETIME.exists():
        pytest.skip("needs libfaketime (Debian: faketime)")
    assert pasted.finds("Postgres has our time")
    found = [
        one
        for one in pasted.cdc.facts("doctor", **shifted_environment("+1h"))
        if "behind this machine" in one["message"]
    ]
    assert [(one["level"], one["subject"]) for one in found] == [("warning", "postgres"), ("warning", "cache")]
    assert all("3600" in one["message"] or "3599" in one["message"] for one in found)


@pytest.mark.wide
def test_an_older_server_is_examined_too(debian_postgres: PostgresServer, archive_dir: str, tmp_path: Path) -> None:
    with fresh_database(debian_postgres) as dsn:
        pasted = Pasted(tmp_path, dsn, archive_dir, None, slot=f"cdc_{uuid4().hex[:12]}")
        execute(dsn, "CREATE TABLE public.notes (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED)")
        assert [one for one in pasted.findings() if one.level == "error"] == []
        assert pasted.finds("public.notes is not published")
        execute(dsn, "ALTER PUBLICATION cdc ADD TABLE public.notes")
        assert pasted.finds("generated columns of public.notes are not published: twice")
