"""Judges the neighbours' answers: what is wrong, where, and what mends it. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from cdc.archive.format.header import Gap
from cdc.archive.proof.proofs import Proofs
from cdc.change import format_time
from cdc.errors import Diverged
from cdc.finding import Finding, failure
from cdc.lsn import format_lsn
from cdc.monitor.reason import BEHIND_BYTES
from cdc.monitor.slots import judge_slot
from cdc.position import check_wal_end
from cdc.status.neighbours import ArchiveStatus, CacheStatus, PostgresStatus
from cdc.words import size

WELL, NOT_WELL, PERSON = 0, 1, 78


@dataclass(frozen=True, slots=True)
class Status:
    postgres: PostgresStatus
    archive: ArchiveStatus
    cache: CacheStatus

    @property
    def troubles(self) -> list[Finding]:
        return list(judge(self.postgres, self.archive, self.cache))

    @property
    def exit_code(self) -> int:
        troubles = self.troubles
        return PERSON if any(trouble.needs_person for trouble in troubles) else NOT_WELL if troubles else WELL

    @property
    def verdict(self) -> str:
        return {WELL: "all is well", NOT_WELL: "not well", PERSON: "a person must decide"}[self.exit_code]


def judge(postgres: PostgresStatus, archive: ArchiveStatus, cache: CacheStatus) -> Iterator[Finding]:
    """Judge the three neighbours and what they say of one another. Yields a finding for everything that is wrong."""
    if archive.open_gap is not None:
        yield _judge_gap(archive.open_gap)
    yield from _judge_postgres(postgres, archive)
    yield from _judge_archive(archive, postgres)
    yield from _judge_proofs(archive.proofs)
    if cache.configured:
        yield from _judge_cache(cache, archive, postgres)


def _judge_gap(gap: Gap) -> Finding:
    since = f", noted at {format_time(gap.time_us)}" if gap.time_us else ""
    message = f"a gap is open: changes after {format_lsn(gap.from_lsn)} are lost ({gap.reason}){since}"
    return Finding("archive", message, "cdc repair", needs_person=True)


def _judge_postgres(postgres: PostgresStatus, archive: ArchiveStatus) -> Iterator[Finding]:
    if postgres.error is not None:
        yield failure("postgres", postgres.error)
    elif postgres.slot is None:
        yield from _judge_absent_slot(postgres.slot_name, archive)
    else:
        yield from judge_slot(postgres.slot, postgres.slot_name)


def _judge_absent_slot(name: str, archive: ArchiveStatus) -> Iterator[Finding]:
    if archive.tail is not None and archive.tail.covered_upto:
        yield Finding(
            "slot",
            f"slot {name} is gone, but the archive ends at {format_lsn(archive.tail.covered_upto)}: "
            "changes since then may be lost",
            "cdc repair",
            needs_person=True,
        )
    else:
        yield Finding("slot", f"slot {name} is not there yet", "cdc run")


def _judge_archive(archive: ArchiveStatus, postgres: PostgresStatus) -> Iterator[Finding]:
    if archive.error is not None:
        yield failure("archive", archive.error)
        return
    tail, server, slot = archive.tail, postgres.server, postgres.slot
    if tail is None:
        if slot is not None:
            yield Finding(
                "archive",
                f"the archive is empty, but slot {slot.name} is there: not this slot's archive, or just beginning",
                "cdc doctor",
            )
        return
    if server is not None and tail.source.epoch != server.epoch:
        yield Finding(
            "archive",
            f"the archive is of {tail.source.epoch}, the server is {server.epoch}: two histories",
            "compare archive.url and postgres.dsn; after a failover `cdc run` records the fork",
            needs_person=True,
        )
        return
    if postgres.current_lsn is not None:
        try:
            check_wal_end(postgres.current_lsn, tail.covered_upto)
        except Diverged as error:
            yield failure("archive", error)
    confirmed = slot.confirmed_flush_lsn if slot else None
    if confirmed is not None and confirmed > tail.covered_upto:
        yield Finding(
            "archive",
            f"Postgres has forgotten what the archive lacks: confirmed_flush_lsn {format_lsn(confirmed)}, "
            f"archived up to {format_lsn(tail.covered_upto)}",
            "compare archive.url and postgres.slot; if they are right: cdc repair",
            needs_person=True,
        )
    behind = lag_bytes(tail.covered_upto, postgres.current_lsn)
    if behind is not None and behind > BEHIND_BYTES:
        yield Finding("archive", f"the archive is {size(behind)} of WAL behind", "look at the log of cdc run")


def _judge_proofs(proofs: Proofs) -> Iterator[Finding]:
    """Judge the remembered proofs. A failed one is a trouble; a missing one is not."""
    if proofs.verify is not None and not proofs.verify.ok:
        yield Finding("proof", f"the archive was found damaged: {proofs.verify.failure}", "cdc archive verify")
    if proofs.against is not None and not proofs.against.ok:
        message = f"the archive was found to differ from the live tables: {proofs.against.failure}"
        yield Finding("proof", message, "cdc archive verify --against DSN")
    if proofs.drill is not None and not proofs.drill.ok:
        yield Finding("proof", f"the last drill failed: {proofs.drill.failure}", "cdc drill")


def _judge_cache(cache: CacheStatus, archive: ArchiveStatus, postgres: PostgresStatus) -> Iterator[Finding]:
    if cache.error is not None:
        yield failure("cache", cache.error)
        return
    checkpoint = cache.checkpoint
    if checkpoint is None:
        yield Finding("cache", "the cache is empty or being warmed", "cdc run  (warms it by itself)")
        return
    epoch = postgres.server.epoch if postgres.server else archive.tail.source.epoch if archive.tail else None
    if epoch is not None and checkpoint.epoch != epoch:
        yield Finding("cache", f"the cache is of {checkpoint.epoch}, not of {epoch}", "cdc run  (warms it by itself)")
        return
    behind = lag_bytes(checkpoint.lsn, postgres.current_lsn)
    if behind is not None and behind > BEHIND_BYTES:
        yield Finding("cache", f"the cache is {size(behind)} of WAL behind", "look at the log of cdc run")


def lag_bytes(lsn: int, current_lsn: int | None) -> int | None:
    return None if current_lsn is None else max(0, current_lsn - lsn)
