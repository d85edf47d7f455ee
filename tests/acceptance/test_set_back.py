"""A server that is set back to an older image of its disk: the same cluster, the same timeline, another history.

That is what restoring a virtual machine's snapshot does. The slot is set back with the rest, so Postgres goes on as if
nothing had happened, and uses LSNs again that the archive has other commits for. They must not be taken for replays.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from cdc.embedded import PostgresServer
from tests.acceptance.conftest import MakeService
from tests.acceptance.test_exceptions import (
    PERSON,
    assert_replay_gives_the_tables,
    facts,
    turns_cached,
    write_event,
    write_turn,
)
from tests.conftest import MakePostgres
from tests.faults.objects import read_archive, read_directory
from tests.support.cdc_process import Service, confirmed_flush_lsn, install, query, wait_until


class Machine:
    """A server with an image of its disk, taken while it was down."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.dsn = server.dsn()
        self._image = server.data_dir.with_name("image")

    def take_image(self) -> None:
        self.server.stop()
        shutil.copytree(self.server.data_dir, self._image, copy_function=_copy)
        self.server.start()

    def set_back(self) -> None:
        self.server.stop()
        shutil.rmtree(self.server.data_dir)
        self._image.rename(self.server.data_dir)
        self.server.start()


def _copy(source: str, target: str) -> None:
    shutil.copy2(source, target)
    owner = Path(source).stat()
    shutil.chown(target, owner.st_uid, owner.st_gid)


@pytest.fixture
def machine(make_postgres: MakePostgres) -> Machine:
    server = make_postgres()
    install(server.dsn())
    return Machine(server)


def write_nothing(dsn: str) -> None:
    """The WAL ends before the archive does."""


def write_more(dsn: str) -> None:
    """The WAL has grown past the archive's end, with commits that the archive lacks."""
    write_event(dsn, *(f"after {uuid4()}" for _ in range(300)))


def write_elsewhere(dsn: str) -> None:
    """The WAL has grown past the archive's end, and nothing of it is published."""
    query(dsn, "CREATE TABLE elsewhere AS SELECT generate_series(1, 5000) n")


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(write_nothing, marks=pytest.mark.wide),
        write_more,
        pytest.param(write_elsewhere, marks=pytest.mark.wide),
    ],
)
def test_a_server_that_was_set_back_is_noticed_and_nothing_of_it_is_taken_for_a_replay(
    machine: Machine, archive_dir: str, redis_url: str, make_service: MakeService, write: Callable[[str], None]
) -> None:
    repairs = {"on_gap": "resnapshot"}
    service = make_service(machine.dsn, archive_dir, redis_url, archive=repairs)
    run_beyond_the_image(machine, service)
    write_event(machine.dsn, *(f"undone {n}" for n in range(50)))
    write_turn(machine.dsn, "s1", "undone")
    service.wait_until_caught_up(machine.dsn)
    assert turns_cached(redis_url, "s1") == ["before the image", "undone"]
    assert service.stop() == 0
    told = read_archive(read_directory(archive_dir)).transactions
    machine.set_back()
    confirmed_lsn = confirmed_flush_lsn(machine.dsn)

    for make_it_worse in (write, write_more):  # started again, it has not come to believe it
        make_it_worse(machine.dsn)
        assert service.run_to_end() == PERSON, service.log_tail()
        assert "set back" in service.failure()["reason"]
        assert "cdc teardown --cache --yes" in service.failure()["hint"]
    assert confirmed_flush_lsn(machine.dsn) == confirmed_lsn
    assert read_archive(read_directory(archive_dir)).transactions == told
    assert facts(service, "archive", "verify")["findings"] == []

    # What the hint says: the old archive stays as it is, and another one begins with the rows that are there now.
    assert service.command("teardown", "--cache", "--yes").returncode == 0
    another = make_service(machine.dsn, f"{archive_dir}-2", redis_url, name="another", archive=repairs).start()
    write_turn(machine.dsn, "s1", "in another archive")
    another.wait_until_caught_up(machine.dsn)
    assert turns_cached(redis_url, "s1") == ["before the image", "in another archive"]
    assert another.stop() == 0
    assert_replay_gives_the_tables(machine.dsn, f"{archive_dir}-2", breaks=0)


def run_beyond_the_image(machine: Machine, service: Service) -> None:
    """The image has commits that are archived, and some that will be: both histories share them."""
    service.start().wait_until_archived(machine.dsn)
    write_turn(machine.dsn, "s1", "before the image")
    service.archive_and_stop(machine.dsn)
    write_event(machine.dsn, "in the image", "and not archived yet")
    machine.take_image()
    service.start().wait_for_event("streaming", more_than=len(service.events("streaming")))
    service.wait_until_archived(machine.dsn)


@pytest.mark.wide
def test_an_image_of_after_the_last_commit_is_no_harm(
    machine: Machine, archive_dir: str, make_service: MakeService
) -> None:
    """Nothing was committed since: both histories are one, and what comes again is what the archive has."""
    service = make_service(machine.dsn, archive_dir, monitor={"barrier_interval_s": 0})
    service.start().archive_and_stop(machine.dsn)
    write_event(machine.dsn, "in the image, and not archived yet")
    machine.take_image()
    service.start()
    wait_until(lambda: len(rows_archived(archive_dir)) == 1, "what is in the image is archived")
    assert service.stop() == 0
    machine.set_back()
    write_event(machine.dsn, "after the image")
    service.start()
    wait_until(lambda: len(rows_archived(archive_dir)) == 2, "the history goes on")
    assert service.events("replay_skipped")
    assert service.stop() == 0
    assert_replay_gives_the_tables(machine.dsn, archive_dir, breaks=0)


@pytest.mark.wide
def test_an_image_of_before_the_slot_is_no_gap_while_its_wal_is_behind(
    machine: Machine, archive_dir: str, make_service: MakeService
) -> None:
    """A snapshot at an LSN that the archive has long covered would put new commits among the old ones."""
    machine.take_image()
    service = make_service(machine.dsn, archive_dir, archive={"on_gap": "resnapshot"}).start()
    write_more(machine.dsn)
    service.archive_and_stop(machine.dsn)
    archived = read_directory(archive_dir)
    machine.set_back()
    assert service.run_to_end() == PERSON, service.log_tail()
    assert "set back" in service.failure()["reason"]
    assert read_directory(archive_dir) == archived
    status = facts(service, "status")
    assert status["exit"] == PERSON
    assert "set back" in json.dumps(status)


def rows_archived(archive_dir: str) -> list[object]:
    told = read_archive(read_directory(archive_dir)).transactions
    return [change.new["idempotency_key"] for one in told for change in one.changes if change.new]
