"""The DDL sentinel on a real server: schema changes arrive in order with rows, and no DDL of an application suffers."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import conninfo

from cdc.change import Change, LogicalMessage, RowChange
from cdc.config import PostgresSettings
from cdc.doctor.role import judge_ddl_sentinel
from cdc.embedded import PostgresServer
from cdc.errors import Invalid
from cdc.postgres.ddl_sentinel import drop_ddl_sentinel, read_ddl_sentinel
from cdc.postgres.install import apply, read_sql
from cdc.postgres.session import connect
from tests.conftest import MakePostgres
from tests.support.cdc_process import Command
from tests.support.servers import fresh_database
from tests.support.streaming import Consumer, consuming, execute, fetch, make_slot, settings_for

MINIMAL_TURN = (
    "INSERT INTO turns (domain, channel, session_hash, role, content) VALUES ('shop', 'web', 's1', 'user', 'hello')"
)
REVOKE_EMIT = """
SELECT format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', oid::regprocedure) FROM pg_proc
 WHERE proname = 'pg_logical_emit_message'
"""
TRIGGERS = "SELECT count(*) FROM pg_event_trigger WHERE evtname LIKE 'cdc%'"


@pytest.fixture
async def watched(database: str) -> str:
    """A database with `sql/` and the sentinel."""
    await apply(database, ddl_sentinel=True)
    return database


@pytest.fixture
async def consumer(watched: str) -> AsyncIterator[Consumer]:
    settings = settings_for(watched)
    make_slot(settings)
    async with consuming(settings) as consumer:
        yield consumer


def spell(change: Change) -> tuple[Any, ...]:
    """A change in a word or two; of a schema change its event, tag, and each object's type and name."""
    if isinstance(change, RowChange):
        return (change.op, change.relation.name)
    assert isinstance(change, LogicalMessage)
    assert change.transactional
    assert change.prefix == "cdc.ddl"
    said = json.loads(change.content)
    assert set(said) == {"event", "tag", "objects"}
    return (said["event"], said["tag"], *((one["type"], one["identity"]) for one in said["objects"]))


async def changes_of(consumer: Consumer, dsn: str, *statements: str) -> list[list[tuple[Any, ...]]]:
    """What the statements, each in a transaction of its own, put into the stream: the transactions that say something.

    An insert at the end marks the end.
    """
    execute(dsn, *statements, "INSERT INTO outbox (event_type, idempotency_key, payload) VALUES ('e', 'end', '{}')")
    found: list[list[tuple[Any, ...]]] = []
    while [("c", "outbox")] not in found:
        found += [[spell(change) for change in one.changes] for one in await consumer.take(1) if one.changes]
    return found[: found.index([("c", "outbox")])]


def altered(tag: str, *objects: tuple[str, str]) -> tuple[Any, ...]:
    return ("ddl_command_end", tag, *objects)


async def test_ddl_in_a_transaction_arrives_in_order_with_its_rows(watched: str, consumer: Consumer) -> None:
    with psycopg.connect(watched) as application:
        application.execute(MINIMAL_TURN)
        application.execute("ALTER TABLE turns ADD COLUMN mood text DEFAULT 'calm'")
        application.execute(MINIMAL_TURN)
        application.execute("SAVEPOINT before")
        application.execute("ALTER TABLE turns DROP COLUMN mood")
        application.execute("ROLLBACK TO before")
        application.execute("CREATE INDEX turns_mood ON turns (mood)")
        application.execute(MINIMAL_TURN)
    (transaction,) = await changes_of(consumer, watched)
    assert transaction == [
        ("c", "turns"),
        altered("ALTER TABLE", ("table", "public.turns")),
        ("c", "turns"),
        altered("CREATE INDEX", ("index", "public.turns_mood")),
        ("c", "turns"),
    ]


async def test_ddl_that_is_rolled_back_does_not_arrive(watched: str, consumer: Consumer) -> None:
    with psycopg.connect(watched) as application:
        application.execute("CREATE TABLE never (id int)")
        application.rollback()
    assert await changes_of(consumer, watched) == []


