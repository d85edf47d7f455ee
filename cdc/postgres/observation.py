"""Observes the server: all its slots, the sessions that read them, and the transactions that keep their WAL.

`observe` asks over a connection that only reads (`connect_to_watch`). Every slot of the server is there, physical ones
too. What the role may not see is None, and `Observation.hidden` says which GRANT shows it. Times are seconds since 1970
by the server's clock, sizes bytes. A limit that is not set is infinite.

A logical slot's `restart_lsn` cannot pass the beginning of the oldest transaction that has written something and is
still open, or prepared. So those transactions are listed here too, never with the text of their queries.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cdc.config import PostgresSettings
from cdc.errors import CdcError
from cdc.lsn import parse_lsn
from cdc.position import Epoch
from cdc.postgres.quoting import quote_identifier
from cdc.postgres.refusal import QUERY_CANCELED, Refusal, in_session
from cdc.postgres.session import Connection, connect
from cdc.postgres.slot import Slot, parsed, slot_of_row

# Observing must not harm the server. A locked catalog or a pg_wal with a million files ends the statement after this.
_STATEMENT_TIMEOUT_MS: Final = 5000

_MIB: Final = 1024 * 1024

# The oldest ones; a longer list is of no use to a reader.
_TRANSACTIONS: Final = 20

# The control file's timeline lags behind a promotion until the next checkpoint; the name of the WAL file being written
# does not. The last checkpoint tells where the WAL was at a time before we looked.
_SERVER: Final = """
SELECT extract(epoch FROM clock_timestamp())::float8 AS at,
       (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier,
       CASE WHEN pg_is_in_recovery() THEN checkpoint.timeline_id
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END AS timeline,
       pg_is_in_recovery() AS in_recovery,
       current_setting('server_version') AS server_version,
       current_user::text AS role,
       CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
            ELSE pg_current_wal_lsn() END::text AS wal_lsn,
       checkpoint.redo_lsn::text AS checkpoint_lsn,
       extract(epoch FROM checkpoint.checkpoint_time)::float8 AS checkpoint_at,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size') AS slot_keep_mb,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_keep_size') AS wal_keep_mb,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'max_wal_size') AS max_wal_mb,
       (SELECT setting FROM pg_settings WHERE name = 'data_directory') AS data_directory,
       pg_has_role('pg_read_all_stats', 'USAGE') AS sees_activity,
       has_function_privilege('pg_ls_waldir()', 'EXECUTE') AS sees_wal_dir
  FROM pg_control_checkpoint() AS checkpoint
"""

_SLOTS: Final = """
SELECT s.*, s.slot_type AS kind, age(s.xmin) AS xmin_age, age(s.catalog_xmin) AS catalog_xmin_age,
       t.spill_txns, t.spill_count, t.spill_bytes, t.stream_txns, t.stream_count, t.stream_bytes,
       t.total_txns, t.total_bytes,
       a.application_name, a.usename::text AS reader_role, a.state AS session_state,
       r.state AS sender_state, r.sent_lsn::text AS sent, r.write_lsn::text AS written, r.flush_lsn::text AS flushed,
       extract(epoch FROM r.reply_time)::float8 AS reply_at
  FROM pg_replication_slots s
  LEFT JOIN pg_stat_replication_slots t ON t.slot_name = s.slot_name
  LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
  LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid
 ORDER BY s.slot_name
"""

# WAL senders hold the snapshots of their slots. They are no open transactions.
_OPEN: Final = """
SELECT a.pid, NULL::text AS gid, a.datname::text AS database, a.usename::text AS role, a.application_name, a.state,
       extract(epoch FROM a.xact_start)::float8 AS since, age(a.backend_xid) AS xid_age, age(a.backend_xmin) AS xmin_age
  FROM pg_stat_activity a
 WHERE (a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL OR a.xact_start IS NOT NULL)
   AND a.pid <> pg_backend_pid() AND a.pid NOT IN (SELECT pid FROM pg_stat_replication)
 UNION ALL
