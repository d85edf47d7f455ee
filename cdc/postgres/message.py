"""Logical messages that we write into the WAL ourselves: marks and barriers.

Every stream brings them, so they move the archive of an idle source too. Nothing is published for them. No reader of
rows sees them. Any role may write them. The archive has each as a line with `op` `m`.

A mark is a transaction that holds nothing else: `cdc archive verify --against` waits until the archive has it. A
barrier lies outside any transaction, takes no transaction id and waits for no standby; its content says when it was
written.
"""

from typing import Final

import orjson

from cdc.config import PostgresSettings
from cdc.errors import CdcError
from cdc.lsn import parse_lsn
from cdc.postgres.session import Connection, connect

MARK_PREFIX: Final = "cdc.verify"
BARRIER_PREFIX: Final = "cdc.barrier"

# A barrier has a hundred bytes: a server that takes longer is in trouble, and must not be held up by us.
_STATEMENT_TIMEOUT_MS: Final = 5000


async def connect_for_barriers(settings: PostgresSettings) -> Connection:
    """Open a session whose statements end after 5 s. Raises Unavailable or Invalid."""
    connection = await connect(settings, application_name="waltier barriers")
    try:
        await connection.execute(f"SET statement_timeout = {_STATEMENT_TIMEOUT_MS}")
    except CdcError:
        await connection.close()
        raise
    return connection


async def emit_mark(connection: Connection) -> int:
    """Commit a transaction that holds nothing but a message; return its LSN. Every earlier commit lies before it.

    Raises Unavailable or Invalid.
    """
    return await emit_message(connection, MARK_PREFIX, "", transactional=True)


async def emit_barrier(connection: Connection, number: int, at: str) -> int:
    """Write a barrier; return the LSN where its record ends. Every commit that was seen before lies before it.

    `at` is the time of writing, for the reader of the archive. Raises Unavailable or Invalid.
    """
    content = orjson.dumps({"number": number, "at": at}).decode()
    return await emit_message(connection, BARRIER_PREFIX, content, transactional=False)


async def emit_message(connection: Connection, prefix: str, content: str, *, transactional: bool) -> int:
    """Write a logical message; return the LSN where its record ends. Raises Unavailable or Invalid."""
    (lsn,) = await connection.one("SELECT pg_logical_emit_message(%s, %s, %s)::text", [transactional, prefix, content])
    return parse_lsn(lsn)
