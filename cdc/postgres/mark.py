"""A mark in the WAL: a logical message, which every stream brings, so that an idle source moves its archive too."""

from typing import Final

import psycopg

from cdc.errors import Unavailable
from cdc.lsn import parse_lsn
from cdc.postgres.refusal import in_session, refusal_of_exception
from cdc.postgres.session import Connection

PREFIX: Final = "cdc.verify"


async def emit_mark(connection: Connection) -> int:
    """Commit a transaction that holds nothing but a message; every earlier commit is before this LSN."""
    return await emit_message(connection, PREFIX, "", transactional=True)


async def emit_message(connection: Connection, prefix: str, content: str, *, transactional: bool) -> int:
    """Write a logical message; return where its record ends. Raises Unavailable."""
    try:
        cursor = await connection.execute(
            "SELECT pg_logical_emit_message(%s, %s, %s)::text", [transactional, prefix, content]
        )
        row = await cursor.fetchone()
    except psycopg.Error as error:
        raise in_session(refusal_of_exception(error)) from None
    if row is None:
        raise Unavailable("Postgres did not answer")
    return parse_lsn(row[0])