async def test_what_is_dropped_is_named_with_all_that_held_rows(watched: str, consumer: Consumer) -> None:
    created, *dropped = await changes_of(
        consumer,
        watched,
        "CREATE TABLE notes (id serial PRIMARY KEY, note text)",
        "ALTER TABLE notes DROP COLUMN note",
        "DROP TABLE notes",
    )
    assert created[0][:2] == ("ddl_command_end", "CREATE TABLE")
    assert ("table", "public.notes") in created[0]
    assert dropped == [
        [
            ("sql_drop", "ALTER TABLE", ("table column", "public.notes.note")),
            altered("ALTER TABLE", ("table", "public.notes")),
        ],
        [("sql_drop", "DROP TABLE", ("table", "public.notes"), ("sequence", "public.notes_id_seq"))],
    ]


async def test_a_schema_that_is_dropped_names_the_tables_in_it(watched: str, consumer: Consumer) -> None:
    *_, dropped = await changes_of(
        consumer,
        watched,
        "CREATE SCHEMA side CREATE TABLE a (id int PRIMARY KEY) CREATE VIEW b AS SELECT 1 AS one",
        "DROP SCHEMA side CASCADE",
    )
    ((event, tag, *objects),) = dropped
    assert (event, tag) == ("sql_drop", "DROP SCHEMA")
    assert sorted(objects) == [("schema", "side"), ("table", "side.a"), ("view", "side.b")]


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TEMP TABLE scratch (id serial PRIMARY KEY, note text); ALTER TABLE scratch DROP COLUMN note"],
        ["CREATE TEMP TABLE scratch AS SELECT 'secret' AS word; DROP TABLE scratch"],
        [
            "CREATE TEMP TABLE scratch (id int); CREATE RULE r AS ON DELETE TO scratch DO INSTEAD NOTHING; "
            "ALTER TABLE scratch ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON scratch; "
            "CREATE TRIGGER t BEFORE UPDATE ON scratch "
            "FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger(); "
            "DROP POLICY p ON scratch; DROP RULE r ON scratch; DROP TRIGGER t ON scratch"
        ],
        ["GRANT SELECT ON turns TO cdc_reader", "COMMENT ON TABLE turns IS 'x'", "REVOKE ALL ON outbox FROM PUBLIC"],
        ["VACUUM turns", "ANALYZE turns", "CREATE TABLE IF NOT EXISTS turns (id int)", "DROP TABLE IF EXISTS nothing"],
    ],
    ids=["temporary", "temporary with rows", "on a temporary table", "no shape", "no change"],
)
async def test_what_changes_no_lasting_shape_is_not_recorded(
    watched: str, consumer: Consumer, statements: list[str]
) -> None:
    assert await changes_of(consumer, watched, *statements) == []


async def test_no_text_of_a_statement_is_recorded(watched: str, consumer: Consumer) -> None:
    execute(watched, "CREATE TABLE copied AS SELECT 'a secret' AS word", "COMMENT ON COLUMN copied.word IS 'a secret'")
    execute(watched, "ALTER TABLE copied ADD COLUMN other text DEFAULT 'a secret'", MINIMAL_TURN)
    changes: list[Change] = []
    while not any(isinstance(change, RowChange) for change in changes):
        changes += await consumer.take_changes(1)
    messages = [change for change in changes if isinstance(change, LogicalMessage)]
    assert [json.loads(message.content)["tag"] for message in messages] == ["CREATE TABLE AS", "ALTER TABLE"]
    assert all(b"secret" not in message.content for message in messages)


async def test_an_extension_is_one_object_and_not_what_is_in_it(watched: str, consumer: Consumer) -> None:
    assert await changes_of(consumer, watched, "CREATE EXTENSION tcn", "DROP EXTENSION tcn") == [
        [altered("CREATE EXTENSION", ("extension", "tcn"))],
        [("sql_drop", "DROP EXTENSION", ("extension", "tcn"))],
    ]


async def test_a_role_without_any_rights_changes_its_own_schema_and_that_is_recorded(
    watched: str, consumer: Consumer
) -> None:
    role = f"developer_{uuid4().hex[:8]}"
    execute(watched, f"CREATE ROLE {role} LOGIN", f"CREATE SCHEMA {role} AUTHORIZATION {role}")
    try:
        theirs = conninfo.make_conninfo(watched, user=role)
        execute(theirs, f"CREATE TABLE {role}.mine (id int)", f"DROP TABLE {role}.mine")
        found = await changes_of(consumer, watched)
        assert found[-2:] == [
            [altered("CREATE TABLE", ("table", f"{role}.mine"))],
            [("sql_drop", "DROP TABLE", ("table", f"{role}.mine"))],
        ]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            execute(
                theirs, "CREATE OR REPLACE FUNCTION public.cdc_ddl_sentinel() RETURNS event_trigger AS '' LANGUAGE sql"
            )
    finally:
        execute(watched, f"DROP SCHEMA {role} CASCADE", f"DROP ROLE {role}")


