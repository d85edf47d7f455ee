"""Makes a scratch database on a lent server, fills it, and drops it, also after a kill.

The process that makes one holds an advisory lock of its number for as long as it is in use. If a database has such a
name, the same owner and a free lock, its process was killed: the next one drops it.
"""

import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Final

import structlog
from psycopg import conninfo

from cdc.change import Column, Relation
from cdc.errors import CdcError, Invalid
from cdc.postgres.quoting import quote_identifier, quote_literal
from cdc.postgres.refusal import INSUFFICIENT_PRIVILEGE, Refusal, in_session
from cdc.postgres.server import read_server
from cdc.postgres.session import Connection, connect
from cdc.postgres.target.database import open_target, settings_of
from cdc.row import Oid

log = structlog.get_logger()

PREFIX: Final = "waltier_drill_"


_OF_OURS = "SELECT datname FROM pg_database WHERE datname ~ %s AND datdba = current_user::regrole"

# The value in rows that were there before a column with a default was added (manual, pg_attribute, attmissingval).
_MISSING_VALUES = """
SELECT a.attname, (a.attmissingval::text::text[])[1]
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s AND c.relname = %s AND a.atthasmissing AND NOT a.attisdropped
"""


@contextlib.asynccontextmanager
async def scratch_database(dsn: str, *, source_identifier: str, encoding: str) -> AsyncIterator[str]:
    """Make an empty database on the server of `dsn`, give its dsn, and drop it at the end.

    Raises Invalid on the source's own server or for a role that may not create it, and Unavailable.
    """
    connection = await connect(settings_of(dsn, "--into"), application_name="waltier drill")
    try:
        server = await read_server(connection)
        if server.epoch.system_identifier == source_identifier:
            raise Invalid(
                "the scratch server is the archive's own source",
                detail="A restore beside the live tables would cost the primary WAL and disk, and prove less.",
                hint="cdc drill   # on an embedded server, or --into a server that is not the source",
            )
        await _drop_leftovers(connection)
        name = await _create(connection, "SQL_ASCII" if encoding == "SQL_ASCII" else "UTF8")
        try:
            yield conninfo.make_conninfo(dsn, dbname=name)
        finally:
            await _drop(connection, name)
    finally:
        await connection.close()


async def _create(connection: Connection, encoding: str) -> str:
    number = secrets.randbits(48)
    name = f"{PREFIX}{number:012x}"
    await connection.execute("SELECT pg_advisory_lock(%s)", [number])
    refused = await connection.attempt(
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    if isinstance(refused, Refusal):
        raise _not_created(refused)
    return name


def _not_created(refusal: Refusal) -> CdcError:
    if refusal.sqlstate != INSUFFICIENT_PRIVILEGE:
        return in_session(refusal)
    return Invalid(
        "the role may not create a scratch database",
        detail=refusal.explanation,
        hint="ALTER ROLE role CREATEDB;   -- on the scratch server",
    )


async def _drop(connection: Connection, name: str) -> None:
    """Drop the database, or leave it to the next drill if that is refused."""
    refused = await connection.attempt(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    if isinstance(refused, Refusal):
        log.warning("scratch_database_left", database=name, reason=refused.explanation)


async def _drop_leftovers(connection: Connection) -> None:
    for (name,) in await connection.all(_OF_OURS, [f"^{PREFIX}[0-9a-f]{{12}}$"]):
        number = int(name.removeprefix(PREFIX), 16)
        (free,) = await connection.one("SELECT pg_try_advisory_lock(%s)", [number])
        if free:
            await _drop(connection, name)
            await connection.execute("SELECT pg_advisory_unlock(%s)", [number])


async def read_missing_values(connection: Connection, relations: Sequence[Relation]) -> dict[str, dict[str, str]]:
    """Read, by table and column, the value that the source shows in rows older than the column.

    No change has brought these values. Raises Unavailable or Invalid.
    """
    found = {}
    for relation in relations:
        rows = await connection.all(_MISSING_VALUES, [relation.schema, relation.name])
        found[relation.qualified_name] = {name: value for name, value in rows if value}
    return found


async def prepare_tables(dsn: str, relations: Sequence[Relation], missing: dict[str, dict[str, str]]) -> None:
    """Make the tables of their archived shapes. Raises Unavailable or Invalid.

    A column of a type that Postgres does not have by itself becomes text: the archive has its text and not its type.
    """
    async with open_target(dsn) as target:
        for relation in relations:
            await target.create_table(_of_known_types(relation))
    async with await connect(settings_of(dsn, "--into")) as connection:
        for relation in relations:
            await _set_defaults(connection, relation, missing.get(relation.qualified_name, {}))


def _of_known_types(relation: Relation) -> Relation:
    columns = [
        column if column.type_oid < Oid.FIRST_USER else Column(column.name, "text", Oid.TEXT, -1, column.key)
        for column in relation.columns
    ]
    return Relation(relation.oid, relation.schema, relation.name, relation.replica_identity, columns)


async def _set_defaults(connection: Connection, relation: Relation, values: dict[str, str]) -> None:
    table = f"{quote_identifier(relation.schema)}.{quote_identifier(relation.name)}"
    for column in relation.columns:
        if column.name in values:
            default = f"ALTER COLUMN {quote_identifier(column.name)} SET DEFAULT {quote_literal(values[column.name])}"
            await connection.execute(f"ALTER TABLE {table} {default}")
