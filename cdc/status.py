"""`cdc status`: one screen that says whether all is well, also when one of the three neighbours cannot be reached.

The slot is read before the archive's tail and the tail before the cache, so that each may only be ahead of what was
read before it, and `confirmed_flush_lsn <= covered_upto` can be checked while all of them move.

`judge()` is pure: from what the neighbours said to sentences. 0 all is well, 1 something is not (it may mend itself),
78 a person must decide.
"""

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cdc import slots
from cdc.archive.bucket import Bucket, open_bucket
from cdc.archive.header import Gap
from cdc.archive.object_key import log_key
from cdc.archive.proof import Proof, Proofs, Trial, only_of, read_proofs
from cdc.archive.segment import decode_segment_header
from cdc.archive.tail import Tail, read_tail
from cdc.cache.server import Reached, read_cache_server
from cdc.change import format_time
from cdc.config import ArchiveSettings, CacheSettings, PostgresSettings, Settings
from cdc.doctor import one_line
from cdc.errors import CdcError, DataError
from cdc.lsn import format_lsn
from cdc.postgres.server import Server, current_wal_lsn, read_server
from cdc.postgres.session import connect
from cdc.postgres.slot import Slot, read_slot

WELL, NOT_WELL, PERSON = 0, 1, 78

# More than this is not traffic but trouble: two queues' worth and the WAL around it.
BEHIND_BYTES = 64 * 1024 * 1024

# Fences and coverage carry no changes, and so no time; the last changes are rarely further back than this.
_LOOK_BACK_SEGMENTS = 8


@dataclass(frozen=True, slots=True)
class PostgresStatus:
    """`slot` is None if there is none; everything is None if Postgres cannot be reached, and `error` says why."""

    slot_name: str
    server: Server | None = None
    slot: Slot | None = None
    current_lsn: int | None = None
    error: CdcError | None = None


