"""The role of `postgres.dsn`: what it may do, and how many of the server's WAL senders are taken."""

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from cdc.errors import Unavailable
from cdc.postgres.refusal import in_session, refusal_of_exception
from cdc.postgres.session import Connection

_ROLE = """
SELECT rolname, rolsuper, rolreplication,
       array(SELECT oid::regclass::text FROM unnest(%s::oid[]) AS oid
              WHERE NOT has_table_privilege(oid, 'SELECT')),
       (SELECT count(*) FROM pg_stat_replication)
  FROM pg_roles WHERE rolname = current_user
"""


@dataclass(frozen=True, slots=True)
class Role:
    """`unreadable` are the published tables that this role may not SELECT from, which a snapshot must do."""

    name: str
    superuser: bool
    replication: bool
    unreadable: tuple[str, ...]
    wal_senders: int


async def read_role(connection: Connection, table_oids: Sequence[int]) -> Role:
    """The connection's role, with regard to these tables. Raises Unavailable or Invalid."""
    try:
        row = await (await connection.execute(_ROLE, [list(table_oids)])).fetchone()
    except psycopg.Error as error:
        raise in_session(refusal_of_exception(error)) from None
    if row is None:
        raise Unavailable("Postgres did not answer")
    name, superuser, replication, unreadable, wal_senders = row
    return Role(name, superuser, replication, tuple(unreadable), wal_senders)
