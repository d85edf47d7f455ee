"""Killed or stopped before the first change flows: while the bucket takes a snapshot's chunks, a gap, or a record."""

import json
import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.acceptance.conftest import MakeService
from tests.acceptance.test_exceptions import TABLES, drop, write_event, write_turn
from tests.faults.checker import Verdict, check_replay, read_table
from tests.faults.objects import log_objects, read_archive
from tests.support.cdc_process import COMMAND, PATIENCE_S, Service, wait_until
from tests.support.s3 import S3Server


@pytest.fixture
def service(installed: str, s3: S3Server, make_service: MakeService) -> Service:
    """On a bucket, with rows of two tables to archive; repairs alone. Not started yet."""
    write_event(installed, "deleted", "stays")
    write_turn(installed, "s1", "stays")
    archive = {"endpoint_url": s3.endpoint_url, "on_gap": "resnapshot"}
    return make_service(installed, "s3://archive/interrupted", archive=archive, environment=s3.environment)


def lose_the_slot(service: Service, dsn: str) -> None:
    """After an archive has begun."""
    service.start().archive_and_stop(dsn)
    write_event(dsn, "lost")
    drop(dsn)


def go_on_to_the_end(service: Service, dsn: str) -> None:
    """A new slot confirms where it begins, before its snapshot is archived: so wait until changes flow."""
    streams = len(service.events("streaming"))
    service.start().wait_for_event("streaming", more_than=streams)
    service.archive_and_stop(dsn)


def segments(s3: S3Server) -> dict[int, bytes]:
    return log_objects(s3.objects())


def assert_whole(service: Service, s3: S3Server, dsn: str, *, breaks: int) -> dict[str, Any]:
    """The archive is sound, and the last snapshot with what follows is the tables; what verify reports."""
    archive = read_archive(s3.objects())
    assert archive.faults == archive.breaks
    assert len(archive.breaks) == breaks
    verdict = Verdict()
    check_replay(archive, {name: read_table(dsn, name) for name in TABLES}, verdict)
    assert not verdict.findings, str(verdict)
    report: dict[str, Any] = json.loads(service.command("archive", "verify", "--json").stdout)
    assert report["findings"] == []
    return report


def in_the_backfill(service: Service, s3: S3Server, dsn: str) -> int:
    return 0


def in_the_repair(service: Service, s3: S3Server, dsn: str) -> int:
    lose_the_slot(service, dsn)
    return 1


@pytest.mark.parametrize("where", [pytest.param(in_the_backfill, marks=pytest.mark.wide), in_the_repair])
def test_killed_between_the_chunks_of_a_snapshot_it_starts_over(
    installed: str, s3: S3Server, service: Service, where: Callable[[Service, S3Server, str], int]
) -> None:
    breaks = where(service, s3, installed)
    chunks = len([key for key in s3.objects() if "base/" in key])
    s3.fail(503, times=None, key_contains="/public.turns/")  # outbox, whose name comes first, gets through
    service.start()
    wait_until(lambda: bool(s3.seen("PUT", "/public.turns/", 503)), "the second table's chunk is refused")
    service.kill()
    assert len([key for key in s3.objects() if "base/" in key]) == chunks + 1
    s3.heal()
    go_on_to_the_end(service, installed)
    report = assert_whole(service, s3, installed, breaks=breaks)
    assert report["uncommitted_chunks"] == 1


@pytest.mark.parametrize("where", [in_the_backfill, pytest.param(in_the_repair, marks=pytest.mark.wide)])
@pytest.mark.parametrize("what", [pytest.param("/public.turns/", marks=pytest.mark.wide), "the record"])
def test_sigterm_ends_a_snapshot_that_waits_for_the_bucket(
    installed: str, s3: S3Server, service: Service, where: Callable[[Service, S3Server, str], int], what: str
) -> None:
    breaks = where(service, s3, installed)
    # Before its snapshot's record a new archive has a fence; one with a gap two fences and the gap.
    key = what if what != "the record" else f"log/{max(segments(s3), default=-1) + (2 if not breaks else 4):016d}"
    s3.fail(503, times=None, key_contains=key)
    service.start()
    wait_until(lambda: bool(s3.seen("PUT", key, 503)), f"{key} is refused")
    assert_ends_while_the_bucket_is_away(service)
    s3.heal()
    go_on_to_the_end(service, installed)
    assert_whole(service, s3, installed, breaks=breaks)


@pytest.mark.wide
def test_sigterm_ends_a_service_that_cannot_write_its_gap_down(installed: str, s3: S3Server, service: Service) -> None:
    lose_the_slot(service, installed)
    gap = f"log/{max(segments(s3)) + 2:016d}"  # behind its fence
    s3.fail(503, times=None, key_contains=gap)
    service.start()
    wait_until(lambda: bool(s3.seen("PUT", gap, 503)), "the gap is refused")
    assert_ends_while_the_bucket_is_away(service)
    s3.heal()
    go_on_to_the_end(service, installed)
    assert_whole(service, s3, installed, breaks=1)


def assert_ends_while_the_bucket_is_away(service: Service) -> None:
    """The bucket stays away until the test heals it, so any end is one that did not wait for it."""
    assert service.stop() == 0, service.log_tail()


def test_a_repair_that_is_stopped_before_its_end_says_so(installed: str, s3: S3Server, service: Service) -> None:
    lose_the_slot(service, installed)
    s3.fail(503, times=None, key_contains="/public.turns/")
    command = [*COMMAND, "repair", "--config", str(service.config_file)]
    repair = subprocess.Popen(command, env={**os.environ, **s3.environment}, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: bool(s3.seen("PUT", "/public.turns/", 503)), "the chunk is refused")
        repair.terminate()
        _, said = repair.communicate(timeout=PATIENCE_S)
    finally:
        repair.kill()
        repair.wait()
    assert repair.returncode == 1
    assert b"stopped before the gap was closed" in said
