"""A barrier in the WAL: a logical message outside any transaction, which says when it was written.

It takes no transaction id and waits for no standby, and any role may write it. Nothing is published for it, and no
reader of rows sees it; the archive has it as a line with `op` `m`.
"""

from typing import Final

import orjson
import psycopg

from cdc.config import PostgresSettings
from cdc.postgres.mark import emit_message
from cdc.postgres.refusal import in_session, refusal_of_exception
from cdc.postgres.session import Connection, connect

PREFIX: Final = "cdc.barrier"

# To write a hundred bytes must never be what hurts.
_STATEMENT_TIMEOUT_MS: Final = 5000


async def connect_for_barriers(settings: PostgresSettings) -> Connection:
    """A session that never asks for long. Raises Unavailable or Invalid."""
    connection = await connect(settings, application_name="waltier barriers")
    try:
        await connection.execute(f"SET statement_timeout = {_STATEMENT_TIMEOUT_MS}")
    except psycopg.Error as error:
        await connection.close()
        raise in_session(refusal_of_exception(error)) from None
    return connection


async def emit_barrier(connection: Connection, number: int, at: str) -> int:
    """Write one; return where its record ends. Every commit that was seen before is before it. Raises Unavailable."""
    content = orjson.dumps({"number": number, "at": at}).decode()
    return await emit_message(connection, PREFIX, content, transactional=False)
