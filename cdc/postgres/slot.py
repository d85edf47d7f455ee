"""The replication slot: reads, checks, creates and drops it.

A lost slot shows NULL positions, and every lag computed from NULL looks like no lag at all. Here a slot without
`restart_lsn` retains infinitely much.

Creating a slot waits for every transaction that is open anywhere in the cluster. `create_slot` gives that wait a
deadline, names the sessions in the way, and leaves no slot behind when it fails.

A failover slot (Postgres 17 and newer) is copied to standbys that synchronise slots, and so outlives the primary.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import structlog

from cdc.config import PostgresSettings
from cdc.errors import CdcError, Invalid, SlotLost, Unavailable
from cdc.lsn import parse_lsn
from cdc.postgres.quoting import quote_identifier
from cdc.postgres.refusal import (
    DUPLICATE_OBJECT,
    NOT_IN_PREREQUISITE_STATE,
    UNDEFINED_OBJECT,
    Refusal,
    SlotActive,
    at_slot,
    in_session,
    wal_level_is_too_low,
)
from cdc.postgres.session import Connection, connect
from cdc.words import duration

log = structlog.get_logger()

# How long a cancelled creation may take to vanish on the server.
_VANISH_S: Final = 10.0


class SlotExists(Invalid):
    """A slot of this name exists already."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A row of pg_replication_slots; what the server's version does not have is None or False."""

    name: str
    plugin: str | None
    database: str | None
    temporary: bool
    active_pid: int | None
    restart_lsn: int | None
    confirmed_flush_lsn: int | None
    wal_status: str | None
    safe_wal_size: int | None
    two_phase: bool
    conflicting: bool
    invalidation_reason: str | None
    inactive_since: datetime | None
    failover: bool
    synced: bool

    @property
    def lost(self) -> bool:
        """True if the slot can never be read again."""
        return self.wal_status == "lost" or self.invalidation_reason is not None or self.conflicting

    def retained_bytes(self, current_wal_lsn: int) -> float:
        """Return the bytes of WAL that the server keeps for this slot; infinite if the slot does not say."""
        return math.inf if self.restart_lsn is None else max(0, current_wal_lsn - self.restart_lsn)

    def lag_bytes(self, current_wal_lsn: int) -> float:
        """Return the bytes of WAL that were not acknowledged; infinite if the slot does not say."""
        return math.inf if self.confirmed_flush_lsn is None else max(0, current_wal_lsn - self.confirmed_flush_lsn)


@dataclass(frozen=True, slots=True)
class ExportedSnapshot:
    """The database exactly as it is at `consistent_lsn`, where the slot's stream begins."""

    slot: str
    consistent_lsn: int
    snapshot_name: str


async def read_slots(connection: Connection) -> list[Slot]:
    """Read every slot of the cluster. Raises Unavailable or Invalid."""
    rows = await connection.named("SELECT * FROM pg_replication_slots ORDER BY slot_name")
    return [slot_of_row(row) for row in rows]


async def read_slot(connection: Connection, name: str) -> Slot | None:
    """Read the slot of this name, or None. Raises Unavailable or Invalid."""
    return next((slot for slot in await read_slots(connection) if slot.name == name), None)


def slot_of_row(row: Mapping[str, Any]) -> Slot:
    """Make a slot of a row of `SELECT * FROM pg_replication_slots`, by the columns' names."""
    return Slot(
        name=row["slot_name"],
        plugin=row["plugin"],
        database=row["database"],
        temporary=row["temporary"],
        active_pid=row["active_pid"],
        restart_lsn=parsed(row["restart_lsn"]),
        confirmed_flush_lsn=parsed(row["confirmed_flush_lsn"]),
        wal_status=row["wal_status"],
        safe_wal_size=row["safe_wal_size"],
        two_phase=row["two_phase"],
        conflicting=bool(row.get("conflicting")),
        invalidation_reason=row.get("invalidation_reason"),
        inactive_since=row.get("inactive_since"),
        failover=bool(row.get("failover")),
        synced=bool(row.get("synced")),
    )


