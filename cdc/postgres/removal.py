"""Removing the publication, for `cdc teardown --publication`. The slot's own removal is `slot.drop_slot`."""

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
