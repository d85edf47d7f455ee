"""What `cdc status` says of facts: pure judgement, no server."""

import dataclasses
import json
from typing import Any

import pytest

from cdc import status
from cdc.archive.format.header import Gap, Source
from cdc.archive.proof.proofs import Proof, Proofs, Proved, RememberedRun, Success
from cdc.archive.reader.tail import Tail
from cdc.cache.server import CachedPosition
from cdc.errors import DataError, Unavailable
from cdc.position import Epoch
from cdc.postgres.server import Server
from cdc.status import Status
from cdc.status.neighbours import ArchiveStatus, CacheStatus, PostgresStatus
from tests.unit.doctor.test_doctor import slot

EPOCH = Epoch("7000", 1)
AWAY = Unavailable("nobody listens", hint="check the address")


def server(epoch: Epoch = EPOCH) -> Server:
    facts: dict[str, Any] = {field.name: "" for field in dataclasses.fields(Server)}
    return Server(**(facts | {"epoch": epoch, "database": "chat", "server_version": "18.1"}))


def postgres(**changed: Any) -> PostgresStatus:
    facts: dict[str, Any] = {"server": server(), "slot": slot(), "current_lsn": 3000}
    return PostgresStatus("cdc", **(facts | changed))


def archive(covered_upto: int = 2500, epoch: Epoch = EPOCH, **changed: Any) -> ArchiveStatus:
    tail = Tail(
        archive="a", seq=9, sha256="", source=Source(epoch=epoch, database="chat"), last_commit_lsn=2400,
        covered_upto=covered_upto, next_ordinal=7, writer_epoch=1,
    )  # fmt: skip
    facts: dict[str, Any] = {"tail": tail, "last_time_us": 10_000_000}
    return ArchiveStatus("file:///a", **(facts | changed))


def cache(lsn: int = 2500, epoch: Epoch = EPOCH, **changed: Any) -> CacheStatus:
    facts: dict[str, Any] = {"checkpoint": CachedPosition(lsn, epoch, "")}
    return CacheStatus(True, **(facts | changed))


def test_all_is_well() -> None:
    found = Status(postgres(), archive(), cache())
    assert (found.exit_code, found.verdict, found.troubles) == (0, "all is well", [])


def test_without_a_cache_all_can_be_well() -> None:
    assert Status(postgres(), archive(), CacheStatus(configured=False)).exit_code == 0


def verified(ok: bool = True, failure: str = "") -> Proof:
    proved = Proved(
        seq=9, sha256="", time="1970-01-01T00:00:10Z", whole_since="1970-01-01T00:00:05Z", covered_upto="0/9C4",
        last_commit_lsn="0/960", next_ordinal=7, segments=10, kinds={}, transactions=7, changes=9, bytes=99,
        base_chunks=0, base_rows=0, abandoned_parts=0, uncommitted_chunks=0,
    )  # fmt: skip
    return Proof(archive="a", ok=ok, time="1970-01-01T00:00:11Z", command="", failure=failure, proved=proved)


def tried(failure: str = "", succeeded: bool = True) -> RememberedRun:
    success = Success(time="1970-01-01T00:00:10Z", lsn="0/9C4", rows=900, tables=["a.b"], changes=100, seconds=2.0)
    return RememberedRun(
        archive="a", ok=not failure, time="1970-01-01T00:00:11Z", command="", failure=failure,
        success=success if succeeded else None,
    )  # fmt: skip


NOT_WELL = [
    (postgres(server=None, slot=None, current_lsn=None, error=AWAY), archive(), cache(), "nobody listens"),
    (postgres(), ArchiveStatus("file:///a", error=AWAY), cache(), "nobody listens"),
    (postgres(), archive(), CacheStatus(True, error=AWAY), "nobody listens"),
    (postgres(slot=None), ArchiveStatus("file:///a"), cache(), "is not there yet"),
    (postgres(slot=None), archive(covered_upto=0), cache(), "is not there yet"),
    (postgres(slot=slot(active_pid=None)), archive(), cache(), "nobody reads slot cdc"),
    (postgres(slot=slot(wal_status="unreserved")), archive(), cache(), "about to be lost"),
    (postgres(), ArchiveStatus("file:///a"), cache(), "the archive is empty, but slot cdc is there"),
    (postgres(current_lsn=2**32), archive(), cache(2**32), "the archive is 4.0 GB of WAL behind"),
    (postgres(), archive(), cache(checkpoint=None), "empty or being warmed"),
    (postgres(), archive(), cache(epoch=Epoch("7000", 2)), "the cache is of 7000/2, not of 7000/1"),
    (postgres(current_lsn=2**32), archive(2**32), cache(), "the cache is 4.0 GB of WAL behind"),
    (postgres(), archive(proofs=Proofs(verify=verified(False, "log/9 is cut"))), cache(), "damaged: log/9 is cut"),
    (postgres(), archive(proofs=Proofs(against=tried("2 differences"))), cache(), "tables: 2 differences"),
    (postgres(), archive(proofs=Proofs(drill=tried("out of time", False))), cache(), "drill failed: out of time"),
]

