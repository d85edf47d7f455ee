"""Names are quoted wherever SQL is made: quotes, line breaks, `;--` and foreign letters in each that may have them."""

import psycopg
from psycopg import conninfo, sql

from tests.acceptance.conftest import MakeService, as_replicator
from tests.support.cdc_process import query

SCHEMA, TABLE = "sch'e\"ma; DROP TABLE public.turns;--", 'tä"ble\n%s {0} $$ \\'
KEY, COLUMN = "i'd\" = 0 OR true;--", "col\"umn\n', NULL); -- ☂"
PUBLICATION = "pub\"li'cation; DROP TABLE public.turns;--"


def test_hostile_names_are_archived_compared_and_restored_and_nothing_else_happens(
    installed: str, archive_dir: str, make_service: MakeService
) -> None:
    names = {"schema": SCHEMA, "table": TABLE, "key": KEY, "column": COLUMN, "publication": PUBLICATION}
    quoted = {name: sql.Identifier(text) for name, text in names.items()}
    with psycopg.connect(installed, autocommit=True) as admin:
        for statement in (
            "CREATE SCHEMA {schema}",
            "CREATE TABLE {schema}.{table} ({key} int PRIMARY KEY, {column} text)",
            "GRANT USAGE ON SCHEMA {schema} TO cdc_reader",
            "GRANT SELECT ON {schema}.{table} TO cdc_reader",
            "CREATE PUBLICATION {publication} FOR TABLE {schema}.{table}",
            "INSERT INTO {schema}.{table} VALUES (1, 'before'), (2, 'before')",
        ):
            admin.execute(sql.SQL(statement).format(**quoted))
        service = make_service(installed, archive_dir, postgres={"publication": PUBLICATION}).start()
        service.wait_until_archived(installed)
        for statement in (
            "INSERT INTO {schema}.{table} VALUES (3, 'after')",
            "UPDATE {schema}.{table} SET {column} = 'changed' WHERE {key} = 1",
            "DELETE FROM {schema}.{table} WHERE {key} = 2",
        ):
            admin.execute(sql.SQL(statement).format(**quoted))
        service.wait_until_archived(installed)
        service.command("doctor")
        service.command("slots")
        service.command("archive", "verify", "--against", as_replicator(installed))
        admin.execute("CREATE DATABASE hostile_target")
        try:
            target = conninfo.make_conninfo(installed, dbname="hostile_target")
            service.command("restore", "--into", target)
            with psycopg.connect(target) as restored:
                rows = restored.execute(
                    sql.SQL("SELECT * FROM {schema}.{table} ORDER BY 1").format(**quoted)
                ).fetchall()
            assert rows == [(1, "changed"), (3, "after")]
        finally:
            admin.execute("DROP DATABASE hostile_target WITH (FORCE)")
        assert service.stop() == 0
        service.command("teardown", "--publication", "--yes", "--dsn", installed)
    assert query(installed, "SELECT count(*) FROM pg_publication WHERE pubname <> 'cdc'") == [(0,)]
    assert query(installed, "SELECT to_regclass('public.turns') IS NOT NULL") == [(True,)]
