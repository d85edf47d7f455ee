"""Makes SQL of archived changes, for a table of another database. Pure; `TargetDatabase.write` sends it.

Values go back as Postgres printed them, as literals of unknown type, which Postgres reads as the column's type.
Statements stand in the order of the changes. Runs of inserts into one table become one INSERT, long ones a COPY. Each
UPDATE and DELETE must meet exactly one row: `Sql.rows` says how many rows a statement must touch, and the sender checks
it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cdc.change import DELETE, UPDATE, Change, LogicalMessage, Relation, RowChange, Truncate
from cdc.errors import DataError, Invalid
from cdc.postgres.quoting import Qualified, quote_identifier
from cdc.row import ABSENT, Row, Value

# From so many rows on, COPY's extra round trips cost less than parsing VALUES.
_COPY_ROWS = 200

_SPECIAL = re.compile(rb"[\\\t\n\r]")


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """A column where rows go. `type_name` has its modifier; `identity_always` is GENERATED ALWAYS AS IDENTITY.

    `by_text`: the type's `=` is not Postgres's own and cannot be named without its schema.
    """

    name: str
    type_name: str
    generated: bool
    identity_always: bool
    by_text: bool


@dataclass(frozen=True, slots=True)
class TargetTable(Qualified):
    """A table where rows go. `referenced`: a foreign key points here, so that TRUNCATE is refused."""

    schema: str
    name: str
    partitioned: bool
    referenced: bool
    columns: dict[str, TargetColumn]

    @property
    def only(self) -> str:
        return self.sql_name if self.partitioned else f"ONLY {self.sql_name}"

    @property
    def writable(self) -> set[str]:
        """Names of the columns that rows have values for."""
        return {column.name for column in self.columns.values() if not column.generated}

    def copy(self, columns: Sequence[str]) -> bytes:
        """The COPY that takes rows with these columns."""
        return f"COPY {self.sql_name} ({', '.join(map(quote_identifier, columns))}) FROM STDIN".encode()


@dataclass(frozen=True, slots=True)
class Sql:
    """A statement, and how many rows it must touch; None where that does not matter."""

    text: bytes
    rows: int | None = None
    table: str = ""


@dataclass(frozen=True, slots=True)
class CopyRows:
    """`COPY ... FROM STDIN` and its lines."""

    text: bytes
    lines: bytes
    rows: int
    table: str


Statement = Sql | CopyRows


class TableWriter:
    """Makes statements that write rows of one relation, in one version of its shape, into one table.

    Columns that the table does not have are left out (they were dropped later), generated ones too.
    """

    def __init__(self, relation: Relation, table: TargetTable) -> None:
        self.table = table
        self._relation = relation
        columns = [(index, table.columns.get(column.name)) for index, column in enumerate(relation.columns)]
        self._columns = [(index, column) for index, column in columns if column is not None and not column.generated]
        self._indexes = [index for index, _ in self._columns]
        names = ", ".join(quote_identifier(column.name) for _, column in self._columns)
        self._insert = f"INSERT INTO {table.sql_name} ({names}) OVERRIDING SYSTEM VALUE VALUES ".encode()
        self._copy = table.copy([column.name for _, column in self._columns])
        key = set(relation.key_indexes)
        self._keys = [(index, column) for index, column in self._columns if index in key]
        self._whole_row = not relation.identity
        self._where_is_known = bool(key) and len(self._keys) == len(key)

    def insert(self, rows: Sequence[Row]) -> Statement:
        """Make the INSERT or COPY for rows that were not there. Raises DataError."""
        if len(rows) >= _COPY_ROWS:
            return self.copy(rows)
        values = b",\n".join([b"(" + b",".join([_literal(row[i]) for i in self._indexes]) + b")" for row in rows])
        return Sql(self._insert + values, len(rows), self.table.qualified_name)

    def copy(self, rows: Sequence[Row]) -> CopyRows:
        """Make the COPY for rows that were not there. Raises DataError."""
        lines = [b"\t".join([copy_field(row[index]) for index in self._indexes]) for row in rows]
        return CopyRows(self._copy, b"\n".join([*lines, b""]), len(rows), self.table.qualified_name)

    def update(self, change: RowChange) -> list[Statement]:
        """Make the UPDATE of one row; none if no known value changed. Unchanged TOAST values are left alone.

        Raises DataError, or Invalid if a GENERATED ALWAYS identity would change.
        """
        new = change.new or []
        identity = new if change.old is None else change.old
        settings = []
        for index, column in self._columns:
            value = new[index]
            if value is ABSENT or (index in self._relation.key_indexes and value == identity[index]):
                continue
            if column.identity_always:
                self._check_identity(column, value, identity[index])
                continue
            settings.append(quote_identifier(column.name).encode() + b" = " + _literal(value))
        if not settings:
            return []
        text = f"UPDATE {self.table.only} SET ".encode() + b", ".join(settings) + self._where(identity)
        return [Sql(text, 1, self.table.qualified_name)]

    def delete(self, change: RowChange) -> Statement:
        """Make the DELETE of the row with this key; under FULL without a key, of one row that is equal throughout.

        Raises DataError.
        """
        text = f"DELETE FROM {self.table.only}".encode() + self._where(change.old or [])
        return Sql(text, 1, self.table.qualified_name)

    def _check_identity(self, column: TargetColumn, value: Value, before: Value) -> None:
        if before is ABSENT or value == before:
            return
        raise Invalid(
            f"{self.table.qualified_name}.{column.name} is GENERATED ALWAYS, and the archive changes its value",
            hint=f"ALTER TABLE {self.table.sql_name} ALTER {quote_identifier(column.name)} SET GENERATED BY DEFAULT;",
        )

    def _where(self, identity: Row) -> bytes:
        if not self._where_is_known:
            raise DataError(
                f"a row of {self.table.qualified_name} is to be changed, and nothing tells which",
                detail="The archived relation has no key, or the target's table lacks a column of it.",
            )
        if not self._whole_row:
            return b" WHERE " + b" AND ".join(_equal(column, identity[index]) for index, column in self._keys)
        same = b" AND ".join(_same_text(column, identity[index]) for index, column in self._keys)
        place = b"(tableoid, ctid)" if self.table.partitioned else b"ctid"
        select = place.strip(b"()")
        return b" WHERE %b = (SELECT %b FROM %b WHERE %b LIMIT 1)" % (place, select, self.table.only.encode(), same)


def _equal(column: TargetColumn, value: Value) -> bytes:
    if column.by_text or value is None:
        return _same_text(column, value)
    return quote_identifier(column.name).encode() + b" = " + _literal(value)


def _same_text(column: TargetColumn, value: Value) -> bytes:
    """Compare as printed. Every type can be compared so, json too; 1.0 is not 1.00."""
    name = quote_identifier(column.name).encode()
    if value is None:
        return name + b" IS NULL"
    return b"%b::text = (%b::%b)::text" % (name, _literal(value), column.type_name.encode())


def _literal(value: Value) -> bytes:
    """Write a value as `standard_conforming_strings` reads it."""
    if value is None:
        return b"NULL"
    if value is ABSENT:
        raise DataError("a row in the archive lacks a value", hint="cdc archive verify")
    return b"'" + (value.replace(b"'", b"''") if b"'" in value else value) + b"'"


def copy_field(value: Value) -> bytes:
    """Write a value in COPY's text format (manual, COPY, "Text Format"). Raises DataError if it is absent."""
    if value is None:
        return rb"\N"
    if value is ABSENT:
        raise DataError("a row in the archive lacks a value", hint="cdc archive verify")
    if _SPECIAL.search(value) is None:
        return value
    value = value.replace(b"\\", rb"\\").replace(b"\t", rb"\t")
    return value.replace(b"\n", rb"\n").replace(b"\r", rb"\r")


