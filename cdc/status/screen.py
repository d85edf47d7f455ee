"""Prints a status as a screen for people, and as plain values for `--json`."""

import math
import time
from collections.abc import Iterator
from typing import Any

from cdc.archive.format.header import Gap
from cdc.archive.proof.proofs import Proof, Proofs, RememberedRun
from cdc.change import format_time
from cdc.lsn import format_lsn
from cdc.monitor.report import finite
from cdc.postgres.slot import Slot
from cdc.status.neighbours import ArchiveStatus, CacheStatus, PostgresStatus
from cdc.status.verdict import Status, lag_bytes
from cdc.words import duration, size


def facts(status: Status) -> dict[str, Any]:
    """Return the status as plain values, for `--json`. Unknown is null; an infinite size is null beside `lost`."""
    return {
        "verdict": status.verdict,
        "exit_code": status.exit_code,
        "troubles": [trouble.told | {"person": trouble.needs_person} for trouble in status.troubles],
        "postgres": _postgres_facts(status.postgres),
        "archive": _archive_facts(status.archive, status.postgres.current_lsn),
        "cache": _cache_facts(status.cache, status.postgres.current_lsn),
    }


def _postgres_facts(postgres: PostgresStatus) -> dict[str, Any]:
    server, slot, current_lsn = postgres.server, postgres.slot, postgres.current_lsn
    return {
        "reachable": postgres.error is None,
        "error": postgres.error and postgres.error.message,
        "server_version": server and server.server_version,
        "database": server and server.database,
        "epoch": server and str(server.epoch),
        "current_wal_lsn": None if current_lsn is None else format_lsn(current_lsn),
        "slot": None if slot is None or current_lsn is None else _slot_facts(slot, current_lsn),
    }


def _slot_facts(slot: Slot, current_lsn: int) -> dict[str, Any]:
    """`retained_bytes` and `lag_bytes` are null where they are infinite: see `lost`."""
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


def _archive_facts(archive: ArchiveStatus, current_lsn: int | None) -> dict[str, Any]:
    tail = archive.tail
    return {
        "url": archive.url,
        "reachable": archive.error is None,
        "error": archive.error and archive.error.message,
        "seq": None if tail is None else tail.seq,
        "covered_upto": None if tail is None else format_lsn(tail.covered_upto),
        "transactions": None if tail is None else tail.next_ordinal,
        "last_time": None if archive.last_time_us is None else format_time(archive.last_time_us),
        "lag_bytes": None if tail is None else lag_bytes(tail.covered_upto, current_lsn),
        "open_gap": None if archive.open_gap is None else _gap_facts(archive.open_gap),
        "proofs": {name: _proof_facts(getattr(archive.proofs, name)) for name in Proofs.__struct_fields__},
    }


def _proof_facts(kept: Proof | RememberedRun | None) -> dict[str, Any] | None:
    """`time` and `ok` are the last run's, `held_at` and `lsn` those of the last one that succeeded."""
    if kept is None:
        return None
    facts = {"ok": kept.ok, "time": kept.time, "failure": kept.failure or None, "held_at": None, "lsn": None}
    if kept.held is not None:
        facts |= {"held_at": format_time(kept.held[0]), "lsn": format_lsn(kept.held[1])}
    if isinstance(kept, RememberedRun) and kept.success is not None and kept.success.seconds:
        facts |= {"seconds": kept.success.seconds, "rows_per_s": round(kept.success.rows_per_s)}
    return facts


def _gap_facts(gap: Gap) -> dict[str, Any]:
    return {
        "from": format_lsn(gap.from_lsn),
        "reason": gap.reason,
        "time": format_time(gap.time_us) if gap.time_us else None,
    }


def _cache_facts(cache: CacheStatus, current_lsn: int | None) -> dict[str, Any]:
    checkpoint = cache.checkpoint
    return {
        "configured": cache.configured,
        "reachable": cache.configured and cache.error is None,
        "error": cache.error and cache.error.message,
        "lsn": None if checkpoint is None else format_lsn(checkpoint.lsn),
        "epoch": None if checkpoint is None else str(checkpoint.epoch),
        "updated_at": None if checkpoint is None else checkpoint.updated_at,
        "lag_bytes": None if checkpoint is None else lag_bytes(checkpoint.lsn, current_lsn),
    }


