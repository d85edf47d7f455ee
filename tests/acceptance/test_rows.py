"""What Postgres printed is what the archive holds, whatever the type of a value and whatever was done to a row."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
import redis

from tests.acceptance.conftest import MakeService, as_replicator
from tests.conftest import MakePostgres
from tests.faults.checker import TABLES
from tests.faults.history import compare, loads
from tests.faults.objects import log_objects, read_archive, read_directory, read_lines
from tests.faults.witness import Witness
from tests.support.cdc_process import Service, install, query
from tests.support.servers import PostgresAddress, fresh_database

MIB = 1024 * 1024

# One service and its tables serve all tests of this module.
pytestmark = pytest.mark.xdist_group("rows")

TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'very happy');
CREATE DOMAIN small AS int CHECK (VALUE < 10);
CREATE TYPE pair AS (a int, b text);
CREATE TABLE odd (
    id int PRIMARY KEY, i2 int2, i8 int8, f4 float4, f8 float8, n numeric, b bool, t text, c char(5), v varchar(9),
    by bytea, ts timestamp, tz timestamptz, d date, ti time, iv interval, j json, jb jsonb, u uuid, ia int[], ta text[],
    m mood, sm small, p pair, r int4range, ip inet, bits bit(4), money money, ma mood[]
);
CREATE TABLE quoted."Odd Table" ("Key col" int, "a ""b" text, PRIMARY KEY ("Key col"));
CREATE TABLE toasted (id int PRIMARY KEY, long text, other int, "null" text);
CREATE TABLE toasted_full (id int PRIMARY KEY, long text, other int);
CREATE TABLE composite (a int, b text, v text, PRIMARY KEY (a, b));
CREATE TABLE child (id int PRIMARY KEY, composite_a int, composite_b text,
                    FOREIGN KEY (composite_a, composite_b) REFERENCES composite);
ALTER TABLE toasted ALTER long SET STORAGE EXTERNAL;
ALTER TABLE toasted_full ALTER long SET STORAGE EXTERNAL;
ALTER TABLE toasted_full REPLICA IDENTITY FULL;
"""
ODD = ("public.odd", "public.toasted", "public.toasted_full", "public.composite", "public.child")


@dataclass
class Stand:
    """A service with an archive of its own, no cache, and odd tables beside those of sql/."""

    dsn: str
    archive_url: str
    service: Service
    witness: Witness

    def done(self, *statements: str) -> list[dict[str, Any]]:
        """Run the statements in one transaction; the archived lines of what they did."""
        with psycopg.connect(self.dsn) as connection:
            row = connection.execute("SELECT pg_current_xact_id()::text::int").fetchone()
            for statement in statements:
                connection.execute(statement.encode())
        assert row is not None
        self.service.wait_until_archived(self.dsn)
        objects = log_objects(read_directory(self.archive_url))
        lines = [line for body in objects.values() for line in read_lines(body)[1:]]
        return [line for line in lines if line["xid"] == number(row[0])]


def number(value: object) -> list[str]:
    """A number as `loads` gives it back: with its digits."""
    return ["number", str(value)]


