"""Reads the database's tables beside the publication: unpublished tables, and facts about published columns."""

from dataclasses import dataclass
from typing import Any, Final

from cdc.postgres.publication import Publication
from cdc.postgres.quoting import Qualified
from cdc.postgres.session import Connection

# Without the tables of extensions and of a restore's notes (schema cdc). A root stands for its partitions.
_TABLES: Final = """
WITH published AS (
    SELECT c.oid
      FROM pg_publication_tables t
      JOIN pg_namespace n ON n.nspname = t.schemaname
      JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
     WHERE t.pubname = %s
)
SELECT n.nspname, c.relname, c.relpersistence = 'u',
       c.relreplident = 'f' OR EXISTS (
           SELECT FROM pg_index i
            WHERE i.indrelid = c.oid AND i.indisvalid
              AND CASE c.relreplident WHEN 'd' THEN i.indisprimary AND i.indimmediate
                                      WHEN 'i' THEN i.indisreplident ELSE false END)
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND NOT c.relispartition
   AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'cdc')
   AND NOT EXISTS (SELECT FROM pg_depend d
                    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
   AND NOT EXISTS (SELECT FROM published WHERE published.oid = c.oid)
   AND NOT EXISTS (SELECT FROM pg_partition_tree(c.oid) AS tree JOIN published ON published.oid = tree.relid)
 ORDER BY n.nspname, c.relname
"""

_COLUMNS: Final = """
SELECT attrelid, attname, attgenerated::text, attlen = -1 AND attstorage <> 'p'
  FROM pg_attribute
 WHERE attrelid = ANY (%s::oid[]) AND attnum > 0 AND NOT attisdropped
 ORDER BY attrelid, attnum
"""


@dataclass(frozen=True, slots=True)
class UnpublishedTable(Qualified):
    """A table that is not published. `identified`: Postgres would take its UPDATE and DELETE if it were published.

    An unlogged table can never be published.
    """

    schema: str
    name: str
    unlogged: bool
    identified: bool


@dataclass(frozen=True, slots=True)
class TableColumns:
    """Columns of a published table, by what the stream does with them.

    `left_out` are plain columns that a column list leaves out. `generated` are generated columns that are not
    published; `stored` are those of them that Postgres 18 could publish. `toastable` are published columns whose long
    values are stored out of line: an UPDATE that leaves such a value alone does not send it again.
    """

    left_out: tuple[str, ...]
    generated: tuple[str, ...]
    stored: tuple[str, ...]
    toastable: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Schema:
    """The database's tables beside the publication. `columns` are by the qualified name of the published table."""

    unpublished: tuple[UnpublishedTable, ...]
    columns: dict[str, TableColumns]


async def read_schema(connection: Connection, publication: Publication) -> Schema:
    """Read the tables as they are now. Raises Unavailable or Invalid."""
    oids = [table.oid for table in publication.tables]
    tables = await connection.all(_TABLES, [publication.name])
    columns = await connection.all(_COLUMNS, [oids])
    return Schema(
        tuple(UnpublishedTable(*row) for row in tables),
        {
            table.qualified_name: _columns(
                [row[1:] for row in columns if row[0] == table.oid], {column.name for column in table.columns}
            )
            for table in publication.tables
        },
    )


def _columns(rows: list[tuple[Any, ...]], published: set[str]) -> TableColumns:
    return TableColumns(
        left_out=tuple(name for name, generated, _ in rows if name not in published and not generated),
        generated=tuple(name for name, generated, _ in rows if name not in published and generated),
        stored=tuple(name for name, generated, _ in rows if name not in published and generated == "s"),
        toastable=tuple(name for name, _, toastable in rows if name in published and toastable),
    )
