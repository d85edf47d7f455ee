"""The target of a restore: a database that gets rows and, in the same transactions, remembers how far it has come.

The table `cdc.restore` in the target says which snapshot's chunks and which transactions are there. It moves with the
rows or not at all, so a restore that was killed goes on where it was. Triggers, rules and foreign keys are put off with
`session_replication_role` where the role may. The source's own have done their work, and it is in the archive.
"""

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import SecretStr, ValidationError

from cdc.change import Column, Relation
from cdc.config import PostgresSettings
from cdc.errors import CdcError, DataError, Invalid
from cdc.postgres.quoting import quote_identifier, quote_literal
from cdc.postgres.refusal import INSUFFICIENT_PRIVILEGE, Refusal, in_session, refused_as
from cdc.postgres.server import Server, read_server
from cdc.postgres.session import Connection, Parameters, connect
from cdc.postgres.target.statement import CopyRows, Sql, Statement, TargetColumn, TargetTable
from cdc.row import Oid

# One message to the server. It has as many answers as statements.
_MESSAGE_BYTES: Final = 1024 * 1024

_RECORD = """
CREATE SCHEMA IF NOT EXISTS cdc;
CREATE TABLE IF NOT EXISTS cdc.restore (
    archive text PRIMARY KEY, base_seq bigint NOT NULL, tables text[] NOT NULL,
    chunks integer NOT NULL, next_ordinal bigint NOT NULL, finished boolean NOT NULL
);
"""

_TABLE = f"""
SELECT c.relkind = 'p',
       EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND confrelid = c.oid AND conrelid <> c.oid),
       a.attname, format_type(a.atttypid, a.atttypmod), a.attgenerated <> '', a.attidentity = 'a',
       t.oid >= {Oid.FIRST_USER} AND t.typtype = 'b' AND t.typcategory <> 'A'
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_type t ON t.oid = a.atttypid
 WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')
 ORDER BY a.attnum
"""

_SEQUENCES = """
SELECT a.attname, s.seqrelid::regclass::text, s.seqincrement < 0
  FROM pg_attribute a
  JOIN pg_sequence s ON s.seqrelid = pg_get_serial_sequence(%(table)s, a.attname)::regclass
 WHERE a.attrelid = %(table)s::regclass AND a.attnum > 0 AND NOT a.attisdropped
"""


@dataclass(frozen=True, slots=True)
class Record:
    """The state of a restore: it has chunks of the snapshot `base_seq`, then transactions before `next_ordinal`."""

    archive: str
    base_seq: int
    tables: tuple[str, ...]
    chunks: int
    next_ordinal: int
    finished: bool