def lines(status: Status, now_us: int | None = None) -> Iterator[tuple[str, str]]:
    """Yield the lines of the screen: a subject and a sentence for each. `now_us` is microseconds since 1970."""
    now_us = time.time_ns() // 1000 if now_us is None else now_us
    yield "postgres", _postgres_line(status.postgres)
    yield "slot", _slot_line(status.postgres)
    yield "archive", _archive_line(status.archive, status.postgres.current_lsn, now_us)
    yield "cache", _cache_line(status.cache, status.postgres.current_lsn)
    if status.archive.tail is not None:
        yield "proof", "; ".join(_proof_parts(status.archive.proofs, now_us))


def _postgres_line(postgres: PostgresStatus) -> str:
    if postgres.server is None:
        return "not reachable"
    now = "" if postgres.current_lsn is None else f", writing WAL at {format_lsn(postgres.current_lsn)}"
    return f"{postgres.server.server_version}, database {postgres.server.database}{now}"


def _slot_line(postgres: PostgresStatus) -> str:
    slot, current_lsn = postgres.slot, postgres.current_lsn
    if slot is None or current_lsn is None:
        return "unknown" if postgres.error else f"{postgres.slot_name} is not there"
    reader = f"read by pid {slot.active_pid}" if slot.active_pid else "read by nobody"
    retained = slot.retained_bytes(current_lsn)
    keeps = "lost" if math.isinf(retained) else f"{size(retained)} retained"
    confirmed = "-" if slot.confirmed_flush_lsn is None else format_lsn(slot.confirmed_flush_lsn)
    return f"{slot.name} {reader}, wal_status {slot.wal_status}, confirmed {confirmed}, {keeps}"


def _archive_line(archive: ArchiveStatus, current_lsn: int | None, now_us: int) -> str:
    if archive.error is not None:
        return f"{archive.url} cannot be read"
    if archive.tail is None:
        return f"{archive.url} is empty"
    behind = lag_bytes(archive.tail.covered_upto, current_lsn)
    parts = [
        f"{archive.url} at segment {archive.tail.seq}",
        f"{archive.tail.next_ordinal} transactions",
        f"covered up to {format_lsn(archive.tail.covered_upto)}",
    ]
    parts += [] if behind is None else [f"{size(behind)} behind"]
    if archive.last_time_us is not None:
        parts.append(f"last change {_ago(archive.last_time_us, now_us)}")
    return ", ".join(parts)


def _proof_parts(proofs: Proofs, now_us: int) -> Iterator[str]:
    verify, against, drill = proofs.verify, proofs.against, proofs.drill
    if verify is None or verify.held is None:
        yield "never verified as a whole" if verify is None else "damaged"
    else:
        yield f"verified up to {format_lsn(verify.held[1])} {_ago(verify.held[0], now_us)}"
    if against is not None and against.held is not None:
        yield f"equal to the live tables at {format_lsn(against.held[1])} {_ago(against.held[0], now_us)}"
    if drill is None or drill.success is None or drill.held is None:
        yield "no drill yet" if drill is None else "no drill has succeeded"
    else:
        took = f"{duration(drill.success.seconds)}, {drill.success.rows_per_s:.0f} rows/s"
        yield f"drill {_ago(drill.held[0], now_us)} ({took})"


def _ago(time_us: int, now_us: int) -> str:
    return f"{duration(max(0, now_us - time_us) / 1e6)} ago"


def _cache_line(cache: CacheStatus, current_lsn: int | None) -> str:
    if not cache.configured:
        return "none configured"
    if cache.error is not None:
        return "not reachable"
    if cache.checkpoint is None:
        return "empty, or being warmed"
    behind = lag_bytes(cache.checkpoint.lsn, current_lsn)
    lag = "" if behind is None else f", {size(behind)} behind"
    return f"complete up to {format_lsn(cache.checkpoint.lsn)}{lag}"
