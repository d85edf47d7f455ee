"""Removing publication and DDL sentinel, for `cdc teardown`. The slot's own removal is `slot.drop_slot`."""

from typing import Final

import psycopg

from cdc.postgres.quoting import quote_identifier
from cdc.postgres.refusal import in_session, refusal_of_exception
from cdc.postgres.session import Connection


async def drop_publication(connection: Connection, name: str) -> bool:
    """Drop the publication; False if there was none. Raises Invalid unless the role owns it."""
    try:
        await connection.execute(f"DROP PUBLICATION {quote_identifier(name)}".encode())
    except psycopg.errors.UndefinedObject:
        return False
    except psycopg.Error as error:
        raise in_session(refusal_of_exception(error)) from None
    return True


_HAS_DDL_SENTINEL: Final = "SELECT FROM pg_event_trigger WHERE evtname IN ('cdc_ddl_command_end', 'cdc_sql_drop')"

# The triggers first: they need the function, and would record that it goes.
_DROP_DDL_SENTINEL: Final = """
DROP EVENT TRIGGER IF EXISTS cdc_ddl_command_end;
DROP EVENT TRIGGER IF EXISTS cdc_sql_drop;
DROP FUNCTION IF EXISTS public.cdc_ddl_sentinel()
"""


async def drop_ddl_sentinel(connection: Connection) -> bool:
    """Drop the event triggers of sql/ddl_sentinel.sql; False if there were none. Raises Invalid unless we own them."""
    try:
        async with connection.transaction():
            found = await (await connection.execute(_HAS_DDL_SENTINEL)).fetchone()
            await connection.execute(_DROP_DDL_SENTINEL)
    except psycopg.Error as error:
        raise in_session(refusal_of_exception(error)) from None
    return found is not None