FOR_A_PERSON = [
    (postgres(slot=None), archive(), cache(), "is gone, but the archive ends at 0/9C4"),
    (postgres(slot=slot(wal_status="lost", restart_lsn=None)), archive(), cache(), "its WAL is gone"),
    (postgres(slot=slot(invalidation_reason="idle_timeout")), archive(), cache(), "lost (idle_timeout)"),
    (postgres(server=server(Epoch("7000", 2))), archive(), cache(), "two histories"),
    (postgres(server=server(Epoch("8000", 1))), archive(), cache(), "two histories"),
    (postgres(), archive(open_gap=Gap(2500, "slot lost", 7)), cache(), "changes after 0/9C4 are lost (slot lost)"),
    (postgres(), archive(covered_upto=1999), cache(), "Postgres has forgotten what the archive lacks"),
    (postgres(current_lsn=2400), archive(), cache(), "the server was set back"),
    (postgres(), ArchiveStatus("file:///a", error=DataError("the tail is damaged")), cache(), "the tail is damaged"),
]


@pytest.mark.parametrize(("at_postgres", "at_archive", "at_cache", "said"), NOT_WELL)
def test_what_may_mend_itself_is_exit_code_1(
    at_postgres: PostgresStatus, at_archive: ArchiveStatus, at_cache: CacheStatus, said: str
) -> None:
    found = Status(at_postgres, at_archive, at_cache)
    assert (found.exit_code, found.verdict) == (1, "not well")
    assert said in " ".join(trouble.message for trouble in found.troubles)
    assert all(trouble.hint for trouble in found.troubles)


@pytest.mark.parametrize(("at_postgres", "at_archive", "at_cache", "said"), FOR_A_PERSON)
def test_what_only_a_person_can_decide_is_exit_code_78(
    at_postgres: PostgresStatus, at_archive: ArchiveStatus, at_cache: CacheStatus, said: str
) -> None:
    found = Status(at_postgres, at_archive, at_cache)
    assert (found.exit_code, found.verdict) == (78, "a person must decide")
    assert said in " ".join(trouble.message for trouble in found.troubles)


@pytest.mark.parametrize(("at_postgres", "at_archive", "at_cache", "said"), NOT_WELL + FOR_A_PERSON)
def test_whatever_is_wrong_it_can_be_printed(
    at_postgres: PostgresStatus, at_archive: ArchiveStatus, at_cache: CacheStatus, said: str
) -> None:
    found = Status(at_postgres, at_archive, at_cache)
    assert json.loads(json.dumps(status.facts(found), allow_nan=False))["verdict"] == found.verdict
    subjects = ["postgres", "slot", "archive", "cache", *(["proof"] if at_archive.tail else [])]
    assert [subject for subject, _ in status.lines(found)] == subjects


def test_a_lost_slot_is_never_printed_as_retaining_nothing() -> None:
    lost = postgres(slot=slot(wal_status="lost", restart_lsn=None, active_pid=None))
    text = dict(status.lines(Status(lost, archive(), cache())))["slot"]
    assert text.endswith("lost")
    facts = status.facts(Status(lost, archive(), cache()))["postgres"]["slot"]
    assert (facts["lost"], facts["retained_bytes"]) == (True, None)


def test_the_age_of_the_last_change_is_from_its_commit() -> None:
    lines = dict(status.lines(Status(postgres(), archive(), cache()), now_us=13_000_000))
    assert lines["archive"].endswith("last change 3 s ago")


def proof_line(proofs: Proofs, now_us: int) -> str:
    return dict(status.lines(Status(postgres(), archive(proofs=proofs), cache()), now_us=now_us))["proof"]


def test_how_far_the_archive_is_proved_and_how_long_ago() -> None:
    now_us = 10_000_000 + 3 * 3600 * 1_000_000
    all_three = Proofs(verified(), tried(), tried())
    assert proof_line(all_three, now_us) == (
        "verified up to 0/9C4 3 h ago; equal to the live tables at 0/9C4 3 h ago; drill 3 h ago (2 s, 500 rows/s)"
    )
    assert proof_line(Proofs(), now_us) == "never verified as a whole; no drill yet"
    assert proof_line(Proofs(drill=tried("x", False)), now_us) == "never verified as a whole; no drill has succeeded"
    found = Status(postgres(), archive(proofs=all_three), cache())
    assert found.exit_code == 0
    told = status.facts(found)["archive"]["proofs"]
    assert told["verify"]["held_at"] == "1970-01-01T00:00:10.000000Z"
    assert (told["drill"]["lsn"], told["drill"]["seconds"], told["drill"]["rows_per_s"]) == ("0/9C4", 2.0, 500)


def test_what_was_once_proved_is_told_though_the_last_proof_failed() -> None:
    proofs = Proofs(verified(False, "cut"), tried("2 differences"))
    assert proof_line(proofs, 10_000_000).startswith("verified up to 0/9C4 0 s ago; equal")
    told = status.facts(Status(postgres(), archive(proofs=proofs), cache()))["archive"]["proofs"]
    assert (told["verify"]["ok"], told["verify"]["failure"], told["verify"]["lsn"]) == (False, "cut", "0/9C4")


@pytest.mark.parametrize(
    ("age_s", "printed"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (180000, "2 d")],
)
def test_ages_are_printed_as_people_count_them(age_s: int, printed: str) -> None:
    assert status.age(age_s * 1_000_000) == printed