class TargetDatabase:
    """One session on the target. Every method may raise Unavailable, or Invalid for what the target refuses."""

    def __init__(self, connection: Connection, server: Server) -> None:
        self.server = server
        self._connection = connection
        self._raw = connection.raw
        self._raw.prepare_threshold = None  # a prepared statement is one statement, and ours are runs of them
        self._in_transaction = False

    async def put_off_triggers(self) -> bool:
        """Put triggers, rules and foreign keys off; False if the role may not, and then they stay in force.

        Raises Unavailable or Invalid.
        """
        refused = await self._connection.attempt("SET session_replication_role = replica")
        if not isinstance(refused, Refusal):
            return True
        if refused.sqlstate == INSUFFICIENT_PRIVILEGE:
            return False
        raise _refused(refused)

    async def find_table(self, schema: str, name: str) -> TargetTable | None:
        """Read the table as it is in the target; None if there is none."""
        rows = await self.rows(_TABLE, (schema, name))
        if not rows:
            return None
        columns = {row[2]: TargetColumn(*row[2:]) for row in rows if row[2] is not None}
        return TargetTable(schema, name, bool(rows[0][0]), bool(rows[0][1]), columns)

    async def create_table(self, relation: Relation, *, unlogged: bool = False) -> None:
        """Make a table of an archived relation's shape: columns and key. The archive knows nothing else of it."""
        columns = [
            f"{quote_identifier(column.name)} {await self._type_name(relation, column)}" for column in relation.columns
        ]
        table = f"{quote_identifier(relation.schema)}.{quote_identifier(relation.name)}"
        body = ", ".join([*columns, *_key_of(relation)])
        await self.execute(f"CREATE SCHEMA IF NOT EXISTS {quote_identifier(relation.schema)}")
        await self.execute(f"CREATE {'UNLOGGED ' if unlogged else ''}TABLE {table} ({body})")

    async def has_rows(self, table: TargetTable) -> bool:
        rows = await self.rows(f"SELECT EXISTS (SELECT FROM {table.only})")
        return bool(rows[0][0])

    async def read_records(self) -> list[Record]:
        """Read the records that restores have written here; normally none or one."""
        if not (await self.rows("SELECT to_regclass('cdc.restore') IS NOT NULL"))[0][0]:
            return []
        rows = await self.rows("SELECT archive, base_seq, tables, chunks, next_ordinal, finished FROM cdc.restore")
        return [Record(row[0], row[1], tuple(row[2]), row[3], row[4], row[5]) for row in rows]

    async def begin(self, record: Record) -> None:
        """Write down what is about to be restored."""
        await self.execute(_RECORD)
        await self.rows(
            "INSERT INTO cdc.restore VALUES (%s, %s, %s, %s, %s, %s) RETURNING 1",
            (
                record.archive,
                record.base_seq,
                list(record.tables),
                record.chunks,
                record.next_ordinal,
                record.finished,
            ),
        )

    async def write(self, statements: Sequence[Statement], then: Record | None) -> None:
        """Run the statements; with `then`, write that record down too and commit. Raises DataError too.

        DataError means that a statement met another number of rows than the archive says.
        """
        with refused_as(_refused):
            await self._begin()
            for message in _messages(statements):
                if isinstance(message, CopyRows):
                    await self._copy(message)
                else:
                    await self._run(message)
            if then is not None:
                await self._run([_remember(then)])
                await self._raw.execute(b"COMMIT")
                self._in_transaction = False

    async def copy(self, text: bytes, lines: AsyncIterator[bytes]) -> int:
        """Run a COPY whose lines come as they are made; return how many rows it took. `write` commits it."""
        with refused_as(_refused):
            await self._begin()
            async with self._raw.cursor() as cursor:
                async with cursor.copy(text) as copy:
                    async for some in lines:
                        await copy.write(some)
                return cursor.rowcount

    async def set_sequences(self, table: TargetTable) -> list[str]:
        """Let the sequences of a table's columns go on after its rows; return their names."""
        found = await self.rows(_SEQUENCES, {"table": table.sql_name})
        for column, sequence, descending in found:
            last = f"{'min' if descending else 'max'}({quote_identifier(column)})"
            await self.execute(
                f"SELECT setval({quote_literal(sequence)}::regclass, last) "
                f"FROM (SELECT {last} AS last FROM {table.sql_name}) AS rows WHERE last IS NOT NULL"
            )
        return [str(sequence) for _, sequence, _ in found]

    async def finish(self, record: Record) -> None:
        """Write down that the restore is complete, and wait until all of it is on the target's disk."""
        await self.execute("SET synchronous_commit = on")
        await self.write([], record)

    async def _begin(self) -> None:
        if not self._in_transaction:
            await self._raw.execute(b"BEGIN; SET CONSTRAINTS ALL DEFERRED")
            self._in_transaction = True

    async def _run(self, statements: Sequence[Sql]) -> None:
        """Run several statements in one message. Each must touch as many rows as it says."""
        cursor = await self._raw.execute(b";\n".join([statement.text for statement in statements]))
        for number, statement in enumerate(statements):
            if number:
                cursor.nextset()
            if statement.rows is not None and cursor.rowcount != statement.rows:
                raise DataError(
                    f"the archive and the target do not fit: a change of {statement.table} meets {cursor.rowcount} "
                    f"rows instead of {statement.rows}",
                    detail="Another session writes to the target, or rows were in it, or the archive is damaged.",
                    hint="cdc archive verify; then restore into an empty database",
                )

    async def _copy(self, rows: CopyRows) -> None:
        async with self._raw.cursor() as cursor:
            async with cursor.copy(rows.text) as copy:
                await copy.write(rows.lines)
            if cursor.rowcount != rows.rows:
                raise DataError(f"COPY took {cursor.rowcount} of {rows.rows} rows into {rows.table}")

    async def _type_name(self, relation: Relation, column: Column) -> str:
        by_oid = column.type_oid < Oid.FIRST_USER
        found = "%(oid)s::oid" if by_oid else "to_regtype(%(name)s)::oid"
        rows = await self.rows(
            f"SELECT format_type({found}, %(typmod)s)",
            {"oid": column.type_oid, "name": column.type_name, "typmod": column.typmod},
        )
        if rows[0][0] in (None, "???"):
            raise Invalid(
                f"the target has no type {column.type_name}, which {relation.qualified_name}.{column.name} is of",
                detail="The archive holds the shapes of tables, not the definitions of types.",
                hint="pg_dump --schema-only SOURCE | psql TARGET, or create the type or its extension there",
            )
        return str(rows[0][0])

    async def rows(self, query: str, parameters: Parameters = None) -> list[tuple[Any, ...]]:
        """Return the rows of a query. In databases without an encoding it may hold bytes as `surrogateescape` does."""
        found = await self._connection.attempt(query, parameters)
        if isinstance(found, Refusal):
            raise _refused(found)
        return found

    async def sqlstate_of(self, query: str) -> str:
        """Ask the target whether it takes a query; return the SQLSTATE of its refusal, or ''.

        Not within a transaction, which a refusal would end.
        """
        refused = await self._connection.attempt(query)
        return (refused.sqlstate or "08000") if isinstance(refused, Refusal) else ""

    async def commit(self) -> None:
        """Commit what `write` has begun."""
        await self.execute("COMMIT")
        self._in_transaction = False

    async def execute(self, query: str) -> None:
        await self.rows(query)