async def test_a_sentinel_that_fails_is_a_warning_and_the_ddl_goes_on(watched: str) -> None:
    role = f"developer_{uuid4().hex[:8]}"
    with psycopg.connect(watched, autocommit=True) as admin:
        for (revoke,) in admin.execute(REVOKE_EMIT).fetchall():
            admin.execute(revoke)
    execute(watched, f"CREATE ROLE {role} LOGIN", f"CREATE SCHEMA {role} AUTHORIZATION {role}")
    warnings: list[str] = []
    try:
        with psycopg.connect(conninfo.make_conninfo(watched, user=role)) as application:
            application.add_notice_handler(lambda notice: warnings.append(notice.message_primary or ""))
            application.execute(f"CREATE TABLE {role}.mine (id int)".encode())
            application.execute(f"INSERT INTO {role}.mine VALUES (1)".encode())
            application.execute(f"DROP TABLE {role}.mine".encode())
        assert [warning.split(":")[1] for warning in warnings] == [
            " this CREATE TABLE is not recorded in the archive",
            " this DROP TABLE is not recorded in the archive",
        ]
    finally:
        execute(watched, f"DROP SCHEMA {role} CASCADE", f"DROP ROLE {role}")


@pytest.mark.parametrize("wal_level", ["minimal", "replica"])
async def test_ddl_works_where_nothing_can_be_replicated(make_postgres: MakePostgres, wal_level: str) -> None:
    server = make_postgres(settings={"wal_level": wal_level, "max_wal_senders": "0"})
    await apply(server.dsn(), ddl_sentinel=True)
    notices: list[str] = []
    with psycopg.connect(server.dsn(), autocommit=True) as application:
        application.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
        application.execute("CREATE TABLE notes (id int)")
        application.execute("ALTER TABLE notes ADD COLUMN note text")
        application.execute("DROP TABLE notes")
    assert notices == []


async def test_ddl_works_while_there_is_no_slot_and_no_publication(watched: str) -> None:
    execute(watched, "DROP PUBLICATION cdc", "CREATE TABLE notes (id int)", "DROP TABLE notes")
    assert fetch(watched, "SELECT to_regclass('notes')::text") == (None,)


async def test_it_is_not_installed_unless_asked_for_and_goes_without_a_trace(database: str) -> None:
    await apply(database)
    assert fetch(database, TRIGGERS) == (0,)
    assert await apply(database, ddl_sentinel=True) == [file.name for file in read_sql(ddl_sentinel=True)]
    assert fetch(database, TRIGGERS) == (2,)
    async with await connect(settings_for(database)) as connection:
        assert await drop_ddl_sentinel(connection)
        assert not await drop_ddl_sentinel(connection)
    assert fetch(database, TRIGGERS) == (0,)
    assert fetch(database, "SELECT count(*) FROM pg_proc WHERE proname LIKE 'cdc%'") == (0,)


async def test_applied_again_a_disabled_trigger_stays_disabled(watched: str) -> None:
    execute(watched, "ALTER EVENT TRIGGER cdc_sql_drop DISABLE")
    await apply(watched, ddl_sentinel=True)
    enabled = "SELECT string_agg(evtenabled::text, '' ORDER BY evtname) FROM pg_event_trigger"
    assert fetch(watched, enabled) == ("AD",)


async def test_the_doctor_says_whether_it_is_there_and_never_more_than_that(database: str) -> None:
    await apply(database)
    async with await connect(settings_for(database)) as connection:
        absent = judge_ddl_sentinel(await read_ddl_sentinel(connection))
        await apply(database, ddl_sentinel=True)
        there = judge_ddl_sentinel(await read_ddl_sentinel(connection))
        execute(database, "ALTER EVENT TRIGGER cdc_sql_drop DISABLE")
        disabled = judge_ddl_sentinel(await read_ddl_sentinel(connection))
        execute(database, "DROP EVENT TRIGGER cdc_ddl_command_end")
        half = judge_ddl_sentinel(await read_ddl_sentinel(connection))
    assert [finding.level for finding in (absent, there, disabled, half)] == ["ok"] * 4
    assert ("no DDL sentinel" in absent.message, absent.hint) == (True, "cdc init --ddl-sentinel")
    assert ("records schema changes" in there.message, there.hint) == (True, "")
    assert disabled.hint == "ALTER EVENT TRIGGER cdc_sql_drop ENABLE ALWAYS;"
    assert ("half" in half.message, half.hint) == (True, "cdc init --ddl-sentinel")


