"""A slot as `cdc status` tells it."""

from typing import Any

from cdc.lsn import format_lsn
from cdc.monitor.report import finite
from cdc.monitor.words import size as size
from cdc.postgres.slot import Slot


def facts(slot: Slot, current_lsn: int) -> dict[str, Any]:
    """A slot alone, for `cdc status`. `retained_bytes` and `lag_bytes` are null where they are infinite: see `lost`."""
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
        "retained_bytes": finite(slot.retained_bytes(current_lsn)),
        "lag_bytes": finite(slot.lag_bytes(current_lsn)),
        "safe_wal_bytes": slot.safe_wal_size,
    }
