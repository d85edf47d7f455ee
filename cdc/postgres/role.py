"""The role of `postgres.dsn`: what it may do, and how many of the server's WAL senders are taken."""

from collections.abc import Sequence
from dataclasses import dataclass

from cdc.postgres.session import Connection

_ROLE = """
SELECT quote_ident(rolname), rolsuper, rolreplication,
       array(SELECT c.oid::regclass::text FROM pg_class c WHERE c.oid = ANY (%(oids)s::oid[])
                AND NOT (has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(c.relnamespace, 'USAGE'))),
       array(SELECT DISTINCT quote_ident(n.nspname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE c.oid = ANY (%(oids)s::oid[]) AND NOT has_schema_privilege(n.oid, 'USAGE') ORDER BY 1),
       array(SELECT c.oid::regclass::text FROM pg_class c WHERE c.oid = ANY (%(oids)s::oid[])
                AND row_security_active(c.oid)),
       (SELECT count(*) FROM pg_stat_replication)
  FROM pg_roles WHERE rolname = current_user
"""


@dataclass(frozen=True, slots=True)
class Role:
    """The privileges of a role. `unreadable` are the published tables that it may not SELECT from, as a snapshot must.

    `closed_schemas` are those of their schemas that it may not even use. `guarded` are the tables where row-level
    security hides rows from it. Names are quoted where SQL needs it.
    """

    name: str
    superuser: bool
    replication: bool
    unreadable: tuple[str, ...]
    closed_schemas: tuple[str, ...]
    guarded: tuple[str, ...]
    wal_senders: int


async def read_role(connection: Connection, table_oids: Sequence[int]) -> Role:
    """Read what the connection's role may do with these tables. Raises Unavailable or Invalid."""
    row = await connection.one(_ROLE, {"oids": list(table_oids)})
    name, superuser, replication, unreadable, closed_schemas, guarded, wal_senders = row
    return Role(name, superuser, replication, tuple(unreadable), tuple(closed_schemas), tuple(guarded), wal_senders)
