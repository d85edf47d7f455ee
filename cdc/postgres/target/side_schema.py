"""Makes a schema beside the live tables, with rows as they once were, and compares those with the live ones.

The schema is made in one transaction with all its rows. Every session sees it whole or not at all, and a run that is
killed leaves nothing. In the archive's own source its tables are UNLOGGED, because no publication can publish those:
not even one FOR ALL TABLES archives the restored rows again. (A crash of that server empties them: restore again.)

The server compares the rows as Postgres prints them. Only keys and names of columns come back, never values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cdc.change import Relation
from cdc.errors import DataError, Invalid
from cdc.postgres.quoting import quote_identifier, quote_literal
from cdc.postgres.target.database import TargetDatabase
from cdc.postgres.target.statement import TableWriter, TargetColumn, TargetTable
from cdc.row import Row

# Rows in one COPY. Their text is held in memory beside the rows.
_COPY_ROWS: Final = 2000

# SQLSTATEs of a comparison that the column's type refuses: no such value (class 22), no such operator.
_NO_VALUE, _NO_OPERATOR = "22", "42883"

Kind = Literal["missing live", "only live", "unequal"]


@dataclass(frozen=True, slots=True)
class LiveDifference:
    """A row that differs in the live table. `columns` are the unequal ones; `key` is empty in a table without a key."""

    kind: Kind
    key: dict[str, str | None]
    columns: tuple[str, ...] = ()


async def check_free(target: TargetDatabase, schema: str) -> None:
    """Refuse a schema that holds anything. Raises Invalid, or Unavailable."""
    found = await target.rows(
        "SELECT obj_description(n.oid, 'pg_namespace'), EXISTS (SELECT FROM pg_class WHERE relnamespace = n.oid)"
        f" FROM pg_namespace n WHERE nspname = {quote_literal(schema)}"
    )
    if not found or not found[0][1]:
        return
    comment = found[0][0] or ""
    raise Invalid(
        f"schema {schema} is in the target already, and not empty",
        detail=comment if comment.startswith("waltier") else "It was not made by cdc restore.",
        hint=f"--schema OTHER; or, if it is not needed any more, DROP SCHEMA {quote_identifier(schema)} CASCADE;",
    )


class SideSchema:
    """Makes one schema and compares its tables. `unlogged` where the target is the archive's source.

    Methods that ask the target raise Unavailable or Invalid.
    """

    def __init__(self, target: TargetDatabase, schema: str, *, unlogged: bool) -> None:
        self._target = target
        self._schema = schema
        self._unlogged = unlogged
        self._tables: dict[str, TargetTable] = {}

    async def create(self, rows: Mapping[Relation, Sequence[Row]], comment: str) -> None:
        """Make the schema with its tables and their rows, in one transaction. Raises DataError too."""
        await self._target.execute("SET synchronous_commit = on")
        await self._target.write([], None)
        for relation in rows:
            await self._target.create_table(self._beside(relation), unlogged=self._unlogged)
            table = await self._target.find_table(self._schema, relation.name)
            if table is None:
                raise DataError(f"{self._schema}.{relation.name} has vanished while it was filled")
            self._tables[relation.qualified_name] = table
            writer = TableWriter(relation, table)
            for at in range(0, len(rows[relation]), _COPY_ROWS):
                await self._target.write([writer.copy(rows[relation][at : at + _COPY_ROWS])], None)
            await self._target.execute(f"ANALYZE {table.sql_name}")
        await self._target.execute(f"COMMENT ON SCHEMA {quote_identifier(self._schema)} IS {quote_literal(comment)}")
        await self._target.commit()

    async def compare(
        self, relation: Relation, live: TargetTable, where: Mapping[str, bytes | None]
    ) -> list[LiveDifference]:
        """Find how the live table differs, in one snapshot. Live rows without a match count if the WHERE takes them."""
        side = self._tables[relation.qualified_name]
        within = [await self._condition(live, name, value) for name, value in where.items() if name in live.columns]
        # A live table that lost a column of the WHERE cannot say which other rows would belong to it.
        condition = " AND ".join(within) if len(within) == len(where) else ""
        key = relation.identity
        # Row-level security is then an error, and does not give fewer rows.
        await self._target.execute("SET row_security = off")
        await self._target.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        if key and set(key) <= live.columns.keys():
            found = await self._compare_by_key(_Pair(side, live, key), condition)
        else:
            found = await self._compare_whole_rows(_Pair(side, live, []), condition)
        await self._target.execute("COMMIT")
        return found

    def _beside(self, relation: Relation) -> Relation:
        return Relation(relation.oid, self._schema, relation.name, relation.replica_identity, relation.columns)

    async def _compare_by_key(self, pair: "_Pair", condition: str) -> list[LiveDifference]:
        found: list[LiveDifference] = []
        for key, is_missing, columns in await self._target.rows(pair.unequal()):
            kind: Kind = "missing live" if is_missing else "unequal"
            found.append(
                LiveDifference(kind, dict(zip(pair.key, key, strict=True)), () if is_missing else tuple(columns))
            )
        for (key,) in await self._target.rows(pair.only_live(condition)) if condition else ():
            found.append(LiveDifference("only live", dict(zip(pair.key, key, strict=True))))
        return found

    async def _compare_whole_rows(self, pair: "_Pair", condition: str) -> list[LiveDifference]:
        """Count the rows that have no equal; without a key nothing more can be said."""
        found: list[LiveDifference] = []
        for kind, query in pair.unmatched(condition or "true"):
            if kind == "missing live" or condition:
                found += [LiveDifference(kind, {})] * (await self._target.rows(query))[0][0]
        return found

    async def _condition(self, live: TargetTable, column: str, value: bytes | None) -> str:
        """Make the WHERE on a live column: equal as printed, and by the type's own `=`, which an index may serve."""
        name = f"l.{quote_identifier(column)}"
        if value is None:
            return f"{name} IS NULL AND num_nulls({name}) = 1"
        literal = quote_literal(value.decode(errors="surrogateescape"))
        printed = f"{_printed('l', live.columns[column])} = {literal}"
        said = await self._target.sqlstate_of(f"EXPLAIN SELECT FROM {live.only} AS l WHERE {name} = {literal}")
        if said.startswith(_NO_VALUE):
            return "false"
        return printed if said == _NO_OPERATOR else f"{name} = {literal} AND {printed}"

    def put_back(self, relation: Relation, live: TargetTable) -> str:
        """Make the SQL that inserts the rows which are missing live; '' where no key tells which ones are."""
        side = self._tables[relation.qualified_name]
        pair = _Pair(side, live, relation.identity)
        if not pair.key:
            return ""
        names = ", ".join(quote_identifier(column.name) for column in pair.columns if not column.generated)
        always = any(column.identity_always for column in pair.columns)
        overriding = "OVERRIDING SYSTEM VALUE " if always else ""
        return (
            f"INSERT INTO {live.sql_name} ({names}) {overriding}SELECT {names} FROM {side.sql_name} "
            "ON CONFLICT DO NOTHING;"
        )


