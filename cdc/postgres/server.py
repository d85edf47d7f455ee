"""Reads the server's own facts, and checks that it can decode logically at all.

`Server.epoch` names the history (system identifier and timeline) that positions belong to. It is read on a plain
session from functions that every role may call. A stream's own `identify()` has the last word on the server it talks
to.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from cdc.errors import ChangesLost, Diverged, Invalid, Unavailable
from cdc.lsn import parse_lsn
from cdc.position import Epoch
from cdc.postgres.refusal import wal_level_is_too_low
from cdc.postgres.session import Connection, session_settings

OLDEST_VERSION: Final = 14
NEWEST_VERSION: Final = 18
FAILOVER_VERSION: Final = 17

_CONFIGURATION: Final = (
    "wal_level",
    "max_replication_slots",
    "max_wal_senders",
    "wal_sender_timeout",
    "max_slot_wal_keep_size",
    "idle_replication_slot_timeout",
    "synchronized_standby_slots",
    "wal_keep_size",
    "logical_decoding_work_mem",
)

# The control file's timeline lags behind a promotion until the next checkpoint; the name of the WAL file being written
# does not.
_SERVER = """
SELECT system_identifier::text,
       CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END,
       current_database()::text,
       current_setting('server_version_num')::int / 10000,
       current_setting('server_version'),
       current_setting('server_encoding'),
       pg_is_in_recovery(),
       (SELECT setting::float8 / 1000 FROM pg_settings WHERE name = 'wal_sender_timeout')
  FROM pg_control_system()
"""


@dataclass(frozen=True, slots=True)
class Server:
    """The server at the other end. `version` is the major version.

    `settings` are those under which rows print; `configuration` is the server's.
    """

    epoch: Epoch
    database: str
    version: int
    server_version: str
    encoding: str
    wal_level: str
    in_recovery: bool
    wal_sender_timeout_s: float
    settings: dict[str, str]
    configuration: dict[str, str]


async def read_server(connection: Connection) -> Server:
    """Read the facts of the server at the other end. Raises Unavailable or Invalid."""
    row = await connection.one(_SERVER)
    configuration = await _read_configuration(connection)
    system_identifier, timeline, database, version, server_version, encoding, in_recovery, timeout_s = row
    return Server(
        epoch=Epoch(system_identifier, timeline),
        database=database,
        version=version,
        server_version=server_version,
        encoding=encoding,
        wal_level=configuration["wal_level"],
        in_recovery=in_recovery,
        wal_sender_timeout_s=timeout_s,
        settings=session_settings(encoding),
        configuration=configuration,
    )


async def _read_configuration(connection: Connection) -> dict[str, str]:
    rows = await connection.all(
        "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s)", [list(_CONFIGURATION)]
    )
    return {str(name): str(value) for name, value in rows}


@asynccontextmanager
async def verdict_on(connection: Connection, server: Server) -> AsyncIterator[None]:
    """Pass an error from inside on only if `connection` still leads to this server; else raise Unavailable.

    Server, slot and archive are read one after the other. The database may fail over in between, and another service
    may follow it and record the fork. Then the three tell of different timelines. That looks like an unrelated history,
    or like a slot that was advanced past the archive, and is neither.
    """
    try:
        yield
    except (Diverged, ChangesLost):
        if (await read_server(connection)).epoch != server.epoch:
            raise Unavailable("the database failed over meanwhile") from None
        raise


async def check_server(connection: Connection, server: Server, slot: str, *, failover: bool = False) -> None:
    """Refuse a server that cannot serve this slot. Raises Invalid with every mistake, Unavailable for a standby."""
    mistakes: list[tuple[str, str]] = []
    if not OLDEST_VERSION <= server.version <= NEWEST_VERSION:
        mistakes.append(
            (
                f"Postgres {server.server_version} is not supported",
                f"use a Postgres from {OLDEST_VERSION} to {NEWEST_VERSION}",
            )
        )
    if server.wal_level != "logical":
        refusal = wal_level_is_too_low("")
        mistakes.append((f"{refusal.message} (it is {server.wal_level})", refusal.hint))
    if failover and server.version < FAILOVER_VERSION:
        mistakes.append(
            (
                f"postgres.failover needs Postgres {FAILOVER_VERSION} or newer, and this is {server.server_version}",
                "failover = false   # in [postgres] of cdc.toml",
            )
        )
    if not await _has_room(connection, slot):
        allowed = server.configuration["max_replication_slots"]
        mistakes.append(
            (
                f"all {allowed} replication slots are in use (max_replication_slots)",
                f"ALTER SYSTEM SET max_replication_slots = {int(allowed) + 10}; and restart Postgres",
            )
        )
    if mistakes:
        raise Invalid("; ".join(what for what, _ in mistakes), hint="\n      ".join(hint for _, hint in mistakes))
    if server.in_recovery:
        raise Unavailable(
            "this Postgres is a standby",
            detail="it takes no writes until it is promoted",
            hint="name the primary in postgres.dsn, or several hosts with target_session_attrs=read-write",
        )


async def _has_room(connection: Connection, slot: str) -> bool:
    """Return True if the slot exists, or could be created beside the others."""
    (has_room,) = await connection.one(
        "SELECT coalesce(bool_or(slot_name = %s), false) OR count(*) < "
        "current_setting('max_replication_slots')::int FROM pg_replication_slots",
        [slot],
    )
    return bool(has_room)


async def current_wal_lsn(connection: Connection) -> int:
    """Read where the server's next WAL record begins. No position that it ever named lies beyond.

    Raises Unavailable or Invalid.
    """
    (lsn,) = await connection.one("SELECT pg_current_wal_insert_lsn()::text")
    return parse_lsn(lsn)
