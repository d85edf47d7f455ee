"""Reports the slot watch's findings: the facts as plain values, and what a person should act on (pure).

Every slot counts, ours and others'. Our own slot on the brink keeps the service from being ready (`reasons`). A
stranger's slot without a reader is a warning, because it fills the disk all the same.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cdc.finding import Finding
from cdc.lsn import format_lsn
from cdc.monitor.forecast import Disk, Forecast, forecast, note
from cdc.monitor.meter import Meter
from cdc.monitor.reason import inactive_since, pin_of
from cdc.monitor.slots import drop_sql, judge_brink, judge_slot
from cdc.postgres.observation import Observation, OpenTransaction, Reader, WatchedSlot
from cdc.words import duration, iso


@dataclass(frozen=True, slots=True)
class Report:
    """One look and what follows from it. `forecasts` has an entry for every slot; `ours` is our slot's name."""

    observation: Observation
    disk: Disk | None
    wal_bytes_per_s: float
    forecasts: Mapping[str, Forecast]
    ours: str

    @property
    def reasons(self) -> list[Finding]:
        """The reasons why the service is not ready: our own slot is lost, or about to be."""
        return [
            found
            for watched in self.observation.slots
            if watched.slot.name == self.ours
            for found in judge_brink(watched.slot, self.ours)
        ]

    @property
    def has_ours(self) -> bool:
        """Whether our slot is there."""
        return self.ours in self.forecasts

    @property
    def retained_bytes(self) -> int | None:
        """The WAL in bytes that our slot keeps; None if it is not there, or lost."""
        ours = (watched for watched in self.observation.slots if watched.slot.name == self.ours)
        return next((finite(watched.retained_bytes(self.observation.wal_lsn)) for watched in ours), None)

    def warnings(self, warn_s: float) -> list[Finding]:
        """Everything that a person should look at. A forecast of fewer than `warn_s` seconds is too near."""
        return list(_warnings(self, warn_s))


def report(observation: Observation, disk: Disk | None, meter: Meter, ours: str) -> Report:
    """Feed the meter the observation, and forecast every slot. `ours` is the name of our slot."""
    note(meter, observation)
    forecasts = {watched.slot.name: forecast(watched, observation, disk, meter) for watched in observation.slots}
    return Report(observation, disk, meter.wal_rate(), forecasts, ours)


# Warnings -------------------------------------------------------------------------------------------------------------


def _warnings(found: Report, warn_s: float) -> Iterator[Finding]:
    for watched in found.observation.slots:
        yield from _judge(watched, found, warn_s)
    if math.isinf(found.observation.keep_bytes) and found.disk is None and found.observation.slots:
        yield Finding(
            "postgres",
            "there is no forecast: max_slot_wal_keep_size is unlimited, and the disk of the server is not known",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf();"
            '  (or disk_path = "/var/lib/postgresql"   # in [monitor])',
        )
    for hidden in found.observation.hidden:
        if hidden.needed:
            yield Finding("postgres", f"role {found.observation.role} may not see {hidden.what}", hidden.grant)


def _judge(watched: WatchedSlot, found: Report, warn_s: float) -> Iterator[Finding]:
    """Judge one slot: is it lost, without a reader, or near its limit?

    A missing reader of ours is left out: the service's own phase tells that.
    """
    slot, now, expected = watched.slot, found.observation.at, found.forecasts[watched.slot.name]
    end = _end(expected) if expected.seconds < warn_s and slot.wal_status != "unreserved" else ""
    judged = judge_slot(slot, found.ours, wal_lsn=found.observation.wal_lsn, now=now, end=end)
    yield from (finding for finding in judged if finding.level != "info")
    if end and (slot.name == found.ours or not watched.undrained):
        because = f": {expected.reason}" if expected.reason else ""
        yield Finding("slot", f"slot {slot.name}{_whose(watched, found)} {end}{because}", _remedy(watched, found))


def _end(expected: Forecast) -> str:
    left = duration(expected.seconds)
    return f"fills the disk in {left}" if expected.limit == "disk" else f"reaches max_slot_wal_keep_size in {left}"


def _remedy(watched: WatchedSlot, found: Report) -> str:
    pin = pin_of(watched, found.observation)
    if pin is not None:
        return _end_of(pin)
    if watched.slot.name == found.ours:
        return "cdc status"
    return f"{drop_sql(watched.slot)}  (if nobody needs it)" if watched.reader is None else "cdc slots --watch"


def _end_of(transaction: OpenTransaction) -> str:
    if transaction.gid is None:
        return f"SELECT pg_terminate_backend({transaction.pid});"
    gid = transaction.gid.replace("'", "''")
    return f"ROLLBACK PREPARED '{gid}';  (or COMMIT PREPARED, in database {transaction.database})"


