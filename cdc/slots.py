"""Every replication slot of the server, as `cdc slots` shows them.

A slot that nobody drains keeps WAL until the disk is full, whoever made it, so all are shown. A slot without
`restart_lsn` is lost: what it retains is infinite, never 0.
"""

import math
from typing import Any

from cdc.config import PostgresSettings
from cdc.lsn import format_lsn
from cdc.postgres.server import current_wal_lsn
from cdc.postgres.session import connect
from cdc.postgres.slot import Slot, read_slots

HEADINGS = ("slot", "plugin", "database", "active_pid", "wal_status", "confirmed_flush", "retained", "unacknowledged")


async def read_all(settings: PostgresSettings) -> tuple[list[Slot], int]:
    """All slots, and where the server writes WAL now."""
    async with await connect(settings) as connection:
        return await read_slots(connection), await current_wal_lsn(connection)


def row(slot: Slot, current_lsn: int) -> tuple[str, ...]:
    """A slot as a line of the table."""
    confirmed = "-" if slot.confirmed_flush_lsn is None else format_lsn(slot.confirmed_flush_lsn)
    return (
        slot.name,
        slot.plugin or "physical",
        slot.database or "-",
        str(slot.active_pid or "-"),
        slot.invalidation_reason or slot.wal_status or "-",
        confirmed,
        size(slot.retained_bytes(current_lsn)),
        "-" if slot.plugin is None else size(slot.lag_bytes(current_lsn)),
    )


def facts(slot: Slot, current_lsn: int) -> dict[str, Any]:
    """A slot as plain values. `retained_bytes` and `lag_bytes` are null where they are infinite: see `lost`."""
    return {
        "slot": slot.name,
        "plugin": slot.plugin,
        "database": slot.database,
        "temporary": slot.temporary,
        "active_pid": slot.active_pid,
        "wal_status": slot.wal_status,
        "lost": slot.lost or slot.restart_lsn is None,
        "invalidation_reason": slot.invalidation_reason,
        "restart_lsn": None if slot.restart_lsn is None else format_lsn(slot.restart_lsn),
        "confirmed_flush_lsn": None if slot.confirmed_flush_lsn is None else format_lsn(slot.confirmed_flush_lsn),
        "retained_bytes": _finite(slot.retained_bytes(current_lsn)),
        "lag_bytes": _finite(slot.lag_bytes(current_lsn)),
        "safe_wal_bytes": slot.safe_wal_size,
    }


def _finite(nbytes: float) -> int | None:
    return None if math.isinf(nbytes) else int(nbytes)


def size(nbytes: float) -> str:
    """A size for people: `812 kB`, `1.4 GB`; what a slot that does not say retains is infinite."""
    if math.isinf(nbytes):
        return "lost (infinite)"
    for unit in ("bytes", "kB", "MB", "GB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if nbytes >= 10 or unit == "bytes" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TB"
