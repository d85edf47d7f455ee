"""The event triggers of sql/ddl_sentinel.sql: reads which of them a database has, and drops them."""

from typing import Final

from cdc.postgres.session import Connection

DDL_TRIGGERS: Final = ("cdc_ddl_command_end", "cdc_sql_drop")

_FIND: Final = "SELECT evtname::text, evtenabled <> 'D' FROM pg_event_trigger WHERE evtname = ANY (%s)"

# The triggers first: they need the function, and would record that it goes.
_DROP: Final = ";\n".join(
    [
        *(f"DROP EVENT TRIGGER IF EXISTS {name}" for name in DDL_TRIGGERS),
        "DROP FUNCTION IF EXISTS public.cdc_ddl_sentinel()",
    ]
)


async def read_ddl_sentinel(connection: Connection) -> dict[str, bool]:
    """Read which of the triggers are there: by name, True if enabled. Raises Unavailable or Invalid."""
    return {str(name): bool(enabled) for name, enabled in await connection.all(_FIND, [list(DDL_TRIGGERS)])}


async def drop_ddl_sentinel(connection: Connection) -> bool:
    """Drop the triggers and their function; False if there were none.

    Raises Invalid unless the role owns them, Unavailable if the server is away.
    """
    async with connection.transaction():
        found = await read_ddl_sentinel(connection)
        await connection.execute(_DROP)
    return bool(found)