@dataclass(frozen=True, slots=True)
class ArchiveStatus:
    """`tail` is None for an empty archive; `last_time_us` is the commit time of the newest change near the tail."""

    url: str
    tail: Tail | None = None
    last_time_us: int | None = None
    error: CdcError | None = None
    open_gap: Gap | None = None
    proofs: Proofs = field(default_factory=Proofs)


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """`checkpoint` is None while the cache is empty or being warmed."""

    configured: bool
    checkpoint: Reached | None = None
    error: CdcError | None = None


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is not well: who it concerns, what it is, and a line to paste."""

    subject: str
    message: str
    hint: str = ""
    person: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    postgres: PostgresStatus
    archive: ArchiveStatus
    cache: CacheStatus

    @property
    def troubles(self) -> list[Trouble]:
        return list(judge(self.postgres, self.archive, self.cache))

    @property
    def exit_code(self) -> int:
        troubles = self.troubles
        return PERSON if any(trouble.person for trouble in troubles) else NOT_WELL if troubles else WELL

    @property
    def verdict(self) -> str:
        return {WELL: "all is well", NOT_WELL: "not well", PERSON: "a person must decide"}[self.exit_code]


# Looking --------------------------------------------------------------------------------------------------------------


async def examine(settings: Settings) -> Status:
    """Ask the three neighbours, in the order that makes their answers comparable. Raises nothing that we foresee."""
    postgres = await _look_at_postgres(settings.postgres)
    archive = await _look_at_archive(settings.archive)
    cache = await _look_at_cache(settings.cache)
    return Status(postgres, archive, cache)


async def _look_at_postgres(settings: PostgresSettings) -> PostgresStatus:
    server: Server | None = None
    try:
        async with await connect(settings) as connection:
            server = await read_server(connection)
            slot = await read_slot(connection, settings.slot)
            return PostgresStatus(settings.slot, server, slot, await current_wal_lsn(connection))
    except CdcError as error:
        return PostgresStatus(settings.slot, server, error=error)


async def _look_at_archive(settings: ArchiveSettings) -> ArchiveStatus:
    try:
        bucket = open_bucket(settings)
        try:
            tail = await read_tail(bucket)
            last_time_us = None if tail is None else await _last_time_us(bucket, tail.seq)
            open_gap = None if tail is None else await _open_gap(bucket, tail)
            proofs = Proofs() if tail is None else only_of(await read_proofs(bucket), tail.archive)
        finally:
            await bucket.close()
    except CdcError as error:
        return ArchiveStatus(settings.url, error=error)
    return ArchiveStatus(settings.url, tail, last_time_us, open_gap=open_gap, proofs=proofs)


async def _open_gap(bucket: Bucket, tail: Tail) -> Gap | None:
    body = None if tail.open_gap is None else await bucket.get(log_key(tail.open_gap))
    return None if body is None else decode_segment_header(body).gap


async def _last_time_us(bucket: Bucket, seq: int) -> int | None:
    for earlier in range(seq, max(-1, seq - _LOOK_BACK_SEGMENTS), -1):
        body = await bucket.get(log_key(earlier))
        header = None if body is None else decode_segment_header(body)
        if header is not None and header.to_time_us is not None:
            return header.to_time_us
    return None


async def _look_at_cache(settings: CacheSettings) -> CacheStatus:
    if settings.url is None:
        return CacheStatus(configured=False)
    try:
        return CacheStatus(True, (await read_cache_server(settings)).checkpoint)
    except CdcError as error:
        return CacheStatus(True, error=error)


# Judging --------------------------------------------------------------------------------------------------------------


def judge(postgres: PostgresStatus, archive: ArchiveStatus, cache: CacheStatus) -> Iterator[Trouble]:
    """Everything that is not well."""
    if archive.open_gap is not None:
        yield _judge_gap(archive.open_gap)
    yield from _judge_postgres(postgres, archive)
    yield from _judge_archive(archive, postgres)
    yield from _judge_proofs(archive.proofs)
    if cache.configured:
        yield from _judge_cache(cache, archive, postgres)


def _judge_gap(gap: Gap) -> Trouble:
    since = f", noted at {format_time(gap.time_us)}" if gap.time_us else ""
    message = f"a gap is open: changes after {format_lsn(gap.from_lsn)} are lost ({gap.reason}){since}"
    return Trouble("archive", message, "cdc repair", person=True)


def _judge_postgres(postgres: PostgresStatus, archive: ArchiveStatus) -> Iterator[Trouble]:
    if postgres.error is not None:
        yield _trouble("postgres", postgres.error)
    elif postgres.slot is None:
        yield from _judge_absent_slot(postgres.slot_name, archive)
    else:
        yield from _judge_slot(postgres.slot)


def _judge_absent_slot(name: str, archive: ArchiveStatus) -> Iterator[Trouble]:
    if archive.tail is not None and archive.tail.covered_upto:
        yield Trouble(
            "slot",
            f"slot {name} is gone, but the archive ends at {format_lsn(archive.tail.covered_upto)}: "
            "changes since then may be lost",
            "cdc repair",
            person=True,
        )
    else:
        yield Trouble("slot", f"slot {name} is not there yet", "cdc run")


def _judge_slot(slot: Slot) -> Iterator[Trouble]:
    if slot.lost or slot.restart_lsn is None:
        yield Trouble(
            "slot",
            f"slot {slot.name} is lost ({slot.invalidation_reason or slot.wal_status}): its WAL is gone",
            "cdc repair",
            person=True,
        )
        return
    if slot.active_pid is None:
        yield Trouble("slot", f"nobody reads slot {slot.name}, and its WAL grows", "cdc run")
    if slot.wal_status == "unreserved":
        yield Trouble(
            "slot",
            f"slot {slot.name} is about to be lost: it exceeds max_slot_wal_keep_size",
            "ALTER SYSTEM SET max_slot_wal_keep_size = -1; SELECT pg_reload_conf();",
        )


def _judge_archive(archive: ArchiveStatus, postgres: PostgresStatus) -> Iterator[Trouble]:
    if archive.error is not None:
        yield _trouble("archive", archive.error)
        return
    tail, server, slot = archive.tail, postgres.server, postgres.slot
    if tail is None:
        if slot is not None:
            yield Trouble(
                "archive",
                f"the archive is empty, but slot {slot.name} is there: not this slot's archive, or just beginning",
                "cdc doctor",
            )
        return
    if server is not None and tail.source.epoch != server.epoch:
        yield Trouble(
            "archive",
            f"the archive is of {tail.source.epoch}, the server is {server.epoch}: two histories",
            "compare archive.url and postgres.dsn; after a failover `cdc run` records the fork",
            person=True,
        )
        return
    confirmed = slot.confirmed_flush_lsn if slot else None
    if confirmed is not None and confirmed > tail.covered_upto:
        yield Trouble(
            "archive",
            f"Postgres has forgotten what the archive lacks: confirmed_flush_lsn {format_lsn(confirmed)}, "
            f"archived up to {format_lsn(tail.covered_upto)}",
            "compare archive.url and postgres.slot; if they are right: cdc repair",
            person=True,
        )
    behind = _lag_bytes(tail.covered_upto, postgres.current_lsn)
    if behind is not None and behind > BEHIND_BYTES:
        yield Trouble("archive", f"the archive is {slots.size(behind)} of WAL behind", "look at the log of cdc run")


def _judge_proofs(proofs: Proofs) -> Iterator[Trouble]:
    """That nobody has proved anything yet is no trouble of this moment; a proof that failed is."""
    if proofs.verify is not None and not proofs.verify.ok:
        yield Trouble("proof", f"the archive was found damaged: {proofs.verify.failure}", "cdc archive verify")
    if proofs.against is not None and not proofs.against.ok:
        message = f"the archive was found to differ from the live tables: {proofs.against.failure}"
        yield Trouble("proof", message, "cdc archive verify --against DSN")
    if proofs.drill is not None and not proofs.drill.ok:
        yield Trouble("proof", f"the last drill failed: {proofs.drill.failure}", "cdc drill")


def _judge_cache(cache: CacheStatus, archive: ArchiveStatus, postgres: PostgresStatus) -> Iterator[Trouble]:
    if cache.error is not None:
        yield _trouble("cache", cache.error)
        return
    checkpoint = cache.checkpoint
    if checkpoint is None:
        yield Trouble("cache", "the cache is empty or being warmed", "cdc run  (warms it by itself)")
        return
    epoch = postgres.server.epoch if postgres.server else archive.tail.source.epoch if archive.tail else None
    if epoch is not None and checkpoint.epoch != epoch:
        yield Trouble("cache", f"the cache is of {checkpoint.epoch}, not of {epoch}", "cdc run  (warms it by itself)")
        return
    behind = _lag_bytes(checkpoint.lsn, postgres.current_lsn)
    if behind is not None and behind > BEHIND_BYTES:
        yield Trouble("cache", f"the cache is {slots.size(behind)} of WAL behind", "look at the log of cdc run")


def _trouble(subject: str, error: CdcError) -> Trouble:
    return Trouble(
        subject, one_line(error), error.hint, person=isinstance(error, DataError) or error.exit_code == PERSON
    )


def _lag_bytes(lsn: int, current_lsn: int | None) -> int | None:
    return None if current_lsn is None else max(0, current_lsn - lsn)


# Printing -------------------------------------------------------------------------------------------------------------


def facts(status: Status) -> dict[str, Any]:
    """The status as plain values, for `--json`. Unknown is null; an infinite size is null beside `lost`."""
    return {
        "verdict": status.verdict,
        "exit_code": status.exit_code,
        "troubles": [dataclasses.asdict(trouble) for trouble in status.troubles],
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
        "slot": None if slot is None or current_lsn is None else slots.facts(slot, current_lsn),
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
        "lag_bytes": None if tail is None else _lag_bytes(tail.covered_upto, current_lsn),
        "open_gap": None if archive.open_gap is None else _gap_facts(archive.open_gap),
        "proofs": {name: _proof_facts(getattr(archive.proofs, name)) for name in Proofs.__struct_fields__},
    }


def _proof_facts(kept: Proof | Trial | None) -> dict[str, Any] | None:
    """`time` and `ok` are the last run's, `held_at` and `lsn` those of the last one that succeeded."""
    if kept is None:
        return None
    facts = {"ok": kept.ok, "time": kept.time, "failure": kept.failure or None, "held_at": None, "lsn": None}
    if kept.held is not None:
        facts |= {"held_at": format_time(kept.held[0]), "lsn": format_lsn(kept.held[1])}
    if isinstance(kept, Trial) and kept.success is not None and kept.success.seconds:
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
        "lag_bytes": None if checkpoint is None else _lag_bytes(checkpoint.lsn, current_lsn),
    }