def parsed(text: str | None) -> int | None:
    """Read a position that the server may not tell. Raises ValueError for what is none."""
    return None if text is None else parse_lsn(text)


def check_owner(slot: Slot, database: str) -> None:
    """Refuse a slot that is not ours. Raises Invalid."""
    if slot.plugin != "pgoutput" or slot.database != database:
        kind = "a physical slot" if slot.plugin is None else f"for {slot.plugin} in database {slot.database}"
        raise Invalid(
            f"replication slot {slot.name} belongs to something else",
            detail=f"it is {kind}; ours would be for pgoutput in database {database}",
            hint=f'set another postgres.slot, for example slot = "{slot.name}_cdc"',
        )


def check_slot(slot: Slot, database: str) -> None:
    """Refuse a slot that is not ours to read. Raises SlotLost or Invalid."""
    check_owner(slot, database)
    if slot.lost:
        raise SlotLost(
            f"replication slot {slot.name} was invalidated: its WAL is gone",
            detail=f"wal_status {slot.wal_status}, reason {slot.invalidation_reason or 'not given by this version'}",
            hint="cdc repair   # and find out why: max_slot_wal_keep_size too low, or no reader for too long",
        )


async def drop_slot(connection: Connection, name: str) -> None:
    """Drop the slot, if there is one. Raises SlotActive while a session reads it, else Unavailable or Invalid."""
    refused = await connection.attempt("SELECT pg_drop_replication_slot(%s)", [name])
    if not isinstance(refused, Refusal):
        log.info("slot_dropped", slot=name)
    elif refused.sqlstate != UNDEFINED_OBJECT:
        raise at_slot(refused, name)


@contextlib.asynccontextmanager
async def create_slot(
    settings: PostgresSettings, name: str, *, temporary: bool = False
) -> AsyncIterator[ExportedSnapshot]:
    """Create a slot and export the snapshot at its starting point.

    The snapshot lives as long as the context, and so does a temporary slot; a permanent one stays. With `failover` in
    the settings a permanent slot is a failover slot.

    Raises Unavailable at the deadline (`slot_deadline_s`), naming the sessions whose transactions are in the way,
    SlotExists if there is such a slot already, and Invalid.
    """
    connection = await connect(settings, replication=True)
    try:
        exported = await _create(connection, settings, name, temporary=temporary)
        log.info("slot_created", slot=name, temporary=temporary)
        yield exported
    finally:
        await connection.close()


async def _create(
    connection: Connection, settings: PostgresSettings, name: str, *, temporary: bool
) -> ExportedSnapshot:
    """Create the slot within the deadline.

    1. ask for the slot; 2. at the deadline, see which sessions are in the way; 3. cancel, and make sure that nothing
    stays.
    """
    failover = settings.failover and not temporary
    version = connection.server_version
    command = _create_command(name, temporary=temporary, failover=failover, server_version=version)
    creation = asyncio.create_task(connection.attempt(command), name=f"create slot {name}")
    try:
        done, _ = await asyncio.wait([creation], timeout=settings.slot_deadline_s)  # 1
        if done:
            return _exported(creation.result(), name)
        refusal = await _blocked(settings, connection.backend_pid)  # 2
    finally:
        if not creation.done():
            await _abandon(creation, connection, settings, name)  # 3
    raise refusal


def _create_command(name: str, *, temporary: bool, failover: bool, server_version: int) -> str:
    options = "(SNAPSHOT 'export', FAILOVER)" if failover else "(SNAPSHOT 'export')"
    export = options if server_version >= 150000 else "EXPORT_SNAPSHOT"
    kind = "TEMPORARY LOGICAL" if temporary else "LOGICAL"
    return f"CREATE_REPLICATION_SLOT {quote_identifier(name)} {kind} pgoutput {export}"