class Script:
    """Gathers the statements of some transactions, in order. `weight` is about the bytes it holds."""

    def __init__(self, writers: "Writers") -> None:
        self.statements: list[Statement] = []
        self.weight = 0
        self._writers = writers
        self._run: list[Row] = []
        self._running: TableWriter | None = None

    def add(self, change: Change) -> None:
        """Add the next change; one of a table that is not wanted does nothing. Raises DataError or Invalid."""
        match change:
            case RowChange():
                writer = self._writers.of(change.relation)
                if writer is not None:
                    self._add_row(writer, change)
            case Truncate():
                writer = self._writers.of(change.relation)
                if writer is not None:
                    self._put(_truncate(writer.table))
            case LogicalMessage():
                pass

    def finish(self) -> list[Statement]:
        """Take all statements; the script is empty afterwards."""
        self._end_run()
        statements, self.statements, self.weight = self.statements, [], 0
        return statements

    def _add_row(self, writer: TableWriter, change: RowChange) -> None:
        if change.op == DELETE:
            self._put(writer.delete(change))
        elif change.op == UPDATE:
            for statement in writer.update(change):
                self._put(statement)
        elif change.new is not None:
            if self._running is not writer:
                self._end_run()
                self._running = writer
            self._run.append(change.new)

    def _put(self, statement: Statement) -> None:
        self._end_run()
        self.statements.append(statement)

    def _end_run(self) -> None:
        if self._running is not None and self._run:
            self.statements.append(self._running.insert(self._run))
        self._run, self._running = [], None


def _truncate(table: TargetTable) -> Statement:
    """Empty a table. One that a foreign key points to cannot be truncated alone, by any session."""
    return Sql((f"DELETE FROM {table.only}" if table.referenced else f"TRUNCATE {table.only}").encode())


class Writers:
    """Keeps the writer of each relation; a table's shape may change on the way. Only `tables` have writers."""

    def __init__(self, tables: dict[str, TargetTable]) -> None:
        self._tables = tables
        self._writers: dict[Relation, TableWriter] = {}

    def of(self, relation: Relation) -> TableWriter | None:
        table = self._tables.get(relation.qualified_name)
        if table is None:
            return None
        writer = self._writers.get(relation)
        if writer is None:
            writer = self._writers[relation] = TableWriter(relation, table)
        return writer