def lines(status: Status, now_us: int | None = None) -> Iterator[tuple[str, str]]:
    """The screen: a subject and a sentence a line."""
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
    keeps = "lost" if math.isinf(retained) else f"{slots.size(retained)} retained"
    confirmed = "-" if slot.confirmed_flush_lsn is None else format_lsn(slot.confirmed_flush_lsn)
    return f"{slot.name} {reader}, wal_status {slot.wal_status}, confirmed {confirmed}, {keeps}"


def _archive_line(archive: ArchiveStatus, current_lsn: int | None, now_us: int) -> str:
    if archive.error is not None:
        return f"{archive.url} cannot be read"
    if archive.tail is None:
        return f"{archive.url} is empty"
    behind = _lag_bytes(archive.tail.covered_upto, current_lsn)
    parts = [
        f"{archive.url} at segment {archive.tail.seq}",
        f"{archive.tail.next_ordinal} transactions",
        f"covered up to {format_lsn(archive.tail.covered_upto)}",
    ]
    parts += [] if behind is None else [f"{slots.size(behind)} behind"]
    if archive.last_time_us is not None:
        parts.append(f"last change {max(0, now_us - archive.last_time_us) / 1e6:.0f} s ago")
    return ", ".join(parts)


def _proof_parts(proofs: Proofs, now_us: int) -> Iterator[str]:
    verify, against, drill = proofs.verify, proofs.against, proofs.drill
    if verify is None or verify.held is None:
        yield "never verified as a whole" if verify is None else "damaged"
    else:
        yield f"verified up to {format_lsn(verify.held[1])} {age(now_us - verify.held[0])} ago"
    if against is not None and against.held is not None:
        yield f"equal to the live tables at {format_lsn(against.held[1])} {age(now_us - against.held[0])} ago"
    if drill is None or drill.success is None or drill.held is None:
        yield "no drill yet" if drill is None else "no drill has succeeded"
    else:
        took = f"{drill.success.seconds:.0f} s, {drill.success.rows_per_s:.0f} rows/s"
        yield f"drill {age(now_us - drill.held[0])} ago ({took})"


def age(age_us: int) -> str:
    """A time as people count it: 90 s, 80 min, 30 h, 4 d."""
    seconds = max(0, age_us) // 1_000_000
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def _cache_line(cache: CacheStatus, current_lsn: int | None) -> str:
    if not cache.configured:
        return "none configured"
    if cache.error is not None:
        return "not reachable"
    if cache.checkpoint is None:
        return "empty, or being warmed"
    behind = _lag_bytes(cache.checkpoint.lsn, current_lsn)
    lag = "" if behind is None else f", {slots.size(behind)} behind"
    return f"complete up to {format_lsn(cache.checkpoint.lsn)}{lag}"