class _Pair:
    """The queries that compare a table beside, `s`, with the live one, `l`, in the columns that both have."""

    def __init__(self, side: TargetTable, live: TargetTable, key: Sequence[str]) -> None:
        self.key = list(key)
        self.columns = [column for name, column in live.columns.items() if name in side.columns]
        self._side = side
        self._live = live
        self._join = " AND ".join(self._same(name) for name in key)
        self._differs = [self._differ(column) for column in self.columns if column.name not in self.key]

    def unequal(self) -> str:
        """The query for rows beside that are missing live, or are different there."""
        columns = ", ".join(
            f"CASE WHEN {differ} THEN {quote_literal(column.name)} END"
            for column, differ in zip(
                [column for column in self.columns if column.name not in self.key], self._differs, strict=True
            )
        )
        anything = " OR ".join(["l.tableoid IS NULL", *self._differs])
        return (
            f"SELECT ARRAY[{self._keys('s')}], l.tableoid IS NULL, array_remove(ARRAY[{columns}]::text[], NULL)"
            f" FROM {self._side.only} AS s LEFT JOIN {self._live.only} AS l ON {self._join}"
            f" WHERE {anything} ORDER BY {self._order('s')}"
        )

    def only_live(self, condition: str) -> str:
        """Make the query for live rows of the WHERE that are not beside."""
        return (
            f"SELECT ARRAY[{self._keys('l')}] FROM {self._live.only} AS l WHERE {condition}"
            f" AND NOT EXISTS (SELECT FROM {self._side.only} AS s WHERE {self._join}) ORDER BY {self._order('l')}"
        )

    def unmatched(self, condition: str) -> list[tuple[Kind, str]]:
        """Make the queries that count rows without an equal on the other side. All columns together are the key."""
        beside = f"SELECT {self._all('s', self._side)} FROM {self._side.only} AS s"
        live = f"SELECT {self._all('l', self._live)} FROM {self._live.only} AS l WHERE {condition}"
        return [
            ("missing live", f"SELECT count(*) FROM ({beside} EXCEPT ALL {live}) AS rows"),
            ("only live", f"SELECT count(*) FROM ({live} EXCEPT ALL {beside}) AS rows"),
        ]

    def _keys(self, alias: str) -> str:
        table = self._side if alias == "s" else self._live
        return ", ".join(_printed(alias, table.columns[name]) for name in self.key)

    def _order(self, alias: str) -> str:
        return ", ".join(f"{alias}.{quote_identifier(name)}" for name in self.key)

    def _all(self, alias: str, table: TargetTable) -> str:
        return ", ".join(_printed(alias, table.columns[column.name]) for column in self.columns)

    def _same(self, name: str) -> str:
        ours, theirs = self._side.columns[name], self._live.columns[name]
        if ours.type_name == theirs.type_name and not ours.by_text:
            return f"s.{quote_identifier(name)} = l.{quote_identifier(name)}"
        return f"{_printed('s', ours)} = {_printed('l', theirs)}"

    def _differ(self, column: TargetColumn) -> str:
        return f"{_printed('s', self._side.columns[column.name])} IS DISTINCT FROM {_printed('l', column)}"


def _printed(alias: str, column: TargetColumn) -> str:
    """Make the expression for a value's text as its type prints it. NULL stays NULL.

    A cast to text would trim char(n). Line breaks of a `json` were archived as spaces.
    """
    name = f"{alias}.{quote_identifier(column.name)}"
    text = f"format('%s', {name})"
    if column.type_name == "json":
        text = f"translate({text}, chr(10) || chr(13), '  ')"
    return f"CASE WHEN num_nulls({name}) = 0 THEN {text} END"
