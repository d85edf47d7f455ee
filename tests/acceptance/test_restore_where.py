"""`cdc restore --where`: one conversation as it was, beside the live tables, and every difference to what is live."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.acceptance.conftest import as_replicator
from tests.support.cdc_process import COMMAND, Service, install, query, run_cdc, wait_until
from tests.support.servers import PostgresAddress, fresh_database

pytestmark = pytest.mark.xdist_group("restore")

SCHEMA = """
CREATE TABLE notes (id int PRIMARY KEY, session_hash text, content text, n numeric);
ALTER TABLE notes ALTER content SET STORAGE EXTERNAL;
CREATE TABLE bag (session_hash text, j json);
ALTER TABLE bag REPLICA IDENTITY FULL;
CREATE TABLE emptied (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, session_hash char(5));
"""
TABLES = ("notes", "bag", "emptied")
EXISTED = """
INSERT INTO turns (domain, channel, session_hash, role, content)
    SELECT 'd', 'c', 's-' || n % 3, 'user', 'turn ' || n FROM generate_series(1, 30) AS n;
INSERT INTO notes SELECT n, 's-' || n % 3, repeat('x', 4000) || n, n FROM generate_series(1, 12) AS n;
INSERT INTO bag VALUES ('s-1', '{"a":  1}'), ('s-1', '{"a":  1}'), ('s-2', NULL);
INSERT INTO emptied (session_hash) VALUES ('s-1');
"""
CHANGED = (
    "UPDATE notes SET session_hash = 's-1' WHERE id = 2",  # enters, its content unsent
    "UPDATE notes SET session_hash = 's-2' WHERE id = 1",  # leaves
    "UPDATE notes SET id = 103 WHERE id = 3",
    "UPDATE notes SET id = 203, session_hash = 's-1' WHERE id = 103",  # enters under its third key
    "UPDATE notes SET n = 'NaN' WHERE id = 4",
    "UPDATE bag SET session_hash = 's-1' WHERE session_hash = 's-2'",
    "TRUNCATE emptied",
    "INSERT INTO emptied (session_hash) VALUES ('s-1'), ('s-2')",
    "DELETE FROM turns WHERE id = 4",
    "INSERT INTO outbox (event_type, idempotency_key, payload) VALUES ('e', 'k', '{}')",
)
AFTERWARDS = (
    "DELETE FROM turns WHERE session_hash = 's-1' AND id < 20",
    "UPDATE turns SET content = 'redacted', role = '' WHERE session_hash = 's-1' AND id = 22",
    "INSERT INTO turns (domain, channel, session_hash, role, content) VALUES ('d', 'c', 's-1', 'user', 'later')",
    "UPDATE notes SET session_hash = 's-0' WHERE id = 4",
    "DELETE FROM emptied",
    "DELETE FROM bag WHERE ctid = (SELECT ctid FROM bag LIMIT 1)",
    "INSERT INTO bag VALUES ('s-1', '[]')",
)


class Conversation:
    """A live database whose history up to `ordinal` is all in the archive, and that was changed since."""

    def __init__(self, dsn: str, directory: Path) -> None:
        self.dsn = dsn
        install(dsn)
        for statement in (SCHEMA, EXISTED):
            query(dsn, statement)
        query(dsn, f"GRANT SELECT ON {', '.join(TABLES)} TO cdc_reader")
        query(dsn, f"ALTER PUBLICATION cdc ADD TABLE {', '.join(TABLES)}")
        url = (directory / "archive").as_uri()
        self.service = Service(directory, dsn=as_replicator(dsn), archive_url=url)
        with self.service:
            self.service.wait_until_archived(dsn)
            for statement in CHANGED:
                query(dsn, statement)
            self.then = {table: self.rows(table) for table in ("turns", *TABLES)}
            self.service.wait_until_archived(dsn)
            self.ordinal = len(CHANGED)
            for statement in AFTERWARDS:
                query(dsn, statement)
            self.service.wait_until_archived(dsn)
            assert self.service.stop() == 0
        listed = self.service.command("archive", "cat").stdout.splitlines()
        events = [line for line in map(json.loads, listed) if line.get("table") == "public.outbox"]
        self.ordinal = events[-1]["ord"]
        self.time = events[-1]["time"]

    def rows(self, table: str) -> list[Any]:
        condition = "WHERE session_hash = 's-1'"
        return query(self.dsn, f"SELECT t::text FROM {table} AS t {condition} ORDER BY 1")

    def command(self, *options: str, into: str = "") -> list[str]:
        config = str(self.service.config_file)
        return ["restore", "--config", config, "--into", into or self.dsn, *options]

    def restore(self, *options: str, into: str = "") -> Any:
        done = run_cdc(*self.command(*options, "--json", into=into))
        assert done.returncode == 0, done.stderr
        return {table["table"]: table for table in json.loads(done.stdout)["tables"]} | {"": json.loads(done.stdout)}


@pytest.fixture(scope="module")
def stand(postgres_server: PostgresAddress, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conversation]:
    with fresh_database(postgres_server) as dsn:
        yield Conversation(dsn, tmp_path_factory.mktemp("conversation"))


@pytest.fixture
def conversation(stand: Conversation) -> Iterator[Conversation]:
    yield stand
    query(stand.dsn, "DROP SCHEMA IF EXISTS cdc_restored CASCADE")


def restored(stand: Conversation, table: str, into: str = "") -> list[Any]:
    return query(into or stand.dsn, f"SELECT t::text FROM cdc_restored.{table} AS t ORDER BY 1")


def test_in_the_live_database_the_rows_are_those_of_then(conversation: Conversation) -> None:
    stand = conversation
    told = stand.restore("--where", "session_hash=s-1", "--to-ordinal", str(stand.ordinal))
    assert restored(stand, "turns") == stand.then["turns"]
    assert restored(stand, "notes") == stand.then["notes"]
    assert restored(stand, "bag") == stand.then["bag"]
    assert told["public.notes"]["rows"] == len(stand.then["notes"]) == 5
    assert told[""]["left_out"] == ["public.outbox"]
    assert told[""]["passes"] == 3  # row 203 was 103, and that was 3


def test_every_difference_to_the_live_tables_is_named(conversation: Conversation) -> None:
    told = conversation.restore("--where", "session_hash=s-1", "--to-ordinal", str(conversation.ordinal))
    turns = told["public.turns"]
    assert [turns[kind] for kind in ("missing_live", "only_live", "unequal")] == [6, 1, 1]
    assert {"kind": "unequal", "key": {"id": "22"}, "columns": ["role", "content"]} in turns["differences"]
    assert {"kind": "only live", "key": {"id": "31"}, "columns": []} in turns["differences"]
    assert told["public.notes"]["differences"] == [{"kind": "unequal", "key": {"id": "4"}, "columns": ["session_hash"]}]
    assert [told["public.bag"][kind] for kind in ("missing_live", "only_live")] == [1, 1]


def test_the_hint_puts_the_rows_back(conversation: Conversation) -> None:
    stand = conversation
    told = stand.restore("--where", "session_hash=s-1", "--to-ordinal", str(stand.ordinal))
    with psycopg.connect(stand.dsn) as connection:
        for table in ("turns", "emptied"):
            connection.execute(told[f"public.{table}"]["put_back"].encode())
        beside = "SELECT t::text FROM cdc_restored.turns AS t EXCEPT SELECT t::text FROM public.turns AS t"
        assert connection.execute(beside.encode()).rowcount == 1  # the unequal one stays as it is live
        assert connection.execute("TABLE cdc_restored.emptied EXCEPT TABLE public.emptied").fetchall() == []
        connection.rollback()
    assert told["public.bag"]["put_back"] == ""


def test_for_people_there_is_a_table_and_no_value_but_keys(conversation: Conversation) -> None:
    done = run_cdc(*conversation.command("--where", "session_hash=s-1", "--to-time", conversation.time))
    assert done.returncode == 0, done.stderr
    assert "missing live" in done.stdout.splitlines()[0]
    assert "  public.turns id=22: unequal in role, content" in done.stdout
    assert "left out: public.outbox" in done.stdout
    assert 'hint: INSERT INTO "public"."turns"' in done.stdout
    assert "redacted" not in done.stdout + done.stderr
    assert done.stderr == ""


def test_conditions_are_all_true_and_null_is_asked_for_by_is_null(conversation: Conversation) -> None:
    where = ("--where", "session_hash=s-1", "--where", "j IS NULL")
    told = conversation.restore(*where, "--to-ordinal", str(conversation.ordinal))
    assert told["public.bag"]["rows"] == 1
    assert set(told) == {"", "public.bag"}


def test_values_are_compared_as_postgres_prints_them(conversation: Conversation) -> None:
    told = conversation.restore("--where", "n=NaN", "--dry-run")
    assert told["public.notes"]["rows"] == 1
    assert query(conversation.dsn, "SELECT to_regnamespace('cdc_restored') IS NULL") == [(True,)]
    told = conversation.restore("--where", "session_hash=s-1  ", "--to-ordinal", str(conversation.ordinal))
    assert (told["public.emptied"]["rows"], told["public.emptied"]["missing_live"]) == (1, 1)
    assert told["public.turns"]["rows"] == 0


def test_nothing_that_a_publication_of_all_tables_publishes_is_made(conversation: Conversation) -> None:
    stand = conversation
    query(stand.dsn, "CREATE PUBLICATION everything FOR ALL TABLES")
    try:
        stand.restore("--where", "session_hash=s-1")
        published = "SELECT count(*) FROM pg_publication_tables WHERE schemaname = 'cdc_restored'"
        assert query(stand.dsn, published) == [(0,)]
    finally:
        query(stand.dsn, "DROP PUBLICATION everything")


def test_in_another_database_without_the_tables_there_is_nothing_to_compare(
    conversation: Conversation, postgres_server: PostgresAddress
) -> None:
    with fresh_database(postgres_server) as into:
        told = conversation.restore("--where", "session_hash=s-1", "--to-ordinal", str(conversation.ordinal), into=into)
        assert restored(conversation, "turns", into) == conversation.then["turns"]
        assert (told["public.turns"]["live"], told["public.turns"]["differences"]) == (False, [])
        logged = "SELECT DISTINCT relpersistence FROM pg_class WHERE relnamespace = 'cdc_restored'::regnamespace"
        assert query(into, logged) == [("p",)]


def test_a_live_table_that_has_changed_its_columns_is_compared_in_those_that_both_have(
    conversation: Conversation, postgres_server: PostgresAddress
) -> None:
    with fresh_database(postgres_server) as into:
        query(into, "CREATE TABLE notes (id bigint PRIMARY KEY, content text, extra int)")
        query(into, "CREATE TABLE emptied (id int PRIMARY KEY, session_hash int)")
        query(into, "INSERT INTO notes VALUES (2, 'other'), (999, '')")
        told = conversation.restore("--where", "session_hash=s-1", "--to-ordinal", str(conversation.ordinal), into=into)
        assert {"kind": "unequal", "key": {"id": "2"}, "columns": ["content"]} in told["public.notes"]["differences"]
        assert (told["public.notes"]["missing_live"], told["public.notes"]["only_live"]) == (4, 0)


def test_killed_in_the_middle_it_leaves_nothing_and_is_given_again(conversation: Conversation) -> None:
    stand = conversation
    with psycopg.connect(stand.dsn) as holder:
        holder.execute("CREATE SCHEMA cdc_restored")  # uncommitted: whoever creates it too waits
        process = subprocess.Popen([*COMMAND, *stand.command("--where", "session_hash=s-1")])
        waiting = (
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'waltier restore'"
            " AND wait_event_type = 'Lock'"
        )
        try:
            wait_until(lambda: bool(query(stand.dsn, waiting)[0][0]), "the restore held")
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        holder.rollback()
    gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'waltier restore'"
    wait_until(lambda: bool(query(stand.dsn, gone)[0][0]), "the killed restore's session gone")
    assert query(stand.dsn, "SELECT to_regnamespace('cdc_restored') IS NULL") == [(True,)]
    stand.restore("--where", "session_hash=s-1")


def test_a_schema_with_anything_in_it_is_refused(conversation: Conversation) -> None:
    conversation.restore("--where", "session_hash=s-1")
    for schema, said in (
        ("cdc_restored", "waltier: rows restored from archive"),
        ("public", "not made by cdc restore"),
    ):
        done = run_cdc(*conversation.command("--where", "session_hash=s-1", "--schema", schema))
        assert done.returncode == 2
        assert f"schema {schema} is in the target already, and not empty" in done.stderr
        assert said in done.stderr
    conversation.restore("--where", "session_hash=s-2", "--schema", "other")
    query(conversation.dsn, "DROP SCHEMA other CASCADE")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--where", "nothing"), "a condition of --where cannot be read"),
        (("--where", "=1"), "a condition of --where cannot be read"),
        (("--where", "id=1", "--where", "id=2"), "names column id twice"),
        (("--where", "nowhere=1"), "no table has a column nowhere"),
        (("--where", "session_hash=1", "--table", "public.outbox"), "--table public.turns"),
        (("--where", "session_hash=1", "--table", "public.nothing"), "the archive has no table public.nothing"),
        (("--schema", "other"), "--schema belongs to --where"),
    ],
)
def test_a_where_that_cannot_be_meant_is_refused(
    conversation: Conversation, options: tuple[str, ...], message: str
) -> None:
    done = run_cdc(*conversation.command(*options))
    assert done.returncode == 2
    assert message in done.stderr


def test_a_partitioned_table_is_one_table_and_row_security_hides_nothing_from_a_superuser(
    postgres_server: PostgresAddress, tmp_path: Path
) -> None:
    with fresh_database(postgres_server) as dsn:
        install(dsn)
        query(dsn, "CREATE TABLE parted (id int PRIMARY KEY, session_hash text) PARTITION BY RANGE (id)")
        query(dsn, "CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (10)")
        query(dsn, "CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (10) TO (20)")
        query(dsn, "CREATE TABLE guarded (id int PRIMARY KEY, session_hash text)")
        query(dsn, "ALTER TABLE guarded ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        query(dsn, "GRANT SELECT ON parted, guarded TO cdc_reader")
        query(dsn, "ALTER PUBLICATION cdc SET (publish_via_partition_root = true)")
        query(dsn, "ALTER PUBLICATION cdc ADD TABLE parted")
        where_to = {"archive_url": (tmp_path / "archive").as_uri(), "postgres": {"slot": "cdc_parted"}}
        with Service(tmp_path, dsn=as_replicator(dsn), **where_to) as service:  # type: ignore[arg-type]
            service.wait_until_archived(dsn)
            query(dsn, "ALTER PUBLICATION cdc ADD TABLE guarded")  # now: its rows could not be copied
            service.wait_until_archived(dsn)
            for table in ("parted", "guarded"):
                query(dsn, f"INSERT INTO {table} SELECT n, 's-' || n % 2 FROM generate_series(1, 19) AS n")
                query(dsn, f"UPDATE {table} SET id = 0 WHERE id = 19")
            service.wait_until_archived(dsn)
            cat = service.command("archive", "cat").stdout
            then = str(json.loads(cat.splitlines()[-1])["ord"])
            command = ["restore", "--config", str(service.config_file), "--where", "session_hash=s-1", "--json"]
            query(dsn, "DELETE FROM parted WHERE id = 15")
            query(dsn, "DELETE FROM guarded WHERE id = 15")
            service.wait_until_archived(dsn)
        done = run_cdc(*command, "--to-ordinal", then, "--into", dsn, check=True)
        told = {table["table"]: table for table in json.loads(done.stdout)["tables"]}
        for table in ("parted", "guarded"):
            found = told[f"public.{table}"]
            assert [found[kind] for kind in ("rows", "missing_live", "only_live", "unequal")] == [10, 1, 0, 0]
            assert query(dsn, f"SELECT count(*) FROM cdc_restored.{table}") == [(10,)]
