"""A primary that is killed while its standby streams, a slot that is synchronised, a recovery to a point in time.

Real ones: pg_basebackup, a WAL receiver, an archive of WAL files. Where there are two servers, the service is given
both in one DSN and finds the one that takes writes.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cdc.embedded import PostgresServer
from cdc.embedded.binaries import find_postgres
from cdc.embedded.process import free_port, run
from tests.acceptance.conftest import MakeService, as_replicator
from tests.acceptance.test_exceptions import (
    PERSON,
    assert_inside_the_gap,
    assert_replay_gives_the_tables,
    facts,
    repair,
    turns_cached,
    write_event,
    write_turn,
)
from tests.conftest import MakePostgres
from tests.faults.objects import read_archive, read_directory
from tests.support.cdc_process import (
    Service,
    confirmed_flush_lsn,
    install,
    mark,
    needs_postgres,
    parse_lsn,
    query,
    wait_until,
)
from tests.support.s3 import S3Server

FENCED = 75

Backup = Callable[..., PostgresServer]


@pytest.fixture
def back_up() -> Iterator[Backup]:
    """Takes a base backup of a server, as a server of its own that is not started yet."""
    made: list[PostgresServer] = []

    def take(primary: PostgresServer, *options: str, port: int | None = None) -> PostgresServer:
        binaries = find_postgres(primary.bin_dir)
        shelf = primary.data_dir.with_name("backup")
        shelf.mkdir()
        shelf.chmod(0o777)
        home = shelf / "data"
        command = [str(binaries.bin_dir / "pg_basebackup"), "-D", str(home), "-d", primary.dsn(), "-c", "fast"]
        run([*command, *options], binaries.identity)
        server = PostgresServer(home, settings=primary.settings, bin_dir=primary.bin_dir, port=port or free_port())
        made.append(server)
        return server

    yield take
    for server in made:
        server.close()


def either(*servers: PostgresServer) -> str:
    """A dsn of the one among them that takes writes."""
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    return f"postgresql://cdc_replicator@{hosts}/postgres?target_session_attrs=read-write&connect_timeout=5"


def start_standby(standby: PostgresServer, primary: PostgresServer) -> None:
    """Start it, and wait until it has all that the primary has."""
    standby.start()
    wait_until_streamed(primary)


def wait_until_streamed(primary: PostgresServer) -> None:
    target = mark(primary.dsn())
    wait_until(lambda: streamed_lsn(primary) >= target, "the standby has it too")


def streamed_lsn(primary: PostgresServer) -> int:
    found = query(
        primary.dsn(), "SELECT replay_lsn::text FROM pg_stat_replication WHERE application_name <> 'waltier' "
        "AND state = 'streaming' AND replay_lsn IS NOT NULL ORDER BY replay_lsn DESC"
    )  # fmt: skip
    return parse_lsn(found[0][0]) if found else 0


def promote(standby: PostgresServer) -> str:
    """Its dsn, once it takes writes."""
    assert query(standby.dsn(), "SELECT pg_promote()") == [(True,)]
    return standby.dsn()


def detach(standby: PostgresServer) -> None:
    """It receives no more: what the primary commits from now on will be a lost tail."""
    query(standby.dsn(), "ALTER SYSTEM SET primary_conninfo = ''")
    query(standby.dsn(), "SELECT pg_reload_conf()")
    wait_until(
        lambda: query(standby.dsn(), "SELECT count(*) FROM pg_stat_wal_receiver") == [(0,)], "nothing is received"
    )


def is_synchronised(primary: PostgresServer, standby: PostgresServer) -> bool:
    """Whether the slot would outlive the primary; a slot that does not move is never taken over for good."""
    mark(primary.dsn())
    query(primary.dsn(), "SELECT pg_log_standby_snapshot()")
    slots = "SELECT failover AND synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = 'cdc'"
    return query(standby.dsn(), slots) == [(True,)]


def test_a_primary_killed_under_a_streaming_standby_and_a_tail_that_it_took_along(
    make_postgres: MakePostgres, back_up: Backup, archive_dir: str, redis_url: str, make_service: MakeService
) -> None:
    primary = make_postgres()
    install(primary.dsn())
    write_turn(primary.dsn(), "s1", "before")
    write_turn(primary.dsn(), "s1", "deleted inside")
    standby = back_up(primary, "-R", "-C", "-S", "standby")
    start_standby(standby, primary)
    dsn = either(primary, standby)
    service = make_service("", archive_dir, redis_url, dsn=dsn, archive={"on_gap": "resnapshot"}).start()
    service.wait_until_caught_up(primary.dsn())
    wait_until_streamed(primary)
    detach(standby)
    write_turn(primary.dsn(), "s1", "lost")
    service.wait_until_caught_up(primary.dsn())
    assert turns_cached(redis_url, "s1") == ["before", "deleted inside", "lost"]
    primary.kill()
    admin = promote(standby)
    ((deleted,),) = query(admin, "DELETE FROM turns WHERE content = 'deleted inside' RETURNING id")
    service.wait_for_event("gap_closed")
    assert service.events("fork_recorded")[-1]["lost_tail_bytes"] > 0
    write_turn(admin, "s1", "after")
    service.wait_until_caught_up(admin)
    wait_until(lambda: turns_cached(redis_url, "s1") == ["before", "after"], "the cache is of the new timeline")
    assert service.stop() == 0
    assert_replay_gives_the_tables(admin, archive_dir, breaks=2)
    # The lost turn was never in the history that goes on, so it was not deleted inside the gap either.
    assert_inside_the_gap(service, archive_dir, "public.turns", [deleted], deleted=1, inserted=0, changed=0)
    report = facts(service, "archive", "verify")
    assert (report["exit"], report["findings"], len(report["forks"])) == (0, [], 1)


@pytest.fixture
def synchronised(make_postgres: MakePostgres, back_up: Backup) -> tuple[PostgresServer, PostgresServer]:
    """A primary, and a standby that keeps up with it and with its failover slots."""
    primary = make_postgres()
    needs_postgres(primary.dsn(), 17)
    install(primary.dsn())
    query(primary.dsn(), "SELECT pg_create_physical_replication_slot('standby', true)")
    standby = back_up(primary, "-S", "standby")
    (standby.data_dir / "standby.signal").touch()
    standby.settings |= {
        "primary_conninfo": f"host=127.0.0.1 port={primary.port} user=postgres dbname=postgres",
        "primary_slot_name": "standby",
        "hot_standby_feedback": "on",
        "sync_replication_slots": "on",
    }
    start_standby(standby, primary)
    return primary, standby


def test_a_failover_slot_goes_on_without_a_gap(
    synchronised: tuple[PostgresServer, PostgresServer], archive_dir: str, redis_url: str, make_service: MakeService
) -> None:
    primary, standby = synchronised
    query(primary.dsn(), "ALTER SYSTEM SET synchronized_standby_slots = 'standby'")
    query(primary.dsn(), "SELECT pg_reload_conf()")
    service = make_service("", archive_dir, redis_url, dsn=either(primary, standby), postgres={"failover": True})
    service.start().wait_until_caught_up(primary.dsn())
    wait_until(lambda: is_synchronised(primary, standby), "the slot is synchronised", poll_s=0.5)
    write_event(primary.dsn(), "old 1", "old 2")
    service.wait_until_caught_up(primary.dsn())
    primary.kill()
    admin = promote(standby)
    query(admin, "ALTER SYSTEM SET synchronized_standby_slots = ''")
    query(admin, "SELECT pg_reload_conf()")
    write_event(admin, "new")
    service.wait_until_caught_up(admin)
    assert facts(service, "archive", "verify", "--against", admin)["against"]["equal"]
    assert service.stop() == 0
    archive = assert_replay_gives_the_tables(admin, archive_dir, breaks=1)
    keys = [change.new["idempotency_key"] for tx in archive.transactions for change in tx.changes if change.new]
    assert keys == ["old 1", "old 2", "new"]
    report = facts(service, "archive", "verify")
    assert (report["findings"], len(report["forks"]), report["gaps"]) == ([], 1, [])


@pytest.mark.wide
def test_a_service_that_slept_with_the_slot_in_hand_takes_a_failover_for_no_gap(
    synchronised: tuple[PostgresServer, PostgresServer], s3: S3Server, make_service: MakeService
) -> None:
    """It had read where the slot stood, and wakes to an archive that a fork has taken back behind that."""
    primary, standby = synchronised
    first, second = (
        on_bucket(make_service, s3, name, either(primary, standby), postgres={"failover": True})
        for name in ("first", "second")
    )
    first.start().wait_until_caught_up(primary.dsn())
    wait_until(lambda: is_synchronised(primary, standby), "the slot is synchronised", poll_s=0.5)
    detach(standby)
    write_turn(primary.dsn(), "s1", "lost " * 50_000)
    first.wait_until_caught_up(primary.dsn())
    assert first.stop() == 0
    lost_lsn = confirmed_flush_lsn(primary.dsn())

    s3.delay(before_s=0.5, methods="GET HEAD", key_contains="/log/")
    second.start()
    wait_until(lambda: query(primary.dsn(), SLOT_IN_HAND) == [(True,)], "the second service has the slot")
    second.pause()
    s3.heal()
    primary.kill()
    admin = promote(standby)
    write_turn(admin, "s1", "after")
    first.start().wait_for_event("fork_recorded")
    assert first.stop() == 0  # and with it goes the lock under which it recorded the fork
    first.start().wait_until_caught_up(admin)
    assert confirmed_flush_lsn(admin) < lost_lsn
    second.resume()
    assert_stands_by(second)
    report = facts(first, "archive", "verify")
    assert (report["findings"], len(report["forks"]), report["gaps"]) == ([], 1, [])


SLOT_IN_HAND = "SELECT active_pid IS NOT NULL FROM pg_replication_slots WHERE slot_name = 'cdc'"


@pytest.mark.wide
def test_where_a_fork_cut_a_lost_tail_off_no_commit_is_waited_for(
    synchronised: tuple[PostgresServer, PostgresServer], archive_dir: str, make_service: MakeService
) -> None:
    """The archive ends at the switch point then. A slot that a crash takes back to before it has no commit to send."""
    primary, standby = synchronised
    service = make_service(
        "",
        archive_dir,
        dsn=either(primary, standby),
        postgres={"failover": True},
        archive={"coverage_interval_s": 1},
        monitor={"barrier_interval_s": 0},
    ).start()
    service.wait_until_archived(primary.dsn())
    wait_until(lambda: is_synchronised(primary, standby), "the slot is synchronised", poll_s=0.5)
    detach(standby)
    write_event(primary.dsn(), "lost")
    service.wait_until_archived(primary.dsn())
    primary.kill()
    saved_slot = slot_file(standby).read_bytes()
    admin = promote(standby)
    switch_lsn = parse_lsn(service.wait_for_event("fork_recorded")["switch_lsn"])
    query(admin, "CREATE TABLE unpublished AS SELECT generate_series(1, 1000) n")
    wait_until(lambda: confirmed_flush_lsn(admin) > switch_lsn, "idle WAL behind the fork is covered")
    standby.kill()
    # A checkpoint follows the promotion, and saves the slots. On a busy machine it may come this late.
    slot_file(standby).write_bytes(saved_slot)
    standby.start()
    write_event(admin, "after")
    service.archive_and_stop(admin)
    assert parse_lsn(service.events("streaming")[-1]["confirmed"]) <= switch_lsn
    report = facts(service, "archive", "verify")
    assert (report["findings"], len(report["forks"]), report["gaps"]) == ([], 1, [])


def slot_file(server: PostgresServer) -> Path:
    """Where a server saves how far the slot is: what a crash takes it back to."""
    return server.data_dir / "pg_replslot" / "cdc" / "state"


def on_bucket(make_service: MakeService, s3: S3Server, name: str, dsn: str, **options: object) -> Service:
    archive = {"endpoint_url": s3.endpoint_url, "on_gap": "resnapshot"}
    return make_service(
        "", "s3://archive/asleep", name=name, dsn=dsn, archive=archive, environment=s3.environment, **options
    )


def assert_stands_by(service: Service) -> None:
    """It started anew, and found the slot in another's hands."""
    service.wait_for_event("standing_by", more_than=len(service.events("standing_by")))
    assert {event["kind"] for event in service.events("interrupted")} == {"Unavailable"}
    assert service.stop() == 0