def _whose(watched: WatchedSlot, found: Report) -> str:
    return "" if watched.slot.name == found.ours else ", not ours,"


# Plain values ---------------------------------------------------------------------------------------------------------


def slot_facts(watched: WatchedSlot, found: Report) -> dict[str, Any]:
    """A slot for `--json` and /status.json. Infinite and unknown are null: `lost` says which of the two."""
    slot, lsn = watched.slot, found.observation.wal_lsn
    idle_since = inactive_since(watched.slot)
    return {
        "slot": slot.name,
        "ours": slot.name == found.ours,
        "kind": watched.kind,
        "plugin": slot.plugin,
        "database": slot.database,
        "temporary": slot.temporary,
        "active_pid": slot.active_pid,
        "reader": None if watched.reader is None else _reader_facts(watched.reader),
        "inactive_since": _iso(idle_since),
        "inactive_s": None if idle_since is None else max(0.0, found.observation.at - idle_since),
        "wal_status": slot.wal_status,
        "lost": watched.lost,
        "invalidation_reason": slot.invalidation_reason,
        "conflicting": slot.conflicting,
        "restart_lsn": _lsn(slot.restart_lsn),
        "confirmed_flush_lsn": _lsn(slot.confirmed_flush_lsn),
        "retained_bytes": finite(watched.retained_bytes(lsn)),
        "lag_bytes": finite(watched.unacknowledged_bytes(lsn)),
        "safe_wal_bytes": None if slot.restart_lsn is None else slot.safe_wal_size,
        "xmin_age": watched.xmin_age,
        "catalog_xmin_age": watched.catalog_xmin_age,
        "two_phase": slot.two_phase,
        "failover": slot.failover,
        "synced": slot.synced,
        "decoding": None if watched.decoding is None else asdict(watched.decoding),
        "forecast": _forecast_facts(found.forecasts[slot.name], found.observation.at),
    }


def _reader_facts(reader: Reader) -> dict[str, Any]:
    return {
        "pid": reader.pid,
        "application_name": reader.application_name,
        "role": reader.role,
        "session_state": reader.session_state,
        "sender_state": reader.sender_state,
        "sent_lsn": _lsn(reader.sent_lsn),
        "write_lsn": _lsn(reader.write_lsn),
        "flush_lsn": _lsn(reader.flush_lsn),
        "reply_at": _iso(reader.reply_at),
    }


def _forecast_facts(expected: Forecast, now: float) -> dict[str, Any]:
    seconds = finite(expected.seconds)
    return {
        "seconds": seconds,
        # Beyond some thousand years no calendar follows.
        "at": None if seconds is None or seconds > 1e10 else _iso(now + seconds),
        "limit": expected.limit,
        "room_bytes": finite(expected.room_bytes),
        "rate_bytes_per_s": round(expected.growth_bytes_per_s),
        "reason": expected.reason,
    }


def postgres_facts(found: Report) -> dict[str, Any]:
    """The server's facts for `--json` and /status.json: positions as LSNs, sizes in bytes, unknown is null."""
    observation = found.observation
    return {
        "observed_at": _iso(observation.at),
        "server_version": observation.server_version,
        "in_recovery": observation.in_recovery,
        "wal_lsn": format_lsn(observation.wal_lsn),
        "wal_bytes_per_s": round(found.wal_bytes_per_s),
        "max_slot_wal_keep_bytes": finite(observation.keep_bytes),
        "wal_keep_bytes": observation.wal_keep_bytes,
        "max_wal_bytes": observation.max_wal_bytes,
        "wal_dir_bytes": observation.wal_dir_bytes,
        "oldest_transaction": _oldest_facts(found),
        "transactions": [_transaction_facts(transaction) for transaction in observation.transactions],
        "disk": None if found.disk is None else asdict(found.disk),
        "hidden": [{"what": hidden.what, "hint": hidden.grant} for hidden in observation.hidden],
    }


def _oldest_facts(found: Report) -> dict[str, Any] | None:
    observation = found.observation
    if not observation.transactions:
        return None
    oldest = observation.transactions[0]
    pinned = [
        watched.retained_bytes(observation.wal_lsn)
        for watched in observation.slots
        if pin_of(watched, observation) == oldest
    ]
    return _transaction_facts(oldest) | {"retains_bytes": finite(max(pinned)) if pinned else None}


def _transaction_facts(transaction: OpenTransaction) -> dict[str, Any]:
    return asdict(transaction) | {"since": _iso(transaction.since)}


def finite(value: float) -> int | None:
    """The value as an integer; None for infinity, which JSON does not have."""
    return int(value) if math.isfinite(value) else None


def _lsn(lsn: int | None) -> str | None:
    return None if lsn is None else format_lsn(lsn)


def _iso(at: float | None) -> str | None:
    return None if at is None else iso(at)
