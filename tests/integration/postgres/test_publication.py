"""The publication's facts on a real server, and that Postgres itself refuses what we refuse."""

import psycopg
import pytest

from cdc.errors import Invalid
from cdc.postgres.publication import Publication, read_publication, type_names
from cdc.postgres.publication_check import check_publication
from cdc.postgres.session import connect
from tests.support.cdc_process import needs_postgres, postgres_version
from tests.support.streaming import execute, fetch, settings_for


async def _read(database: str) -> Publication:
    settings = settings_for(database)
    async with await connect(settings) as connection:
        return await read_publication(connection, settings.publication)


async def test_a_missing_publication_is_invalid_with_the_sql_to_create_it(database: str) -> None:
    with pytest.raises(Invalid) as refused:
        await _read(database)
    assert "CREATE PUBLICATION" in refused.value.hint


async def test_tables_are_read_with_their_identities(database: str) -> None:
    execute(
        database,
        "CREATE TABLE a (id int, part text, note varchar(30), PRIMARY KEY (part, id))",
        "CREATE TABLE b (id int PRIMARY KEY, note text)",
        "ALTER TABLE b REPLICA IDENTITY FULL",
        "CREATE PUBLICATION cdc FOR TABLE a, b",
    )
    publication = await _read(database)
    a, b = publication.tables
    assert (a.qualified_name, a.replica_identity, a.primary_key) == ("public.a", "d", ("part", "id"))
    assert [(c.name, c.type_name, c.typmod, c.key) for c in a.columns] == [
        ("id", "integer", -1, True),
        ("part", "text", -1, True),
        ("note", "character varying", 34, False),
    ]
    assert (b.replica_identity, b.identity_columns, b.primary_key) == ("f", ("id", "note"), ("id",))
    assert publication.primary_keys == {"public.a": ("part", "id"), "public.b": ("id",)}
    assert publication.actions == ("insert", "update", "delete", "truncate")
    check_publication(publication, ())


@pytest.mark.parametrize(
    "table",
    [
        "CREATE TABLE t (id int)",
        "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE)",
        "CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY NOTHING",
        "CREATE TABLE t (id int NOT NULL); CREATE UNIQUE INDEX u ON t (id); "
        "ALTER TABLE t REPLICA IDENTITY USING INDEX u; DROP INDEX u",
    ],
)
async def test_postgres_refuses_the_updates_of_a_table_that_we_refuse(database: str, table: str) -> None:
    execute(database, *table.split(";"), "INSERT INTO t VALUES (1)", "CREATE PUBLICATION cdc FOR TABLE t")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        execute(database, "UPDATE t SET id = 2")
    with pytest.raises(Invalid) as refused:
        check_publication(await _read(database), ())
    mend = next(part for part in refused.value.hint.split("or: ") if part.startswith("ALTER TABLE"))
    execute(database, mend if "..." not in mend else 'ALTER TABLE "public"."t" REPLICA IDENTITY FULL')
    execute(database, "UPDATE t SET id = 2")
    check_publication(await _read(database), ())


async def test_a_column_list_under_full_identity_is_refused_as_postgres_does(database: str) -> None:
    needs_postgres(database, 15)
    execute(
        database,
        "CREATE TABLE t (id int PRIMARY KEY, note text)",
        "ALTER TABLE t REPLICA IDENTITY FULL",
        "INSERT INTO t VALUES (1)",
        "CREATE PUBLICATION cdc FOR TABLE t (id)",
    )
    with pytest.raises(psycopg.Error):
        execute(database, "UPDATE t SET id = 2")
    with pytest.raises(Invalid, match="does not publish note"):
        check_publication(await _read(database), ())


async def test_generated_columns_under_full_identity_are_judged_as_the_version_does(database: str) -> None:
    execute(
        database,
        "CREATE TABLE t (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED)",
        "ALTER TABLE t REPLICA IDENTITY FULL",
        "INSERT INTO t VALUES (1)",
        "CREATE PUBLICATION cdc FOR TABLE t",
    )
    publication = await _read(database)
    if postgres_version(database) < 18:
        execute(database, "UPDATE t SET id = 2")
        check_publication(publication, ())
        return
    with pytest.raises(psycopg.Error):
        execute(database, "UPDATE t SET id = 2")
    with pytest.raises(Invalid, match="twice"):
        check_publication(publication, ())
    execute(database, "ALTER PUBLICATION cdc SET (publish_generated_columns = stored)", "UPDATE t SET id = 2")
    check_publication(await _read(database), ())


async def test_the_fingerprint_follows_what_is_published(database: str) -> None:
    execute(
        database,
        "CREATE TABLE a (id int PRIMARY KEY)",
        "CREATE TABLE b (id int PRIMARY KEY)",
        "CREATE PUBLICATION cdc FOR TABLE a, b",
    )
    seen = {(await _read(database)).fingerprint}
    assert {(await _read(database)).fingerprint} == seen
    for statement in (
        "ALTER TABLE a ADD note text",
        "ALTER TABLE a REPLICA IDENTITY FULL",
        "DROP TABLE b",
        "CREATE TABLE b (id int PRIMARY KEY)",
        "ALTER PUBLICATION cdc ADD TABLE b",
        "ALTER PUBLICATION cdc SET (publish = 'insert')",
        "ALTER TABLE a RENAME TO c",
    ):
        execute(database, statement)
        fingerprint = (await _read(database)).fingerprint
        assert fingerprint not in seen or statement.startswith("CREATE TABLE"), statement
        seen.add(fingerprint)


async def test_type_names_are_postgres_own_and_qualified_for_others(database: str) -> None:
    execute(database, "CREATE TYPE mood AS ENUM ('calm')")
    oid = int(str(fetch(database, "SELECT 'mood'::regtype::oid::int")[0]))
    async with await connect(settings_for(database)) as connection:
        names = await type_names(connection)
    assert names[oid] == "public.mood"
    assert names[1184] == "timestamp with time zone"
    assert names[1009] == "text[]"