def test_a_service_that_slept_through_a_failover_while_it_started_starts_anew(
    make_postgres: MakePostgres, s3: S3Server, make_service: MakeService
) -> None:
    """It had looked at the server, and wakes to an archive of the timeline after."""
    server = make_postgres()
    install(server.dsn())
    first, second = (on_bucket(make_service, s3, name, as_replicator(server.dsn())) for name in ("first", "second"))
    first.start().wait_until_archived(server.dsn())
    s3.forget()
    s3.delay(before_s=0.5, key_contains="/probe/")
    second.start()
    wait_until(lambda: bool(s3.seen("PUT", "/probe/")), "the second service has looked at the server")
    second.pause()
    s3.heal()
    server.stop()
    (server.data_dir / "standby.signal").touch()
    server.start()
    promote(server)
    first.wait_for_event("fork_recorded")
    first.wait_until_archived(server.dsn())
    second.resume()
    assert_stands_by(second)
    report = facts(first, "archive", "verify")
    assert (report["findings"], len(report["forks"]), report["gaps"]) == ([], 1, [])


@pytest.mark.wide
def test_a_primary_that_lives_on_beside_the_promoted_one_archives_nothing_more(
    make_postgres: MakePostgres, back_up: Backup, s3: S3Server, make_service: MakeService
) -> None:
    """The network parts two sites, each with its service; of what the old one commits then nothing may be mixed in."""
    old = make_postgres()
    install(old.dsn())
    standby = back_up(old, "-R", "-C", "-S", "standby")
    start_standby(standby, old)
    left = on_bucket(make_service, s3, "left", as_replicator(old.dsn())).start()
    left.wait_until_archived(old.dsn())
    wait_until_streamed(old)
    detach(standby)
    new = promote(standby)
    right = on_bucket(make_service, s3, "right", as_replicator(new)).start()
    right.wait_for_event("gap_closed")
    write_event(new, "of the new history")
    right.wait_until_archived(new)
    write_event(old.dsn(), "of the old history")
    assert left.wait() == FENCED
    for _ in range(2):  # as a supervisor does, and as a person might insist
        assert left.run_to_end() == PERSON, left.log_tail()
        assert "has left behind" in left.failure()["reason"]
        assert "postgres.dsn" in left.failure()["hint"]
    write_event(new, "and more of it")
    right.wait_until_archived(new)
    report = facts(right, "archive", "verify", "--against", new)
    assert report["against"]["equal"]
    assert (report["findings"], len(report["forks"]), len(report["gaps"])) == ([], 1, 1)
    assert right.stop() == 0
    told = [change.new for one in read_archive(s3.objects()).transactions for change in one.changes if change.new]
    assert [row["idempotency_key"] for row in told] == ["of the new history", "and more of it"]


