"""The event triggers of sql/ddl_sentinel.sql, as a database has them."""

from typing import Final

import psycopg

from cdc.postgres.refusal import in_session, refusal_of_exception
from cdc.postgres.session import Connection

TRIGGERS: Final = ("cdc_ddl_command_end", "cdc_sql_drop")


async def read_ddl_sentinel(connection: Connection) -> dict[str, bool]:
    """Which of the triggers are there, and whether each is enabled. Raises Unavailable."""
    try:
        cursor = await connection.execute(
            "SELECT evtname::text, evtenabled <> 'D' FROM pg_event_trigger WHERE evtname = ANY (%s)", [list(TRIGGERS)]
        )
        return {str(name): bool(enabled) for name, enabled in await cursor.fetchall()}
    except psycopg.Error as error:
        raise in_session(refusal_of_exception(error)) from None
