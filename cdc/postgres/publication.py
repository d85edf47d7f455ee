"""The publication: which tables, columns and rows reach us.

`read_publication` gives the facts, `publication_check.py` judges them. `Publication.fingerprint` changes whenever
something else would be published. It is compared before we acknowledge WAL from which nothing was sent to us.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cdc.change import Column, Relation
from cdc.errors import Invalid
from cdc.postgres.quoting import Qualified, quote_identifier
from cdc.postgres.refusal import UNDEFINED_OBJECT, Refusal, in_session
from cdc.postgres.session import Connection

DEFAULT: Final = "d"
FULL: Final = "f"
INDEX: Final = "i"

ACTIONS: Final = ("insert", "update", "delete", "truncate")


@dataclass(frozen=True, slots=True)
class Partition(Qualified):
    """A leaf whose changes are published as its root's. Its own replica identity decides what the WAL holds."""

    schema: str
    name: str
    oid: int
    replica_identity: str
    identity_columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PublishedTable(Qualified):
    """A relation as the stream will name it, with the published columns in the stream's order.

    `identity_columns` are those that an old row always has: the primary key, the columns of the replica identity's
    index, all columns under FULL, or none. `partitions` are the leaves of a root that is published in their place.
    """

    schema: str
    name: str
    oid: int
    columns: tuple[Column, ...]
    replica_identity: str
    identity_columns: tuple[str, ...]
    primary_key: tuple[str, ...]
    row_filter: str | None
    is_partitioned: bool
    partitions: tuple[Partition, ...]

    @property
    def bearers(self) -> "tuple[PublishedTable | Partition, ...]":
        """The tables whose replica identity decides what the WAL holds: the partitions, or the table itself."""
        return self.partitions if self.is_partitioned else (self,)

    @property
    def relation(self) -> Relation:
        """The table as the stream describes it; rows of a snapshot belong to it."""
        return Relation(self.oid, self.schema, self.name, self.replica_identity, self.columns)


@dataclass(frozen=True, slots=True)
class Publication:
    name: str
    tables: tuple[PublishedTable, ...]
    actions: tuple[str, ...]
    via_partition_root: bool

    @property
    def primary_keys(self) -> dict[str, tuple[str, ...]]:
        """The columns of each table's primary key, by the table's qualified name."""
        return {table.qualified_name: table.primary_key for table in self.tables}

    def table(self, qualified_name: str) -> PublishedTable | None:
        return next((table for table in self.tables if table.qualified_name == qualified_name), None)

    @property
    def oids(self) -> dict[str, int]:
        """The oid of each table, by its qualified name."""
        return {table.qualified_name: table.oid for table in self.tables}

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of all that decides what is published, table oids and columns included."""
        facts = [self.name, self.actions, self.via_partition_root, [_facts(table) for table in self.tables]]
        return hashlib.sha256(json.dumps(facts, ensure_ascii=True).encode()).hexdigest()


def _facts(table: PublishedTable) -> list[Any]:
    return [
        table.schema,
        table.name,
        table.oid,
        table.replica_identity,
        table.identity_columns,
        table.row_filter,
        [(column.name, column.type_oid, column.typmod, column.key) for column in table.columns],
        [(leaf.oid, leaf.replica_identity, leaf.identity_columns) for leaf in table.partitions],
    ]


_PUBLICATION = "SELECT oid, to_jsonb(p) FROM pg_publication p WHERE pubname = %s"

# Column lists and row filters came with version 15; through jsonb an older view answers NULL.
_TABLES = """
SELECT c.oid, n.nspname, c.relname, c.relkind::text, c.relreplident::text,
       to_jsonb(t) -> 'attnames', to_jsonb(t) ->> 'rowfilter'
  FROM pg_publication_tables t
  JOIN pg_namespace n ON n.nspname = t.schemaname
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
 WHERE t.pubname = %s
 ORDER BY n.nspname, c.relname
"""

_COLUMNS = """
SELECT attrelid, attname, atttypid, atttypmod, format_type(atttypid, NULL), attgenerated <> ''
  FROM pg_attribute
 WHERE attrelid = ANY (%s::oid[]) AND attnum > 0 AND NOT attisdropped
 ORDER BY attrelid, attnum
"""

# Postgres takes only a valid, immediate primary key for the default identity (relcache.c, RelationGetIndexList).
_KEYS = """
SELECT i.indrelid, i.indisprimary AND i.indimmediate, i.indisreplident,
       array_agg(a.attname::text ORDER BY array_position(i.indkey::int2[], a.attnum))
  FROM pg_index i
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey::int2[])
                     AND array_position(i.indkey::int2[], a.attnum) < i.indnkeyatts
 WHERE i.indrelid = ANY (%s::oid[]) AND i.indisvalid AND (i.indisprimary OR i.indisreplident)
 GROUP BY i.indexrelid, i.indrelid, i.indisprimary, i.indimmediate, i.indisreplident
"""

_LEAVES = """
SELECT root.oid, c.oid, n.nspname, c.relname, c.relreplident::text
  FROM unnest(%s::oid[]) AS root(oid)
 CROSS JOIN LATERAL pg_partition_tree(root.oid::regclass) AS tree
  JOIN pg_class c ON c.oid = tree.relid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE tree.isleaf AND c.oid <> root.oid
 ORDER BY n.nspname, c.relname
