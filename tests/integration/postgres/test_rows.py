"""Rows as the stream sends them, and as a snapshot reads them: the same bytes, of the same relation."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from psycopg.conninfo import make_conninfo

from cdc.change import Relation, RowChange, Truncate
from cdc.config import PostgresSettings
from cdc.errors import Invalid
from cdc.postgres.publication import Publication, read_publication
from cdc.postgres.publication_check import check_publication
from cdc.postgres.session import connect
from cdc.postgres.slot import create_slot
from cdc.postgres.snapshot import Condition, SnapshotReader, open_snapshot
from cdc.row import ABSENT, Row
from tests.support.cdc_process import needs_postgres
from tests.support.servers import PostgresAddress, fresh_database
from tests.support.streaming import consuming, execute, make_slot, settings_for

_TYPES = """
CREATE TYPE mood AS ENUM ('calm', 'very "cross"');
CREATE DOMAIN short AS varchar(20);
CREATE TYPE pair AS (a int, b text);
CREATE TABLE odd (
    id int PRIMARY KEY, small int2, big int8, yes bool, single float4, double float8,
    amount numeric, price numeric(9, 4), note text, padded char(6), one "char", bytes bytea,
    day date, at time, at_zone timetz, moment timestamp, instant timestamptz, span interval,
    numbers int[], words text[], mood mood, moods mood[], short short, pair pair, plain json, document jsonb,
    ident uuid, address inet, network cidr, mask bit(5), bits varbit, range int4range, ranges int4multirange,
    place point, lexemes tsvector, class regclass, position pg_lsn, cash money, long numeric
)
"""

_ROWS = (
    r"""(
    1, -32768, 9223372036854775807, true, 'NaN', '-Infinity', 'NaN', 1.5,
    E'tab\there\nline\\N\r\b\f\x0b', 'ab', 'x', '\x00ff5c0a',
    'infinity', '24:00:00', '24:00:00+05:30', '-infinity', 'infinity', '1 mon -2 days 03:04:05.678',
    '[2:4]={1,NULL,3}', ARRAY['a,b', 'c"d', 'e\f', NULL, ''], 'very "cross"', ARRAY['calm', 'very "cross"']::mood[],
    'short', ROW(1, 'x,"y\z'), E'{"a":\n 1}', '{"b": [null, 1.50]}',
    'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '10.0.0.1/8', '10.0.0.0/8', B'10101', B'1', '[1,5)', '{[1,3),[7,9)}',
    '(1.5,-2)', 'a:1 b:2', 'odd', '16/B374D848', 12.34, repeat('9', 16000)::numeric
    )""",
    r"""(
    2, 0, 0, false, 'Infinity', 1e-300, 1e100, 0,
    '', '', '\001', '',
    '0044-03-15 BC', '00:00', '00:00Z', '294276-12-31 23:59:59.999999', '4713-01-01 00:00:00 BC', '0',
    '{}', '{}', 'calm', '{}',
    '', ROW(NULL, ''), 'null', 'null',
    '00000000-0000-0000-0000-000000000000', '::1', '::/0', B'00000', B'', 'empty', '{}',
    '(0,0)', '', 'pg_class', '0/0', 0, 0.00000000000000000001
    )""",
    r"""(
    3, 1, 2, NULL, 3.4028235e38, 0.1, -0.00, NULL,
    '\N', NULL, NULL, NULL,
    NULL, NULL, NULL, NULL, NULL, NULL,
    '{{1,2},{3,4}}', NULL, NULL, NULL,
    NULL, NULL, '"\u0041\\"', '"x\ty"',
    NULL, NULL, NULL, NULL, NULL, NULL, NULL,
    NULL, NULL, NULL, NULL, NULL, NULL
    )""",
)


@asynccontextmanager
async def _reading(settings: PostgresSettings) -> AsyncIterator[tuple[SnapshotReader, Publication]]:
    """A reader in a snapshot of now."""
    async with await connect(settings) as connection:
        publication = await read_publication(connection, settings.publication)
    name = f"test_{uuid4().hex[:16]}"
    async with create_slot(settings, name, temporary=True) as exported, open_snapshot(settings, exported) as reader:
        yield reader, publication


async def _read(
    settings: PostgresSettings, table: str, order_by: Sequence[str] = ("id",)
) -> tuple[Relation, list[Row]]:
    async with _reading(settings) as (reader, publication):
        published = publication.table(table)
        assert published is not None
        return published.relation, [row async for batch in reader.rows(published, order_by=order_by) for row in batch]


async def _streamed(settings: PostgresSettings, count: int, encoding: str = "UTF8") -> list[RowChange]:
    async with consuming(settings, encoding) as consumer:
        changes = await consumer.take_changes(count)
    assert all(isinstance(change, RowChange) for change in changes)
    return [change for change in changes if isinstance(change, RowChange)]


def _describe(relation: Relation) -> tuple[object, ...]:
    columns = [(c.name, c.type_name, c.type_oid, c.typmod, c.key) for c in relation.columns]
    return relation.oid, relation.qualified_name, relation.replica_identity, columns


async def test_every_odd_value_is_the_same_in_the_stream_and_in_a_snapshot(database: str) -> None:
    settings = settings_for(database)
    execute(database, *_TYPES.split(";"), "CREATE PUBLICATION cdc FOR TABLE odd")
    make_slot(settings)
    execute(database, *(f"INSERT INTO odd VALUES {row}" for row in _ROWS))
    changes = await _streamed(settings, len(_ROWS))
    relation, rows = await _read(settings, "public.odd")
    assert rows == [change.new for change in changes]
    assert _describe(relation) == _describe(changes[0].relation)
    first = dict(zip([column.name for column in relation.columns], rows[0], strict=True))
    assert first["note"] == b"tab\there\nline\\N\r\b\f\x0b"
    assert first["double"] == b"-Infinity"
    assert first["instant"] == b"infinity"
    assert first["span"] == b"P1M-2DT3H4M5.678S"
    assert first["numbers"] == b"[2:4]={1,NULL,3}"
    assert first["bytes"] == rb"\x00ff5c0a"
    assert first["plain"] == b'{"a":\n 1}'
    assert first["class"] == b"public.odd"
    third = dict(zip([column.name for column in relation.columns], rows[2], strict=True))
    assert third["note"] == rb"\N"
    assert third["padded"] is None


async def test_sql_ascii_bytes_are_the_same_in_the_stream_and_in_a_snapshot(postgres_server: PostgresAddress) -> None:
    with fresh_database(postgres_server, ENCODING="SQL_ASCII", LOCALE="C") as database:
        settings = settings_for(database)
        execute(database, "CREATE TABLE t (id int PRIMARY KEY, note text)", "CREATE PUBLICATION cdc FOR TABLE t")
        make_slot(settings)
        execute(database, "INSERT INTO t VALUES (1, E'\\xff\\xfe\\\\\\t\\x81')")
        changes = await _streamed(settings, 1, "SQL_ASCII")
        _, rows = await _read(settings, "public.t")
    assert rows == [change.new for change in changes] == [[b"1", b"\xff\xfe\\\t\x81"]]


async def test_column_lists_row_filters_and_generated_columns_hold_for_a_snapshot_too(database: str) -> None:
    needs_postgres(database, 15)
    settings = settings_for(database)
    execute(
        database,
        "CREATE FUNCTION public.halve(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 / 2'",
        "CREATE TABLE a (id int PRIMARY KEY, secret text, note text)",
        "CREATE TABLE g (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED, note text)",
        "CREATE PUBLICATION cdc FOR TABLE a (id, note) WHERE (id > 2), g",
    )
    make_slot(settings)
    execute(
        database,
        "INSERT INTO a SELECT i, 'secret', 'n' || i FROM generate_series(1, 5) i",
        "INSERT INTO g (id, note) SELECT i, 'n' || i FROM generate_series(1, 2) i",
    )
    changes = await _streamed(settings, 2)
    relation, rows = await _read(settings, "public.a")
    assert rows == [c.new for c in changes if c.relation.name == "a"] == [[b"3", b"n3"], [b"4", b"n4"], [b"5", b"n5"]]
    assert _describe(relation) == _describe(changes[0].relation)
    relation, rows = await _read(settings, "public.g")
    assert rows == [c.new for c in changes if c.relation.name == "g"] == [[b"1", b"n1"], [b"2", b"n2"]]
    assert _describe(relation) == _describe(changes[-1].relation)


@pytest.mark.parametrize("via_root", [True, False])
async def test_a_partitioned_table_is_read_as_it_is_published(database: str, via_root: bool) -> None:
    settings = settings_for(database)
    execute(
        database,
        "CREATE TABLE p (id int PRIMARY KEY, note text) PARTITION BY RANGE (id)",
        "CREATE TABLE p_low PARTITION OF p FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE p_high (note text, gone int, id int NOT NULL)",
        "ALTER TABLE p_high DROP COLUMN gone",
        "ALTER TABLE p ATTACH PARTITION p_high FOR VALUES FROM (10) TO (20)",
        f"CREATE PUBLICATION cdc FOR TABLE p WITH (publish_via_partition_root = {via_root})",
    )
    make_slot(settings)
    execute(database, "INSERT INTO p VALUES (1, 'low'), (11, 'high')")
    changes = await _streamed(settings, 1)
    async with _reading(settings) as (reader, publication):
        check_publication(publication, ())
        names = [table.name for table in publication.tables]
        assert names == (["p"] if via_root else ["p_high", "p_low"])
        by_table = {t.name: [row async for batch in reader.rows(t) for row in batch] for t in publication.tables}
    for table in publication.tables:
        streamed = [change for change in changes if change.relation.name == table.name]
        assert by_table[table.name] == [change.new for change in streamed]
        assert _describe(table.relation) == _describe(streamed[0].relation)


async def test_rows_of_inheriting_tables_are_not_read_twice(database: str) -> None:
    settings = settings_for(database)
    execute(
        database,
        "CREATE TABLE parent (id int PRIMARY KEY)",
        "CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent)",
        "CREATE PUBLICATION cdc FOR ALL TABLES",
        "INSERT INTO parent VALUES (1)",
        "INSERT INTO child VALUES (2)",
    )
    assert (await _read(settings, "public.parent"))[1] == [[b"1"]]
    assert (await _read(settings, "public.child"))[1] == [[b"2"]]


async def test_a_snapshot_shows_its_own_moment_in_bounded_batches(database: str) -> None:
    settings = settings_for(database)
    execute(
        database,
        "CREATE TABLE t (id int PRIMARY KEY, at timestamptz NOT NULL)",
        "CREATE PUBLICATION cdc FOR TABLE t",
        "INSERT INTO t SELECT i, '2026-01-01Z'::timestamptz + i * interval '1 s' FROM generate_series(1, 25000) i",
    )
    async with _reading(settings) as (reader, publication):
        execute(database, "INSERT INTO t VALUES (99999, now())", "DELETE FROM t WHERE id = 1")
        (table,) = publication.tables
        sizes = [len(batch) async for batch in reader.rows(table)]
        assert sum(sizes) == 25000
        assert max(sizes) <= 1000
        recent = Condition("at", ">=", "2026-01-01T06:56:39Z")
        batches = [batch async for batch in reader.rows(table, where=recent, order_by=["at", "id"])]
        assert [row[0] for batch in batches for row in batch] == [b"24999", b"25000"]


async def test_a_row_of_many_megabytes_is_read_whole(database: str) -> None:
    settings = settings_for(database)
    execute(
        database,
        "CREATE TABLE t (id int PRIMARY KEY, note text)",
        "CREATE PUBLICATION cdc FOR TABLE t",
        "INSERT INTO t VALUES (1, repeat(E'\\t', 5 * 1024 * 1024))",
    )
    assert (await _read(settings, "public.t"))[1] == [[b"1", b"\t" * (5 * 1024 * 1024)]]


@pytest.mark.parametrize("granted", [False, True], ids=["no privilege", "row-level security"])
async def test_what_the_role_cannot_read_whole_is_refused_not_left_out(database: str, granted: bool) -> None:
    role = f"test_{uuid4().hex[:12]}"
    execute(
        database,
        "CREATE TABLE t (id int PRIMARY KEY)",
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        "CREATE PUBLICATION cdc FOR TABLE t",
        "INSERT INTO t VALUES (1)",
        f"CREATE ROLE {role} LOGIN REPLICATION",
        f"GRANT SELECT ON t TO {role}" if granted else "SELECT 1",
    )
    try:
        settings = settings_for(make_conninfo(database, user=role))
        async with _reading(settings) as (reader, publication):
            with pytest.raises(Invalid) as refused:
                _ = [batch async for batch in reader.rows(publication.tables[0])]
            assert "GRANT SELECT" in refused.value.hint
    finally:
        execute(database, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


async def test_unchanged_toast_is_absent_unless_the_old_row_has_it(database: str) -> None:
    settings = settings_for(database)
    execute(
        database,
        "CREATE TABLE t (id int PRIMARY KEY, big text, small int)",
        "ALTER TABLE t ALTER big SET STORAGE EXTERNAL",
        "CREATE PUBLICATION cdc FOR TABLE t",
        "INSERT INTO t VALUES (1, repeat('x', 10000), 1)",
    )
    make_slot(settings)
    execute(
        database,
        "UPDATE t SET small = 2",
        "ALTER TABLE t REPLICA IDENTITY FULL",
        "UPDATE t SET small = 3",
    )
    plain, full = await _streamed(settings, 2)
    assert plain.new == [b"1", ABSENT, b"2"]
    assert plain.unchanged == ["big"]
    assert plain.old is None
    assert full.new == [b"1", b"x" * 10000, b"3"]
    assert full.old == [b"1", b"x" * 10000, b"2"]


async def test_old_rows_hold_what_the_replica_identity_says(database: str) -> None:
    settings = settings_for(database)
    execute(
        database,
        "CREATE TABLE k (id int PRIMARY KEY, note text)",
        "CREATE TABLE i (id int PRIMARY KEY, code text NOT NULL, note text)",
        "CREATE UNIQUE INDEX i_code ON i (code)",
        "ALTER TABLE i REPLICA IDENTITY USING INDEX i_code",
        "CREATE PUBLICATION cdc FOR TABLE k, i",
        "INSERT INTO k VALUES (1, 'a')",
        "INSERT INTO i VALUES (1, 'one', 'a')",
    )
    make_slot(settings)
    execute(
        database,
        "UPDATE k SET note = 'b'",
        "UPDATE k SET id = 2",
        "DELETE FROM k",
        "UPDATE i SET code = 'two'",
        "DELETE FROM i",
    )
    update, key_change, delete, code_change, code_delete = await _streamed(settings, 5)
    assert (update.old, update.new) == (None, [b"1", b"b"])
    assert (key_change.old, key_change.new) == ([b"1", ABSENT], [b"2", b"b"])
    assert (delete.old, delete.new) == ([b"2", ABSENT], None)
    assert code_change.old == [ABSENT, b"one", ABSENT]
    assert code_delete.old == [ABSENT, b"two", ABSENT]
    assert code_delete.key == b'{"code":"two"}'


async def test_a_truncate_of_two_tables_names_both(database: str) -> None:
    settings = settings_for(database)
    execute(
        database,
        "CREATE TABLE a (id int PRIMARY KEY)",
        "CREATE TABLE b (id int PRIMARY KEY)",
        "CREATE PUBLICATION cdc FOR TABLE a, b",
    )
    make_slot(settings)
    execute(database, "TRUNCATE a, b RESTART IDENTITY")
    async with consuming(settings) as consumer:
        changes = await consumer.take_changes(1)
    assert all(isinstance(change, Truncate) and change.restart_identity for change in changes)
    assert {change.relation.name for change in changes if isinstance(change, Truncate)} == {"a", "b"}