@pytest.mark.wide
def test_a_recovery_to_a_point_in_time_is_a_fork_and_its_missing_slot_a_gap(
    make_postgres: MakePostgres, back_up: Backup, archive_dir: str, make_service: MakeService, server_dir: Path
) -> None:
    shelf = server_dir / "wal"
    shelf.mkdir()
    shelf.chmod(0o777)
    primary = make_postgres(settings={"archive_mode": "on", "archive_command": f"cp %p {shelf}/%f"})
    dsn = primary.dsn()
    install(dsn)
    write_event(dsn, "before the backup")
    service = make_service(dsn, archive_dir).start()
    service.wait_until_archived(dsn)
    backup = back_up(primary, port=primary.port)
    write_event(dsn, "before the point")
    query(dsn, "SELECT pg_create_restore_point('here')")
    write_event(dsn, "undone 1", "undone 2")
    query(dsn, "DELETE FROM outbox WHERE idempotency_key = 'before the point'")
    service.archive_and_stop(dsn)
    query(dsn, "SELECT pg_switch_wal()")
    primary.stop()  # and its last WAL is archived

    (backup.data_dir / "recovery.signal").touch()
    backup.settings |= {
        "archive_mode": "off",
        "restore_command": f"cp {shelf}/%f %p",
        "recovery_target_name": "here",
        "recovery_target_action": "promote",
    }
    backup.start()
    wait_until(lambda: query(dsn, "SELECT pg_is_in_recovery()") == [(False,)], "recovered")
    write_event(dsn, "on the new timeline")
    assert service.run_to_end() == PERSON, service.log_tail()
    assert service.events("fork_recorded")[-1]["lost_tail_bytes"] > 0
    status = facts(service, "status")
    assert (status["exit"], status["verdict"]) == (PERSON, "a person must decide")
    assert "gone" in status["archive"]["open_gap"]["reason"]
    assert repair(service) == 0
    write_event(dsn, "after the repair")
    service.start().archive_and_stop(dsn)
    assert_replay_gives_the_tables(dsn, archive_dir, breaks=2)
    assert_inside_the_gap(service, archive_dir, "public.outbox", [], deleted=0, inserted=1, changed=0)
    report = facts(service, "archive", "verify")
    assert (report["exit"], report["findings"], len(report["forks"]), len(report["gaps"])) == (0, [], 1, 1)
    # The old timeline's history is still there: nothing of the archive was rewritten.
    told = read_archive(read_directory(archive_dir)).transactions
    keys = {change.new["idempotency_key"] for one in told for change in one.changes if change.new}
    assert {"undone 1", "undone 2"} <= keys


@pytest.mark.wide
def test_another_cluster_behind_the_same_dsn_is_refused_and_nothing_is_written(
    make_postgres: MakePostgres, archive_dir: str, make_service: MakeService
) -> None:
    first = make_postgres()
    install(first.dsn())
    service = make_service(first.dsn(), archive_dir, archive={"on_gap": "resnapshot"}).start()
    service.archive_and_stop(first.dsn())
    recorded = read_directory(archive_dir)
    first.stop()
    second = make_postgres()
    second.stop()
    other = PostgresServer(second.data_dir, settings=second.settings, bin_dir=second.bin_dir, port=first.port)
    with other:
        install(other.dsn())
        write_event(other.dsn(), "another history")
        assert service.run_to_end() == PERSON, service.log_tail()
        assert "another cluster" in service.failure()["reason"]
        status = facts(service, "status")
        assert (status["exit"], status["verdict"]) == (PERSON, "a person must decide")
        assert repair(service) == PERSON
        assert read_directory(archive_dir) == recorded
        assert query(other.dsn(), "SELECT count(*) FROM pg_replication_slots") == [(0,)]
    first.start()
    service.start().archive_and_stop(first.dsn())
    shutil.rmtree(second.data_dir, ignore_errors=True)