"""

_RELATIONS = """
SELECT c.oid, n.nspname || '.' || c.relname
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = ANY (%s::oid[]) OR n.nspname || '.' || c.relname = ANY (%s)
"""

_TYPE_NAMES = "SELECT oid, format_type(oid, NULL) FROM pg_type"


async def read_publication(connection: Connection, name: str) -> Publication:
    """Read the publication as it is now. Raises Invalid if there is none, Unavailable if the server is away."""
    async with connection.transaction():
        # One snapshot for the several queries: a table must not come and go between them.
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        return await _read(connection, name)


async def _read(connection: Connection, name: str) -> Publication:
    found = await connection.all(_PUBLICATION, [name])
    if not found:
        raise _missing(name)
    publication = found[0][1]
    tables = await connection.all(_TABLES, [name])
    oids = [row[0] for row in tables]
    columns = await connection.all(_COLUMNS, [oids])
    if connection.server_version < 180000:
        # Until 18 generated columns are never published, though the view of some versions lists them.
        columns = [column for column in columns if not column[5]]
    leaves = await connection.all(_LEAVES, [[row[0] for row in tables if row[3] == "p"]])
    keys = _Keys(await connection.all(_KEYS, [oids + [row[1] for row in leaves]]))
    return Publication(
        name=name,
        tables=tuple(
            _published(
                row, [c for c in columns if c[0] == row[0]], keys, [leaf[1:] for leaf in leaves if leaf[0] == row[0]]
            )
            for row in tables
        ),
        actions=tuple(action for action in ACTIONS if publication[f"pub{action}"]),
        via_partition_root=publication["pubviaroot"],
    )


class _Keys:
    """Key columns of indexes, by table oid."""

    def __init__(self, rows: Iterable[Sequence[Any]]) -> None:
        self.primary: dict[int, tuple[str, ...]] = {}
        self.identity: dict[int, tuple[str, ...]] = {}
        for oid, is_primary, is_identity, names in rows:
            if is_primary:
                self.primary[oid] = tuple(names)
            if is_identity:
                self.identity[oid] = tuple(names)

    def of(self, oid: int, replica_identity: str, column_names: Sequence[str]) -> tuple[str, ...]:
        """The columns that an old row of this table has."""
        if replica_identity == FULL:
            return tuple(column_names)
        if replica_identity == INDEX:
            return self.identity.get(oid, ())
        return self.primary.get(oid, ()) if replica_identity == DEFAULT else ()


def _published(
    table: Sequence[Any], columns: Sequence[Sequence[Any]], keys: _Keys, leaves: Sequence[Sequence[Any]]
) -> PublishedTable:
    oid, schema, name, kind, replica_identity, listed, row_filter = table
    all_names = [column[1] for column in columns]
    identity = keys.of(oid, replica_identity, all_names)
    primary_key = keys.primary.get(oid, ())
    # Under FULL the primary key, where there is one, still tells rows apart (as the assembler has it).
    key = primary_key if replica_identity == FULL and primary_key else identity
    return PublishedTable(
        schema=schema,
        name=name,
        oid=oid,
        columns=tuple(
            Column(column_name, type_name, type_oid, typmod, column_name in key)
            for _, column_name, type_oid, typmod, type_name, is_generated in columns
            if (not is_generated if listed is None else column_name in listed)
        ),
        replica_identity=replica_identity,
        identity_columns=identity,
        primary_key=primary_key,
        row_filter=row_filter,
        is_partitioned=kind == "p",
        partitions=tuple(
            Partition(leaf_schema, leaf_name, leaf_oid, leaf_identity, keys.of(leaf_oid, leaf_identity, all_names))
            for leaf_oid, leaf_schema, leaf_name, leaf_identity in leaves
        ),
    )


async def read_fate(connection: Connection, tables: Mapping[str, int]) -> dict[str, str]:
    """Tell what became of tables (oids by name) that are published no more: a phrase by name.

    A table that was dropped for good has no entry. Raises Unavailable or Invalid.
    """
    rows = await connection.all(_RELATIONS, [list(tables.values()), list(tables)])
    oids, names = {row[0] for row in rows}, {row[1] for row in rows}
    return {
        name: "was taken out of the publication" if oid in oids else "was dropped and created again"
        for name, oid in tables.items()
        if oid in oids or name in names
    }


async def drop_publication(connection: Connection, name: str) -> bool:
    """Drop the publication; False if there was none.

    Raises Invalid unless the role owns it, Unavailable if the server is away.
    """
    refused = await connection.attempt(f"DROP PUBLICATION {quote_identifier(name)}")
    if not isinstance(refused, Refusal):
        return True
    if refused.sqlstate == UNDEFINED_OBJECT:
        return False
    raise in_session(refused)


async def type_names(connection: Connection) -> dict[int, str]:
    """Read every type's name by oid, qualified unless it is Postgres's own. Raises Unavailable or Invalid."""
    return {int(oid): str(name) for oid, name in await connection.all(_TYPE_NAMES)}


def _missing(name: str) -> Invalid:
    return Invalid(
        f"publication {name} does not exist",
        hint=f"CREATE PUBLICATION {quote_identifier(name)} FOR TABLE public.turns, public.outbox; (or run `cdc init`)",
    )