def settings_of(dsn: str, option: str) -> PostgresSettings:
    """Make settings of a dsn of the command line. Raises Invalid, which does not quote it: it may hold a password."""
    try:
        return PostgresSettings(dsn=SecretStr(dsn))
    except ValidationError:
        raise Invalid(
            f"{option} is not a connection string", hint=f"{option} postgresql://postgres@localhost/DATABASE"
        ) from None


@contextlib.asynccontextmanager
async def open_target(dsn: str) -> AsyncIterator[TargetDatabase]:
    """Open a session on the target. Raises Invalid or Unavailable."""
    connection = await connect(settings_of(dsn, "--into"), application_name="waltier restore")
    try:
        server = await read_server(connection)
        if server.encoding == "SQL_ASCII":
            await connection.execute("SET client_encoding TO SQL_ASCII")
        await connection.execute("SET standard_conforming_strings = on")
        # A crash of the target's server may lose the last rows. It then loses the record of them as well.
        await connection.execute("SET synchronous_commit = off")
        yield TargetDatabase(connection, server)
    finally:
        await connection.close()


def _key_of(relation: Relation) -> list[str]:
    """Make the constraint of the columns that identify a row."""
    names = [quote_identifier(name) for name in relation.identity]
    if not names:
        return []
    kind = "UNIQUE" if relation.replica_identity == "i" else "PRIMARY KEY"
    return [f"{kind} ({', '.join(names)})"]


def _remember(record: Record) -> Sql:
    return Sql(
        f"UPDATE cdc.restore SET chunks = {record.chunks}, next_ordinal = {record.next_ordinal}, "
        f"finished = {record.finished} WHERE archive = {quote_literal(record.archive)}".encode(),
        1,
        "cdc.restore",
    )


def _messages(statements: Sequence[Statement]) -> list[CopyRows | list[Sql]]:
    """Gather statements into messages; each COPY is a message of its own."""
    messages: list[CopyRows | list[Sql]] = []
    gathered, weight = list[Sql](), 0
    for statement in statements:
        if isinstance(statement, CopyRows) or weight > _MESSAGE_BYTES:
            messages += [gathered] if gathered else []
            gathered, weight = [], 0
        if isinstance(statement, CopyRows):
            messages.append(statement)
        else:
            gathered.append(statement)
            weight += len(statement.text)
    return [*messages, gathered] if gathered else messages


def _refused(refusal: Refusal) -> CdcError:
    """Make the error of a statement that the target did not take."""
    if refusal.sqlstate == INSUFFICIENT_PRIVILEGE:
        return Invalid(
            "the role may not restore into this database",
            detail=refusal.explanation,
            hint="cdc restore --into postgresql://OWNER@HOST/DATABASE; the role creates schema cdc and writes tables",
        )
    if refusal.sqlstate.startswith("23"):
        return Invalid(
            "the target's constraints refuse rows that the source had",
            detail=refusal.explanation,
            hint="restore as a superuser, into the source's own schema: pg_dump --schema-only SOURCE | psql TARGET",
        )
    return in_session(refusal)
