"""Reads a snapshot's rows: the tables exactly as they were where the slot begins, in the bytes the stream would send.

Rows stream through COPY in text format, so memory stays bounded for a table of any size. COPY escapes what pgoutput
does not; `decode_row` takes the escapes off again. Then both texts are the same, because both come from the type's
output function under the same session settings (manual, COPY, "Text Format").

Only what the publication lets through is read: its columns and its row filter, and all partitions of a root that is
published in their place. The stream does not know row-level security: here it is an error, not fewer rows.
"""

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from psycopg import pq

from cdc.config import PostgresSettings
from cdc.errors import CdcError, Invalid, Unavailable
from cdc.postgres.publication import PublishedTable
from cdc.postgres.quoting import quote_identifier, quote_literal
from cdc.postgres.refusal import (
    INSUFFICIENT_PRIVILEGE,
    INVALID_PARAMETER_VALUE,
    UNDEFINED_OBJECT,
    Refusal,
    in_session,
    refusal_of_result,
    refused_as,
)
from cdc.postgres.session import Connection, connect
from cdc.postgres.slot import ExportedSnapshot
from cdc.postgres.stream.pump import Pump
from cdc.row import Row

_BATCH_ROWS: Final = 1000
_BATCH_BYTES: Final = 1024 * 1024

# The escapes that COPY TO writes (copyto.c, CopyAttributeOutText), besides the doubled backslash.
_ESCAPES: Final = ((rb"\n", b"\n"), (rb"\t", b"\t"), (rb"\r", b"\r"), (rb"\b", b"\b"), (rb"\f", b"\f"), (rb"\v", b"\v"))


@dataclass(frozen=True, slots=True)
class Condition:
    """`column operator value`, where Postgres reads the value as the column's type."""

    column: str
    operator: Literal["=", "<", "<=", ">", ">="]
    value: str


class SnapshotReader:
    """Reads tables in one snapshot, one after another."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pgconn = connection.raw.pgconn

    async def rows(
        self, table: PublishedTable, *, where: Condition | None = None, order_by: Sequence[str] = ()
    ) -> AsyncIterator[list[Row]]:
        """The table's published rows in batches, values in the order of `table.columns`.

        Raises Unavailable when the server goes away, Invalid for what the role may not read. A caller that stops early
        must close the reader too: the rest of the COPY is still under way.
        """
        pump = Pump(self._pgconn)
        width = len(table.columns)
        await self._start_copy(pump, table, select_rows(table, where, order_by))
        while True:
            lines, _ = pump.drain(_BATCH_BYTES)
            for first in range(0, len(lines), _BATCH_ROWS):
                yield [decode_row(line, width) for line in lines[first : first + _BATCH_ROWS]]
            if pump.over:
                break
            if not lines:
                await pump.readable()
        await self._finish_copy(pump, table)

    async def time_us(self) -> int:
        """Read when the snapshot's transaction began, in microseconds since 1970.

        The clock is the server's, as for the times in the rows. Raises Unavailable or Invalid.
        """
        (time_us,) = await self._connection.one("SELECT (extract(epoch FROM now()) * 1000000)::bigint")
        return int(time_us)

    async def _start_copy(self, pump: Pump, table: PublishedTable, query: str) -> None:
        with refused_as(in_session):
            self._pgconn.send_query(f"COPY ({query}) TO STDOUT".encode())
            await pump.flushed()
            result = await pump.result()
            if result is None or result.status != pq.ExecStatus.COPY_OUT:
                await pump.cleared()
        if result is None or result.status != pq.ExecStatus.COPY_OUT:
            raise _refused(refusal_of_result(result), table)

    async def _finish_copy(self, pump: Pump, table: PublishedTable) -> None:
        """End the COPY. The rows are complete only when the server says so."""
        with refused_as(in_session):
            if pump.broken is not None:
                raise pump.broken
            result = await pump.result()
            await pump.cleared()
        if result is None or result.status != pq.ExecStatus.COMMAND_OK:
            raise _refused(refusal_of_result(result), table)


def select_rows(table: PublishedTable, where: Condition | None, order_by: Sequence[str]) -> str:
    """Make the query for a table's published rows. A partitioned root's are in its partitions."""
    columns = ", ".join(quote_identifier(column.name) for column in table.columns)
    conditions = [f"({table.row_filter})"] if table.row_filter else []
    if where is not None:
        conditions.append(f"{quote_identifier(where.column)} {where.operator} {quote_literal(where.value)}")
    return (
        f"SELECT {columns} FROM {'' if table.is_partitioned else 'ONLY '}{table.sql_name}"
        + (f" WHERE {' AND '.join(conditions)}" if conditions else "")
        + (f" ORDER BY {', '.join(map(quote_identifier, order_by))}" if order_by else "")
    )


def decode_row(line: bytes, width: int) -> Row:
    """Split one line of COPY text, its line feed included, into `width` values."""
    if not width:
        return []
    fields = line[:-1].split(b"\t")
    if b"\\" not in line:
        return list(fields)
    return [_unescape(field) if b"\\" in field else field for field in fields]


def _unescape(field: bytes) -> bytes | None:
    """Take the escapes off. Between doubled backslashes every other backslash begins an escape of its own."""
    if field == rb"\N":
        return None
    pieces = field.split(rb"\\")
    for index, piece in enumerate(pieces):
        if b"\\" in piece:
            for escape, byte in _ESCAPES:
                piece = piece.replace(escape, byte)
            pieces[index] = piece
    return b"\\".join(pieces)


@contextlib.asynccontextmanager
async def open_snapshot(settings: PostgresSettings, exported: ExportedSnapshot) -> AsyncIterator[SnapshotReader]:
    """Open a reader in the exported snapshot. The connection that exported it must still be open.

    Raises Unavailable if the snapshot is gone, or Invalid.
    """
    connection = await connect(settings)
    try:
        await _adopt(connection, exported)
        yield SnapshotReader(connection)
    finally:
        await connection.close()


async def _adopt(connection: Connection, exported: ExportedSnapshot) -> None:
    if connection.server_encoding == "SQL_ASCII":
        await connection.execute("SET client_encoding TO SQL_ASCII")
    await connection.execute("SET row_security = off")
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    refused = await connection.attempt(f"SET TRANSACTION SNAPSHOT {quote_literal(exported.snapshot_name)}")
    if not isinstance(refused, Refusal):
        return
    if refused.sqlstate not in (INVALID_PARAMETER_VALUE, UNDEFINED_OBJECT):
        raise in_session(refused)
    raise Unavailable(
        f"the snapshot of slot {exported.slot} is gone",
        detail=refused.explanation,
        hint="it lives as long as the connection that created the slot; the backfill starts over",
    )


def _refused(refusal: Refusal, table: PublishedTable) -> CdcError:
    """Make the error of a table that could not be read."""
    if refusal.sqlstate == INSUFFICIENT_PRIVILEGE:
        return Invalid(
            f"the role may not read all rows of {table.qualified_name}",
            detail=refusal.explanation,
            hint=f"GRANT SELECT ON {table.sql_name} TO role; under row-level security also: ALTER ROLE role BYPASSRLS;",
        )
    return in_session(refusal)