async def make_failover(settings: PostgresSettings, name: str, *, timeout_s: float = 5.0) -> None:
    """Make an existing slot a failover slot.

    Raises SlotActive while a session reads it, Invalid before Postgres 17, Unavailable if the server is away.
    """
    command = f"ALTER_REPLICATION_SLOT {quote_identifier(name)} (FAILOVER true)"
    async with await connect(settings, replication=True) as connection:
        try:
            # Unlike START_REPLICATION, this waits until no session reads the slot.
            async with asyncio.timeout(timeout_s):
                refused = await connection.attempt(command)
        except TimeoutError:
            raise SlotActive(f"replication slot {name} is in use by another consumer") from None
    if isinstance(refused, Refusal):
        raise at_slot(refused, name)
    log.info("slot_altered", slot=name, failover=True)


def _exported(answer: list[tuple[Any, ...]] | Refusal, slot: str) -> ExportedSnapshot:
    if isinstance(answer, Refusal):
        raise _not_created(answer, slot)
    if not answer or answer[0][2] is None:
        raise Unavailable("Postgres created a slot without exporting its snapshot")
    name, consistent_point, snapshot_name, _ = answer[0]
    return ExportedSnapshot(str(name), parse_lsn(str(consistent_point)), str(snapshot_name))


def _not_created(refusal: Refusal, name: str) -> CdcError:
    if refusal.sqlstate == DUPLICATE_OBJECT:
        return SlotExists(
            f"replication slot {name} exists already",
            detail=refusal.explanation,
            hint=f"cdc slots; to drop it: SELECT pg_drop_replication_slot('{name}');",
        )
    if refusal.sqlstate == NOT_IN_PREREQUISITE_STATE and "wal_level" in refusal.message:
        return wal_level_is_too_low(refusal.explanation)
    return in_session(refusal)


# Prepared transactions have no session; pid 0 stands for them.
_IN_THE_WAY = """
SELECT pid, state, extract(epoch FROM clock_timestamp() - xact_start)::float8
  FROM pg_stat_activity
 WHERE pid <> %(pid)s AND (backend_xid IS NOT NULL OR pid = ANY (pg_blocking_pids(%(pid)s)))
UNION ALL
SELECT 0, 'prepared transaction ' || gid, extract(epoch FROM clock_timestamp() - prepared)::float8
  FROM pg_prepared_xacts
 ORDER BY 3 DESC NULLS LAST
 LIMIT 10
"""


async def _blocked(settings: PostgresSettings, pid: int) -> Unavailable:
    """Name the sessions in the way of the one that creates the slot: pids, ages and states, never what they run."""
    async with await connect(settings) as connection:
        found = await connection.attempt(_IN_THE_WAY, {"pid": pid})
    if isinstance(found, Refusal):
        rows, detail = [], found.explanation
    else:
        rows, detail = found, "open: " + ", ".join(_describe(*row) for row in found)
    pids = [pid for pid, _, _ in rows if pid]
    return Unavailable(
        f"creating the replication slot waited {settings.slot_deadline_s:g} s for open transactions",
        detail=detail,
        hint=f"end them: SELECT pg_terminate_backend({pids[0]});" if pids else "end the open transactions",
    )


def _describe(pid: int, state: str | None, age_s: float | None) -> str:
    who = f"pid {pid}" if pid else "no pid"
    age = "of unknown age" if age_s is None else f"{duration(age_s)} old"
    return f"{who} ({state or 'state hidden: GRANT pg_read_all_stats'}, {age})"


async def _abandon(
    creation: asyncio.Task[list[tuple[Any, ...]] | Refusal],
    connection: Connection,
    settings: PostgresSettings,
    name: str,
) -> None:
    """Cancel on the server, and drop what may have been created in that very moment."""
    pid = connection.backend_pid
    creation.cancel()
    await asyncio.wait([creation])
    await connection.close()
    if not creation.cancelled():
        creation.exception()
    async with await connect(settings) as session:
        await _vanish(session, name, pid)


async def _vanish(session: Connection, name: str, pid: int) -> None:
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + _VANISH_S
    while (slot := await read_slot(session, name)) is not None and slot.active_pid in (None, pid):
        if slot.active_pid is None:
            with contextlib.suppress(SlotActive):
                await drop_slot(session, name)
        elif loop.time() > give_up_at:
            log.warning("slot_left_behind", slot=name, pid=pid)
            return
        await asyncio.sleep(0.05)