@pytest.fixture(scope="module")
def stand(postgres_server: PostgresAddress, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    directory = tmp_path_factory.mktemp("rows")
    url = (directory / "archive").as_uri()
    with fresh_database(postgres_server) as dsn:
        install(dsn)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE SCHEMA quoted")
            connection.execute(TYPES.encode())
            connection.execute('ALTER PUBLICATION cdc ADD TABLE quoted."Odd Table", ' + ", ".join(ODD))
            connection.execute("GRANT USAGE ON SCHEMA quoted TO cdc_reader")
            connection.execute('GRANT SELECT ON quoted."Odd Table" TO cdc_reader')
            connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO cdc_reader")
        witness = Witness(dsn, [*TABLES, *ODD, 'quoted."Odd Table"'])
        with Service(directory, dsn=as_replicator(dsn), archive_url=url) as service:
            service.wait_until_archived(dsn)
            yield Stand(dsn, url, service, witness)


def test_values_are_archived_as_postgres_printed_them(stand: Stand) -> None:
    [line] = stand.done(
        """INSERT INTO odd VALUES (1, -32768, 9223372036854775807, 'NaN', '-Infinity', 'NaN', true, E'ü\\n"\\\\',
           'ab', '', '\\x00ff', 'infinity', '0044-03-15 12:00:00+00 BC', '294276-12-31'::timestamptz::date, '24:00:00',
           '1 year 2 days 03:04:05.678', E'{"a":\\n1.50, "a": 2}', 'null', '00000000-0000-0000-0000-000000000001',
           '[2:4]={1,2,3}', '{NULL,"NULL","a,b","q\\"","\\\\"}', 'very happy', 9, '(1,"x, y")', '[1,5)', '10.0.0.1/8',
           '1010', '12.34', '{sad,"very happy"}')"""
    )
    after = line["after"]
    assert line["op"] == "c"
    assert line["key"] == {"id": number(1)}
    assert (after["i2"], after["i8"]) == (number(-32768), number(9223372036854775807))
    assert (after["f4"], after["f8"], after["n"], after["b"]) == ("NaN", "-Infinity", "NaN", True)
    assert (after["t"], after["c"], after["v"], after["by"]) == ('ü\n"\\', "ab   ", "", "\\x00ff")
    assert (after["ts"], after["tz"], after["d"]) == ("infinity", "0044-03-15 12:00:00+00 BC", "294276-12-31")
    assert (after["ti"], after["iv"]) == ("24:00:00", "P1Y2DT3H4M5.678S")
    assert after["j"] == {"a": number(2)}
    assert after["jb"] == {"$json": None}
    assert (after["ia"], after["ta"]) == ("[2:4]={1,2,3}", '{NULL,"NULL","a,b","q\\"","\\\\"}')
    assert (after["m"], after["sm"], after["p"]) == ("very happy", "9", '(1,"x, y")')
    assert (after["r"], after["ip"], after["bits"]) == ("[1,5)", "10.0.0.1/8", "1010")
    assert after["ma"] == '{sad,"very happy"}'


def test_nulls_floats_and_long_numerics_keep_every_digit(stand: Stand) -> None:
    long = "1" * 9000 + "." + "7" * 7000
    [line] = stand.done(
        f"INSERT INTO odd (id, f4, f8, n, jb) VALUES (2, 0.1, 1e-300, {long}, '[1.0, 12345678901234567890.10]')"
    )
    after = line["after"]
    assert (after["f4"], after["f8"], after["n"]) == (number("0.1"), number("1e-300"), long)
    assert after["jb"] == [number("1.0"), number("12345678901234567890.10")]
    assert after["t"] is None
    assert after["i2"] is None


def test_unchanged_toast_is_named_and_never_null(stand: Stand) -> None:
    stand.done("INSERT INTO toasted VALUES (1, repeat('x', 20000), 1, NULL)")
    [line] = stand.done("UPDATE toasted SET other = 2")
    assert line["after"] == {"id": number(1), "other": number(2), "null": None}
    assert line["unchanged"] == ["long"]
    assert "before" not in line
    [line] = stand.done("UPDATE toasted SET long = NULL")
    assert line["after"]["long"] is None
    assert "unchanged" not in line


def test_unchanged_toast_is_merged_from_the_old_row_where_there_is_one(stand: Stand) -> None:
    stand.done("INSERT INTO toasted_full VALUES (1, repeat('y', 20000), 1)")
    [line] = stand.done("UPDATE toasted_full SET other = 2")
    assert line["after"] == {"id": number(1), "long": "y" * 20000, "other": number(2)}
    assert line["before"] == {"id": number(1), "long": "y" * 20000, "other": number(1)}
    assert "unchanged" not in line


def test_a_changed_key_comes_with_the_old_one_and_nothing_else(stand: Stand) -> None:
    stand.done("INSERT INTO composite VALUES (1, 'a', 'kept')")
    [line] = stand.done("UPDATE composite SET b = 'z'")
    assert line["op"] == "u"
    assert line["key"] == {"a": number(1), "b": "z"}
    assert line["before"] == {"a": number(1), "b": "a"}
    assert line["after"] == {"a": number(1), "b": "z", "v": "kept"}
    [line] = stand.done("DELETE FROM composite")
    assert (line["op"], line["key"], line["before"]) == ("d", {"a": number(1), "b": "z"}, {"a": number(1), "b": "z"})
    assert "after" not in line


def test_truncate_of_several_tables_is_a_line_for_each(stand: Stand) -> None:
    lines = stand.done("TRUNCATE composite RESTART IDENTITY CASCADE")
    assert {line["table"] for line in lines} == {"public.composite", "public.child"}
    assert {line["op"] for line in lines} == {"t"}
    assert all(line["cascade"] and line["restart_identity"] for line in lines)


def test_names_that_need_quotes(stand: Stand) -> None:
    [line] = stand.done("""INSERT INTO quoted."Odd Table" VALUES (1, 'x')""")
    assert line["table"] == "quoted.Odd Table"
    assert line["after"] == {"Key col": number(1), 'a "b': "x"}


def test_a_rolled_back_savepoint_leaves_no_trace(stand: Stand) -> None:
    lines = stand.done(
        "INSERT INTO composite VALUES (10, 'before', '')",
        "SAVEPOINT s",
        "INSERT INTO composite VALUES (11, 'never', '')",
        "ROLLBACK TO s",
        "INSERT INTO composite VALUES (12, 'after', '')",
    )
    assert [line["after"]["b"] for line in lines] == ["before", "after"]
    assert [line["seq"] for line in lines] == [number(0), number(1)]


def test_a_transaction_without_published_changes_is_no_transaction(stand: Stand) -> None:
    assert stand.done("CREATE TABLE IF NOT EXISTS private AS SELECT 1 AS n", "DELETE FROM private") == []


def test_messages_inside_and_outside_transactions(stand: Stand) -> None:
    [line] = stand.done("SELECT pg_logical_emit_message(true, 'p', 'inside')")
    assert (line["op"], line["prefix"], line["content"], line["transactional"]) == ("m", "p", "inside", True)
    query(stand.dsn, "SELECT pg_logical_emit_message(false, 'p', 'outside')")
    stand.service.wait_until_archived(stand.dsn)
    lines = [line for body in log_objects(read_directory(stand.archive_url)).values() for line in read_lines(body)[1:]]
    [line] = [line for line in lines if line.get("content") == "outside"]
    assert (line["op"], line["xid"], line["transactional"]) == ("m", number(0), False)


def test_a_column_added_under_way_is_there_from_then_on(stand: Stand) -> None:
    stand.done("CREATE TABLE grows (id int PRIMARY KEY, a int)", "ALTER PUBLICATION cdc ADD TABLE grows")
    [line] = stand.done("INSERT INTO grows VALUES (1, 1)")
    assert line["after"] == {"id": number(1), "a": number(1)}
    lines = stand.done(
        "INSERT INTO grows VALUES (2, 2)",
        "ALTER TABLE grows ADD COLUMN b text DEFAULT 'new'",
        "INSERT INTO grows VALUES (3, 3)",
    )
    assert [line["after"] for line in lines if line["op"] == "c"] == [
        {"id": number(2), "a": number(2)},
        {"id": number(3), "a": number(3), "b": "new"},
    ]


def test_a_value_of_20_mb_arrives_whole(stand: Stand) -> None:
    [line] = stand.done("INSERT INTO toasted (id, long) VALUES (20, repeat(md5('x'), 20 * 1024 * 1024 / 32))")
    assert len(line["after"]["long"]) == 20 * MIB
    assert stand.service.rss_bytes < 400 * MIB


def test_after_all_this_the_archive_is_what_test_decoding_saw(stand: Stand) -> None:
    stand.service.wait_until_archived(stand.dsn)
    archive = read_archive(read_directory(stand.archive_url))
    told = [t for t in stand.witness.transactions() if t.end_lsn > archive.consistent_lsn]
    names = {'quoted."Odd Table"': "quoted.Odd Table"}
    archived = [t for t in archive.transactions if any(c.table != "public.grows" for c in t.changes)]
    renamed = [
        type(t)(
            t.xid,
            t.end_lsn,
            tuple(type(c)(c.op, names.get(c.table, c.table), c.new, c.old, c.unchanged, c.note) for c in t.changes),
        )
        for t in told
    ]
    assert archive.faults == []
    assert not (differences := compare(renamed, archived)), str(differences)


def test_bytes_that_are_not_utf8_are_archived_as_they_are(
    make_postgres: MakePostgres, redis_url: str, archive_dir: str, make_service: MakeService
) -> None:
    dsn = make_postgres(encoding="SQL_ASCII").dsn()
    install(dsn)
    service = make_service(dsn, archive_dir, redis_url).start()
    service.wait_until_caught_up(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            rb"""INSERT INTO turns (domain, channel, session_hash, role, content)
                 VALUES ('d', 'c', 'latin', 'user', E'caf\xe9'), ('d', 'c', 'latin', 'user', E'caf\xc3\xa9')"""
        )
    service.wait_until_caught_up(dsn)
    lines = [line for body in log_objects(read_directory(archive_dir)).values() for line in read_lines(body)[1:]]
    contents = [line["after"]["content"] for line in lines if line["op"] == "c"]
    assert contents == [{"$base64": base64.b64encode(b"caf\xe9").decode()}, "café"]
    with redis.Redis.from_url(redis_url) as client:
        members: Any = client.zrange("session:latin:turns", 0, -1)
    assert [loads(member)["content"] for member in members] == contents
    assert service.stop() == 0
