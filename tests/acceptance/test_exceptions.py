"""What cannot be kept is written down, ends the service with 78, and one command mends it: on real servers."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import redis

from cdc.embedded import PostgresServer
from tests.acceptance.conftest import MakeService
from tests.conftest import MakePostgres
from tests.faults.checker import Verdict, check_replay, read_table
from tests.faults.objects import Archive, read_archive, read_directory, read_lines
from tests.support.cdc_process import Service, install, mark, query, wait_until

PERSON = 78
TABLES = ("public.turns", "public.outbox")


def write_event(dsn: str, *keys: str) -> None:
    """Outbox events by their idempotency keys, in one transaction."""
    query(
        dsn,
        "INSERT INTO outbox (event_type, idempotency_key, payload) SELECT 'e', k, '{}' FROM unnest(%s::text[]) k",
        list(keys),
    )


def write_turn(dsn: str, session: str, content: str) -> None:
    query(
        dsn,
        "INSERT INTO turns (domain, channel, session_hash, role, content) VALUES ('d', 'c', %s, 'user', %s)",
        session,
        content,
    )


def facts(service: Service, *arguments: str) -> dict[str, Any]:
    """What a command says with `--json`."""
    done = service.command(*arguments, "--json", check=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return {**found, "exit": done.returncode}


def repair(service: Service) -> int:
    return service.command("repair", check=False).returncode


def assert_replay_gives_the_tables(dsn: str, archive_url: str, breaks: int = 1) -> Archive:
    """The archive is sound but for the breaks it records, and the last snapshot with what follows is the tables."""
    archive = read_archive(read_directory(archive_url))
    assert archive.faults == archive.breaks
    assert len(archive.breaks) == breaks, archive.breaks
    verdict = Verdict()
    check_replay(archive, {name: read_table(dsn, name) for name in TABLES}, verdict)
    assert not verdict.findings, str(verdict)
    return archive


def assert_inside_the_gap(service: Service, archive_url: str, table: str, gone: list[int], **counts: int) -> None:
    """The archive says how many rows changed inside its last gap, and which ones were deleted there."""
    inside = facts(service, "archive", "verify")["gaps"][-1]["changed_inside"]
    assert inside["unknown"] == {}
    assert inside["tables"][table] == counts
    objects = read_directory(archive_url)
    lines = [line for key in inside["deleted_keys"] for line in read_lines(objects[key])[1:]]
    assert {line["op"] for line in lines} <= {"d"}
    assert [int(line["key"]["id"][1]) for line in lines if line["table"] == table] == gone


def drop(dsn: str) -> None:
    query(dsn, "SELECT pg_drop_replication_slot('cdc')")


def advance(dsn: str) -> None:
    query(dsn, "SELECT pg_replication_slot_advance('cdc', pg_current_wal_flush_lsn())")


@pytest.mark.parametrize(("lose", "word"), [(drop, "gone"), pytest.param(advance, "advanced", marks=pytest.mark.wide)])
def test_what_is_lost_is_recorded_once_and_repaired_by_one_command(
    installed: str, archive_dir: str, make_service: MakeService, lose: Callable[[str], None], word: str
) -> None:
    write_event(installed, "before", "deleted")
    service = make_service(installed, archive_dir).start()
    service.archive_and_stop(installed)
    write_event(installed, "lost")
    ((deleted,),) = query(installed, "DELETE FROM outbox WHERE idempotency_key = 'deleted' RETURNING id")
    lose(installed)

    assert service.run_to_end() == PERSON, service.log_tail()
    assert word in service.failure()["reason"]
    assert "cdc repair" in service.failure()["hint"]
    recorded = read_directory(archive_dir)
    assert service.run_to_end() == PERSON
    assert "open gap" in service.failure()["reason"]
    assert read_directory(archive_dir) == recorded

    status = facts(service, "status")
    assert (status["exit"], status["verdict"]) == (PERSON, "a person must decide")
    gap = status["archive"]["open_gap"]
    assert word in gap["reason"]
    assert gap["from"] == status["archive"]["covered_upto"]
    assert gap["time"]
    assert [one["hint"] for one in status["troubles"] if "a gap is open" in one["message"]] == ["cdc repair"]
    report = facts(service, "archive", "verify")
    assert (report["exit"], report["findings"]) == (0, [])
    assert [one["closed_by_snapshot_at"] for one in report["gaps"]] == [None]

    assert repair(service) == 0
    write_event(installed, "after")
    service.start().archive_and_stop(installed)
    assert_replay_gives_the_tables(installed, archive_dir)
    report = facts(service, "archive", "verify")
    assert (report["exit"], report["findings"], len(report["gaps"])) == (0, [], 1)
    assert report["gaps"][0]["closed_by_snapshot_at"]
    assert_inside_the_gap(service, archive_dir, "public.outbox", [deleted], deleted=1, inserted=1, changed=0)
    assert facts(service, "status")["archive"]["open_gap"] is None


def test_resnapshot_repairs_alone_and_the_cache_is_warmed_again(
    installed: str, archive_dir: str, redis_url: str, make_service: MakeService
) -> None:
    write_turn(installed, "s1", "before")
    write_turn(installed, "s1", "to be deleted")
    write_turn(installed, "s2", "the only one")
    service = make_service(installed, archive_dir, redis_url, archive={"on_gap": "resnapshot"}).start()
    service.wait_until_caught_up(installed)
    assert turns_cached(redis_url, "s1") == ["before", "to be deleted"]
    assert service.stop() == 0
    write_turn(installed, "s1", "inside the gap")
    deleted = query(
        installed, "DELETE FROM turns WHERE content IN ('to be deleted', 'the only one') RETURNING id, turn_id"
    )
    drop(installed)
    service.start()
    service.wait_for_event("gap_closed")
    write_turn(installed, "s1", "after")
    service.wait_until_caught_up(installed)
    service.wait_for_event("warm_up_finished", more_than=1)
    wait_until(lambda: turns_cached(redis_url, "s1") == ["before", "inside the gap", "after"], "the cache is complete")
    with redis.Redis.from_url(redis_url) as client:
        served = {key.decode() for key in client.scan_iter(match="*")}
    assert served & {f"turn:{turn_id}" for _, turn_id in deleted} == set()
    assert served & {"session:s2:turns", "session:s2:state"} == set()
    assert service.stop() == 0
    assert_replay_gives_the_tables(installed, archive_dir)
    gone = sorted(number for number, _ in deleted)
    assert_inside_the_gap(service, archive_dir, "public.turns", gone, deleted=2, inserted=1, changed=0)


def turns_cached(redis_url: str, session: str) -> list[str]:
    with redis.Redis.from_url(redis_url) as client:
        members: Any = client.zrange(f"session:{session}:turns", 0, -1)
    return [json.loads(member)["content"] for member in members]


def overrun(dsn: str) -> None:
    """Write WAL until the slot has lost its own."""
    for _ in range(20):
        query(dsn, "SELECT pg_logical_emit_message(false, 'filler', repeat('x', 100))")
        query(dsn, "SELECT pg_switch_wal()")
        query(dsn, "CHECKPOINT")
        if query(dsn, "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'cdc'") == [("lost",)]:
            return
    pytest.fail("the slot was not lost")


@pytest.fixture
def small(make_postgres: MakePostgres) -> str:
    """A server that keeps little WAL for a slot."""
    settings = {"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}
    dsn = make_postgres(settings=settings).dsn()
    install(dsn)
    return dsn


def test_a_slot_that_exceeds_max_slot_wal_keep_size_while_nobody_reads(
    small: str, archive_dir: str, make_service: MakeService
) -> None:
    service = make_service(small, archive_dir).start()
    service.archive_and_stop(small)
    write_event(small, "lost")
    overrun(small)
    assert service.run_to_end() == PERSON, service.log_tail()
    assert "invalidated" in service.failure()["reason"]
    assert repair(service) == 0
    service.start().archive_and_stop(small)
    assert_replay_gives_the_tables(small, archive_dir)


def test_a_slot_that_is_lost_under_a_paused_service(small: str, archive_dir: str, make_service: MakeService) -> None:
    service = make_service(small, archive_dir, archive={"on_gap": "resnapshot"}).start()
    service.wait_until_archived(small)
    service.pause()
    write_event(small, "inside the gap")
    overrun(small)
    service.resume()
    service.wait_for_event("gap_closed")
    service.archive_and_stop(small)
    assert_replay_gives_the_tables(small, archive_dir)


def test_a_crash_inside_the_repair_starts_it_over(installed: str, archive_dir: str, make_service: MakeService) -> None:
    service = make_service(installed, archive_dir, archive={"on_gap": "resnapshot"}).start()
    service.archive_and_stop(installed)
    drop(installed)
    with psycopg.connect(installed) as blocker:
        blocker.execute("SELECT pg_current_xact_id()")  # a slot waits for it, between the gap and its snapshot
        fences = len(service.events("fenced"))
        service.start()
        service.wait_for_event("fenced", more_than=fences + 1)
        service.kill()
        blocker.rollback()
    service.start()
    service.wait_for_event("gap_closed")
    service.archive_and_stop(installed)
    assert_replay_gives_the_tables(installed, archive_dir)


def test_there_is_nothing_to_repair_while_a_service_is_at_work(
    installed: str, archive_dir: str, make_service: MakeService
) -> None:
    service = make_service(installed, archive_dir).start()
    service.wait_until_archived(installed)
    done = service.command("repair", check=False)
    assert done.returncode == 2
    assert "nothing to repair" in done.stderr
    assert service.stop() == 0


def test_another_slot_name_is_a_mistake_and_no_gap(installed: str, archive_dir: str, make_service: MakeService) -> None:
    service = make_service(installed, archive_dir).start()
    service.wait_until_archived(installed)
    before = read_directory(archive_dir)
    mistaken = make_service(installed, archive_dir, name="mistaken", postgres={"slot": "other"})
    assert mistaken.run_to_end() == PERSON
    assert "postgres.slot" in mistaken.failure()["reason"]
    assert service.running
    assert set(read_directory(archive_dir)) - set(before) == set()
    assert service.stop() == 0


class Failover:
    """A primary, and a copy of it that is promoted in its place: what was committed after the copy is a lost tail."""

    def __init__(self, primary: PostgresServer) -> None:
        self.primary = primary
        self.copy: PostgresServer | None = None

    def take_copy(self, *, with_slot: bool) -> None:
        self.primary.stop()
        home = self.primary.data_dir.with_name("copy")
        shutil.copytree(self.primary.data_dir, home)
        for path in [home, *home.rglob("*")]:
            original = self.primary.data_dir / path.relative_to(home)
            os.chown(path, original.stat().st_uid, original.stat().st_gid)
        if not with_slot:
            shutil.rmtree(home / "pg_replslot" / "cdc")
        shutil.copy(home / "PG_VERSION", home / "standby.signal")
        primary = self.primary
        self.copy = PostgresServer(home, settings=primary.settings, bin_dir=primary.bin_dir, port=primary.port)
        self.primary.start()

    def promote(self) -> None:
        assert self.copy is not None
        self.primary.stop()
        self.copy.start()
        query(self.copy.dsn(), "SELECT pg_promote()")


@pytest.fixture
def failover(make_postgres: MakePostgres) -> Iterator[Failover]:
    pair = Failover(make_postgres())
    install(pair.primary.dsn())
    yield pair
    if pair.copy is not None:
        pair.copy.close()


def fail_over(failover: Failover, service: Service, *, with_slot: bool) -> str:
    """A service that has archived a tail which the promoted server does not have; its dsn, the same as before."""
    dsn = failover.primary.dsn()
    write_event(dsn, "before")
    service.start().archive_and_stop(dsn)
    failover.take_copy(with_slot=with_slot)
    write_event(dsn, "lost 1")
    write_event(dsn, "lost 2")
    service.start().archive_and_stop(dsn)
    failover.promote()
    write_event(dsn, "on the new timeline")
    return dsn


def test_a_failover_with_a_lost_tail_is_a_fork_and_the_slot_is_a_gap(
    failover: Failover, archive_dir: str, make_service: MakeService
) -> None:
    service = make_service(failover.primary.dsn(), archive_dir)
    dsn = fail_over(failover, service, with_slot=False)
    assert service.run_to_end() == PERSON, service.log_tail()
    assert service.events("fork_recorded")[-1]["lost_tail_bytes"] > 0
    recorded = read_directory(archive_dir)
    assert service.run_to_end() == PERSON
    assert read_directory(archive_dir) == recorded
    assert repair(service) == 0
    service.start().wait_until_archived(dsn)
    write_event(dsn, "after")
    service.archive_and_stop(dsn)
    assert_replay_gives_the_tables(dsn, archive_dir, breaks=2)
    report = facts(service, "archive", "verify")
    assert (report["exit"], report["findings"]) == (0, [])
    assert len(report["forks"]) == len(report["gaps"]) == 1


@pytest.mark.wide
def test_a_slot_that_survived_the_failover_goes_on_behind_the_fork(
    failover: Failover, archive_dir: str, redis_url: str, make_service: MakeService
) -> None:
    service = make_service(failover.primary.dsn(), archive_dir, redis_url)
    dsn = fail_over(failover, service, with_slot=True)
    service.start().wait_until_caught_up(dsn)
    against = facts(service, "archive", "verify", "--against", dsn)["against"]
    assert (against["equal"], against["rows"]["public.outbox"]) == (True, 2)
    assert service.stop() == 0
    archive = read_archive(read_directory(archive_dir))
    assert archive.faults == archive.breaks
    assert len(archive.breaks) == 1
    keys = [change.new["idempotency_key"] for tx in archive.transactions for change in tx.changes if change.new]
    assert keys == ["lost 1", "lost 2", "on the new timeline"]
    assert facts(service, "archive", "verify")["findings"] == []


def unpublish(dsn: str) -> None:
    query(dsn, "ALTER PUBLICATION cdc DROP TABLE outbox")


def recreate(dsn: str) -> None:
    query(dsn, "ALTER TABLE outbox RENAME CONSTRAINT outbox_pkey TO old_pkey")
    query(dsn, "CREATE TABLE fresh (LIKE outbox INCLUDING ALL)")
    query(dsn, "DROP TABLE outbox")
    query(dsn, "ALTER TABLE fresh RENAME TO outbox")
    query(dsn, "GRANT SELECT ON outbox TO cdc_reader")


def republish(dsn: str) -> None:
    query(dsn, "ALTER PUBLICATION cdc ADD TABLE outbox")


UNPUBLISHED, RECREATED = "was taken out of the publication", "was dropped and created again"


@pytest.mark.parametrize(
    ("lose", "word", "running"),
    [
        (unpublish, UNPUBLISHED, True),
        pytest.param(unpublish, UNPUBLISHED, False, marks=pytest.mark.wide),
        pytest.param(recreate, RECREATED, True, marks=pytest.mark.wide),
        (recreate, RECREATED, False),
    ],
)
def test_a_table_that_loses_changes_is_a_gap_that_names_it(
    installed: str, archive_dir: str, make_service: MakeService, lose: Callable[[str], None], word: str, running: bool
) -> None:
    write_event(installed, "before")
    service = make_service(installed, archive_dir, archive={"coverage_interval_s": 1}).start()
    service.wait_until_archived(installed)
    if not running:
        assert service.stop() == 0
    lose(installed)
    query(installed, "DELETE FROM outbox")
    write_event(installed, "missing")
    if running:
        wait_until(lambda: mark(installed) > 0 and not service.running, "it sees that, for it is kept busy", poll_s=0.2)
    else:
        service.start()
    assert service.wait() == PERSON, service.log_tail()
    failure = service.failure()
    assert f"public.outbox {word}" in failure["reason"]
    assert 'ADD TABLE "public"."outbox"' in failure["hint"]
    assert word in facts(service, "status")["archive"]["open_gap"]["reason"]
    republish(installed)
    assert repair(service) == 0
    service.start().archive_and_stop(installed)
    assert_replay_gives_the_tables(installed, archive_dir)


def test_a_table_that_is_dropped_for_good_is_no_gap(
    installed: str, archive_dir: str, make_service: MakeService
) -> None:
    query(installed, "CREATE TABLE passing (id int PRIMARY KEY)")
    query(installed, "ALTER PUBLICATION cdc ADD TABLE passing")
    query(installed, "GRANT SELECT ON passing TO cdc_reader")
    service = make_service(installed, archive_dir).start()
    service.archive_and_stop(installed)
    query(installed, "DROP TABLE passing")
    service.start().archive_and_stop(installed)


@pytest.mark.wide
def test_a_running_service_goes_through_a_failover_alone(
    failover: Failover, archive_dir: str, redis_url: str, make_service: MakeService
) -> None:
    dsn = failover.primary.dsn()
    write_turn(dsn, "s1", "before")
    service = make_service(dsn, archive_dir, redis_url, archive={"on_gap": "resnapshot"}).start()
    service.wait_until_caught_up(dsn)
    failover.take_copy(with_slot=False)
    service.wait_for_event("streaming", more_than=1)
    write_turn(dsn, "s1", "lost")
    service.wait_until_caught_up(dsn)
    failover.promote()
    service.wait_for_event("gap_closed")
    write_turn(dsn, "s1", "after")
    service.wait_until_archived(dsn)
    wait_until(lambda: turns_cached(redis_url, "s1") == ["before", "after"], "the cache is of the new timeline")
    assert service.stop() == 0
    assert_replay_gives_the_tables(dsn, archive_dir, breaks=2)
