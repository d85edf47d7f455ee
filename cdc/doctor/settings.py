"""Judges the server's settings: their timeouts and limits decide whether a slot survives a long wait (pure)."""

import math
from collections.abc import Mapping

from cdc.doctor.units import GIB, nbytes, seconds
from cdc.finding import Finding, mended_by_sql
from cdc.monitor.forecast import Disk
from cdc.postgres.observation import WatchedSlot
from cdc.words import size

# R2 was away for 59 and 67 minutes in 2025; a slot that is allowed less than this is lost on a busy day.
_LEAST_KEEP_BYTES = 10 * GIB
_USUAL_KEEP_BYTES = 50 * GIB

_SHORT_TIMEOUT_S = 10

# A repair and a warming of the cache each need a slot and a WAL sender for a while, beside the stream's own.
_BESIDE_OURS = 1

_RAISE_SLOTS = "then restart Postgres"


def judge_configuration(
    configuration: Mapping[str, str], status_interval_s: float, disk: Disk | None, retained_bytes: float = 0
) -> list[Finding]:
    """Judge timeouts and limits. `retained_bytes` is the WAL that slots retain; `disk` is None if it is not visible."""
    return [
        _judge_wal_sender_timeout(configuration["wal_sender_timeout"], status_interval_s),
        *_judge_keep_size(configuration["max_slot_wal_keep_size"], disk, retained_bytes),
        *_judge_wal_keep(configuration.get("wal_keep_size", "0"), configuration["max_slot_wal_keep_size"]),
        *_judge_idle_timeout(configuration.get("idle_replication_slot_timeout", "0")),
    ]


def _judge_wal_sender_timeout(setting: str, status_interval_s: float) -> Finding:
    timeout_s = seconds(setting)
    mend = "ALTER SYSTEM SET wal_sender_timeout = '60s'; SELECT pg_reload_conf();"
    if timeout_s == 0:
        message = "wal_sender_timeout is 0: a connection that died unnoticed holds the slot without end"
        return mended_by_sql("warning", "postgres", message, mend)
    if timeout_s < _SHORT_TIMEOUT_S:
        message = f"wal_sender_timeout is only {setting}: a stall of the network that long ends the stream"
        return mended_by_sql("warning", "postgres", message, mend)
    # The service does the same: it stays well inside the timeout, even with a longer interval in the configuration.
    interval_s = min(status_interval_s, timeout_s / 4)
    return Finding("postgres", f"wal_sender_timeout {setting}, a status update every {interval_s:g} s", level="ok")


def _judge_keep_size(setting: str, disk: Disk | None, retained_bytes: float) -> list[Finding]:
    """Judge `max_slot_wal_keep_size`: without a limit the disk is at risk, with a low one the slot."""
    room_bytes = math.inf if disk is None else disk.free_bytes + retained_bytes
    wanted_bytes = min(_USUAL_KEEP_BYTES, room_bytes / 2)
    mend = f"ALTER SYSTEM SET max_slot_wal_keep_size = '{int(wanted_bytes) // 1024**2}MB'; SELECT pg_reload_conf();"
    if setting == "-1":
        message = "max_slot_wal_keep_size is unlimited: a slot that nobody drains fills the disk"
        return [mended_by_sql("warning", "postgres", message, mend, "less than the disk has free")]
    keep_bytes = nbytes(setting)
    if keep_bytes >= room_bytes:
        message = (
            f"max_slot_wal_keep_size {setting} is more than the disk of the WAL has free ({size(room_bytes)}): "
            "the disk is full before the limit is reached"
        )
        return [mended_by_sql("warning", "postgres", message, mend)]
    if keep_bytes < min(_LEAST_KEEP_BYTES, wanted_bytes) - 1024**2:
        message = (
            f"max_slot_wal_keep_size is only {setting}: more WAL than that during an outage of the bucket "
            "invalidates the slot"
        )
        return [mended_by_sql("warning", "postgres", message, mend)]
    return [Finding("postgres", f"max_slot_wal_keep_size {setting}", level="ok"), *_judge_unseen(disk)]


def _judge_unseen(disk: Disk | None) -> list[Finding]:
    if disk is not None:
        return []
    message = "the disk of the WAL cannot be seen from here: check on its machine whether it has room for that"
    return [
        Finding("postgres", message, 'disk_path = "/var/lib/postgresql"   # in [monitor], if it is here', level="info")
    ]


def _judge_wal_keep(wal_keep: str, slot_keep: str) -> list[Finding]:
    if slot_keep == "-1" or nbytes(wal_keep) <= nbytes(slot_keep):
        return []
    message = f"wal_keep_size {wal_keep} is more than max_slot_wal_keep_size {slot_keep}: the larger one counts"
    mend = f"ALTER SYSTEM SET wal_keep_size = '{slot_keep}'; SELECT pg_reload_conf();"
    return [mended_by_sql("info", "postgres", message, mend, optional=True)]


def _judge_idle_timeout(setting: str) -> list[Finding]:
    if seconds(setting) == 0:
        return []
    message = f"idle_replication_slot_timeout {setting}: a service that is down for longer loses its slot"
    mend = "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();"
    return [mended_by_sql("warning", "postgres", message, mend)]


def judge_headroom(used: int, allowed: int, *, ours_is_there: bool) -> list[Finding]:
    """Judge the room for further slots. That none is left for our own is for `check_server` to report, as an error."""
    needed = _BESIDE_OURS + (0 if ours_is_there else 1)
    if used + needed <= allowed:
        return [Finding("postgres", f"{used} of {allowed} replication slots are in use", level="ok")]
    message = f"{used} of {allowed} replication slots are in use; a repair or a warming of the cache needs one more"
    mend = f"ALTER SYSTEM SET max_replication_slots = {allowed + 10};"
    return [mended_by_sql("warning", "postgres", message, mend, _RAISE_SLOTS)]


def judge_spill(watched: WatchedSlot | None, work_mem: str) -> list[Finding]:
    """Judge the spill: transactions that did not fit into the memory of decoding went over the server's disk."""
    if watched is None or watched.decoding is None or not watched.decoding.spill_txns:
        return []
    decoding = watched.decoding
    message = (
        f"{decoding.spill_txns} of {decoding.total_txns} transactions did not fit into logical_decoding_work_mem "
        f"({work_mem}): {size(decoding.spill_bytes)} went over the server's disk"
    )
    larger = max(4 * nbytes(work_mem), 64 * 1024**2) // 1024**2
    name = watched.slot.name.replace("'", "''")
    mend = (
        f"ALTER SYSTEM SET logical_decoding_work_mem = '{larger}MB'; SELECT pg_reload_conf(); "
        f"SELECT pg_stat_reset_replication_slot('{name}');"
    )
    return [mended_by_sql("info", "postgres", message, mend, "memory of each stream", optional=True)]