async def test_somebody_elses_function_of_that_name_does_not_stay_theirs(database: str) -> None:
    role = f"squatter_{uuid4().hex[:8]}"
    execute(database, f"CREATE ROLE {role} LOGIN", f"GRANT CREATE ON SCHEMA public TO {role}")
    try:
        squatted = "CREATE FUNCTION public.cdc_ddl_sentinel() RETURNS event_trigger AS 'BEGIN END' LANGUAGE plpgsql"
        execute(conninfo.make_conninfo(database, user=role), squatted)
        await apply(database, ddl_sentinel=True)
        owner = "SELECT proowner::regrole::text FROM pg_proc WHERE proname = 'cdc_ddl_sentinel'"
        assert fetch(database, owner) == ("postgres",)
    finally:
        execute(database, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


async def test_only_a_superuser_installs_it(database: str) -> None:
    role = f"owner_{uuid4().hex[:8]}"
    await apply(database)
    execute(database, f"CREATE ROLE {role} LOGIN", f"GRANT CREATE ON SCHEMA public TO {role}")
    try:
        with pytest.raises(Invalid) as refused:
            await apply(conninfo.make_conninfo(database, user=role), ddl_sentinel=True)
        assert "SUPERUSER" in refused.value.hint
    finally:
        execute(database, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


@pytest.mark.wide
async def test_it_works_on_debians_postgres(debian_postgres: PostgresServer) -> None:
    with fresh_database(debian_postgres) as dsn:
        await apply(dsn, ddl_sentinel=True)
        settings: PostgresSettings = settings_for(dsn)
        make_slot(settings)
        async with consuming(settings) as consumer:
            found = await changes_of(
                consumer,
                dsn,
                "CREATE TABLE notes (id int PRIMARY KEY)",
                "CREATE TEMP TABLE scratch (id int); CREATE POLICY p ON scratch; DROP POLICY p ON scratch",
                "DROP TABLE notes",
            )
        execute(dsn, f"SELECT pg_drop_replication_slot('{settings.slot}')")
    assert [one[0][:2] for one in found] == [("ddl_command_end", "CREATE TABLE"), ("sql_drop", "DROP TABLE")]


def test_archive_cat_shows_schema_changes_in_order_and_teardown_takes_the_sentinel_away(
    database: str, archive_dir: str, tmp_path: Path
) -> None:
    cdc = Command(
        {
            "CDC_POSTGRES__DSN": database,
            "CDC_POSTGRES__ALLOW_INSECURE": "true",
            "CDC_POSTGRES__SLOT": f"cdc_{uuid4().hex[:12]}",
            "CDC_ARCHIVE__URL": archive_dir,
            "CDC_ARCHIVE__LINGER_S": "0.1",
        },
        tmp_path,
    )
    assert "CREATE EVENT TRIGGER" not in cdc("init", "--print").stdout
    assert "CREATE EVENT TRIGGER" in cdc("init", "--print", "--ddl-sentinel").stdout
    assert "applied ddl_sentinel.sql" in cdc("init", "--ddl-sentinel").stdout
    with cdc.running():
        cdc.wait_until(lambda: cdc("status").returncode == 0)
        with psycopg.connect(database) as application:
            application.execute(MINIMAL_TURN)
            application.execute("ALTER TABLE turns ADD COLUMN mood text")
            application.execute(MINIMAL_TURN)
        cdc.wait_until(lambda: cdc("archive", "cat").stdout.count("\n") == 3)
    first, ddl, last = map(json.loads, cdc("archive", "cat").stdout.splitlines())
    assert [first["op"], ddl["op"], last["op"]] == ["c", "m", "c"]
    assert [line["seq"] for line in (first, ddl, last)] == [0, 1, 2]
    assert ddl["prefix"] == "cdc.ddl"
    assert json.loads(ddl["content"])["tag"] == "ALTER TABLE"
    assert "mood" not in first["after"]
    assert last["after"]["mood"] is None
    done = cdc("teardown", "--yes", "--ddl-sentinel")
    assert done.returncode == 0, done.stderr
    assert "dropped the DDL sentinel" in done.stdout
    assert fetch(database, TRIGGERS) == (0,)