SELECT NULL, p.gid, p.database::text, p.owner::text, NULL, 'prepared',
       extract(epoch FROM p.prepared)::float8, age(p.transaction), NULL
  FROM pg_prepared_xacts p
 ORDER BY xid_age DESC NULLS LAST, since LIMIT %s
"""


@dataclass(frozen=True, slots=True)
class Reader:
    """The session that reads a slot. `sender_state` and the fields after it are a WAL sender's.

    They are None where the role may not see them, or where the session is no WAL sender.
    """

    pid: int
    application_name: str | None
    role: str | None
    session_state: str | None
    sender_state: str | None
    sent_lsn: int | None
    write_lsn: int | None
    flush_lsn: int | None
    reply_at: float | None


@dataclass(frozen=True, slots=True)
class Decoding:
    """The cost of decoding so far (pg_stat_replication_slots): transactions spilled to disk, streamed, and all."""

    spill_txns: int
    spill_count: int
    spill_bytes: int
    stream_txns: int
    stream_count: int
    stream_bytes: int
    total_txns: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class WatchedSlot:
    """A slot with its reader. `kind` is logical or physical; `decoding` is None for a physical one."""

    slot: Slot
    kind: str
    xmin_age: int | None
    catalog_xmin_age: int | None
    reader: Reader | None
    decoding: Decoding | None

    @property
    def unused(self) -> bool:
        """True for a physical slot that has never reserved WAL.

        A lost slot has no position either, but says that it is lost.
        """
        return self.slot.restart_lsn is None and self.slot.wal_status is None and not self.lost

    @property
    def lost(self) -> bool:
        return self.slot.lost

    @property
    def being_created(self) -> bool:
        """True for a logical slot that waits for the transactions which were open when its creation began."""
        return self.kind == "logical" and self.slot.confirmed_flush_lsn is None and not self.lost

    @property
    def undrained(self) -> bool:
        """True for a slot that keeps WAL and has no reader. A standby moves its own copies of slots itself."""
        return self.reader is None and not self.lost and not self.unused and not self.slot.synced

    def retained_bytes(self, wal_lsn: int) -> float:
        """WAL that the server keeps for this slot; infinite if it is lost."""
        return 0 if self.unused else math.inf if self.lost else self.slot.retained_bytes(wal_lsn)

    def unacknowledged_bytes(self, wal_lsn: int) -> float:
        """WAL that the reader has not acknowledged; a physical one acknowledges all that is not retained."""
        if self.lost or self.kind == "physical" or self.being_created:
            return self.retained_bytes(wal_lsn)
        return self.slot.lag_bytes(wal_lsn)


@dataclass(frozen=True, slots=True)
class OpenTransaction:
    """`pid` of an open one, `gid` of a prepared one. Without `xid_age` it has written nothing, and keeps no WAL."""

    pid: int | None
    gid: str | None
    database: str | None
    role: str | None
    application_name: str | None
    state: str | None
    since: float | None
    xid_age: int | None
    xmin_age: int | None


@dataclass(frozen=True, slots=True)
class Hidden:
    """A fact that this role may not see, and the line that shows it.

    `needed`: without the fact, the reason why a slot keeps WAL cannot be given.
    """

    what: str
    grant: str
    needed: bool = False


@dataclass(frozen=True, slots=True)
class Observation:
    """The server at one moment. `keep_bytes` is infinite where slots may retain without limit."""

    at: float
    epoch: Epoch
    in_recovery: bool
    server_version: str
    role: str
    backend_pid: int
    wal_lsn: int
    checkpoint_lsn: int
    checkpoint_at: float
    keep_bytes: float
    wal_keep_bytes: int
    max_wal_bytes: int
    wal_dir_bytes: int | None
    data_directory: str | None
    slots: tuple[WatchedSlot, ...]
    transactions: tuple[OpenTransaction, ...]
    hidden: tuple[Hidden, ...]


async def connect_to_watch(settings: PostgresSettings) -> Connection:
    """Open a session that only reads and whose statements end after 5 s. Raises Unavailable or Invalid."""
    connection = await connect(settings, application_name="waltier monitor")
    try:
        await connection.execute("SET default_transaction_read_only = on")
        await connection.execute(f"SET statement_timeout = {_STATEMENT_TIMEOUT_MS}")
        await connection.execute(f"SET lock_timeout = {_STATEMENT_TIMEOUT_MS}")
    except CdcError:
        await connection.close()
        raise
    return connection


async def observe(connection: Connection) -> Observation:
    """Observe the server once. Raises Unavailable or Invalid.

    The position is read after the slots, so that no slot is ahead of it.
    """
    slots = await connection.named(_SLOTS)
    transactions = await connection.named(_OPEN, [_TRANSACTIONS])
    server = await connection.one_named(_SERVER)
    wal_dir_bytes = await _wal_dir_bytes(connection) if server["sees_wal_dir"] else None
    return Observation(
        at=server["at"],
        epoch=Epoch(server["system_identifier"], server["timeline"]),
        in_recovery=server["in_recovery"],
        server_version=server["server_version"],
        role=server["role"],
        backend_pid=connection.backend_pid,
        wal_lsn=parse_lsn(server["wal_lsn"]),
        checkpoint_lsn=parse_lsn(server["checkpoint_lsn"]),
        checkpoint_at=server["checkpoint_at"],
        keep_bytes=math.inf if server["slot_keep_mb"] < 0 else server["slot_keep_mb"] * _MIB,
        wal_keep_bytes=server["wal_keep_mb"] * _MIB,
        max_wal_bytes=server["max_wal_mb"] * _MIB,
        wal_dir_bytes=wal_dir_bytes,
        data_directory=server["data_directory"],
        slots=tuple(_watched(row) for row in slots),
        transactions=tuple(OpenTransaction(**row) for row in transactions),
        hidden=tuple(_hidden(server)),
    )


async def _wal_dir_bytes(connection: Connection) -> int | None:
    """Sum up the size of pg_wal, in bytes; None if it has too many files to be counted in time."""
    found = await connection.attempt("SELECT sum(size)::bigint FROM pg_ls_waldir()")
    if isinstance(found, Refusal):
        if found.sqlstate == QUERY_CANCELED:
            return None
        raise in_session(found)
    ((nbytes,),) = found
    return None if nbytes is None else int(nbytes)


def _watched(row: Mapping[str, Any]) -> WatchedSlot:
    return WatchedSlot(
        slot_of_row(row),
        row["kind"],
        row["xmin_age"],
        row["catalog_xmin_age"],
        None if row["active_pid"] is None else _reader(row),
        None if row["total_txns"] is None else Decoding(**{name: row[name] for name in Decoding.__slots__}),
    )


def _reader(row: Mapping[str, Any]) -> Reader:
    return Reader(
        row["active_pid"],
        row["application_name"] or None,
        row["reader_role"],
        row["session_state"],
        row["sender_state"],
        parsed(row["sent"]),
        parsed(row["written"]),
        parsed(row["flushed"]),
        row["reply_at"],
    )


def _hidden(server: Mapping[str, Any]) -> list[Hidden]:
    role = quote_identifier(server["role"])
    hidden = []
    if not server["sees_activity"]:
        what = "since when transactions are open, and how far WAL senders are"
        hidden.append(Hidden(what, f"GRANT pg_read_all_stats TO {role};", needed=True))
    if not server["sees_wal_dir"]:
        hidden.append(Hidden("the size of pg_wal", f"GRANT EXECUTE ON FUNCTION pg_ls_waldir() TO {role};"))
    if server["data_directory"] is None:
        hidden.append(Hidden("where the data directory is", 'disk_path = "/var/lib/postgresql"   # in [monitor]'))
    return hidden
