"""A lock that one service holds while it begins an archive: until the stream runs, the slot itself is no lock yet."""

import psycopg

from cdc.postgres.refusal import in_session, refusal_of_exception
from cdc.postgres.session import Connection


async def try_lock(connection: Connection, slot: str) -> bool:
    """Take the advisory lock of this slot's name for as long as the session lives; False if another session has it."""
    try:
        cursor = await connection.execute(
            "SELECT pg_try_advisory_lock(hashtext('waltier'), hashtext(%s))",
            [slot],
        )
        row = await cursor.fetchone()
    except psycopg.Error as error:
        raise in_session(refusal_of_exception(error)) from None
    return row is not None and bool(row[0])
