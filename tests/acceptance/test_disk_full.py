"""Postgres's disk is full, because the bucket was away for too long: what docs/runbook.md says then is done here."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cdc.embedded import PostgresServer
from cdc.errors import Unavailable
from tests.acceptance.conftest import MakeService
from tests.faults.checker import check
from tests.faults.objects import read_archive
from tests.faults.venue import can_mount
from tests.support.cdc_process import Service, install, query, wait_until
from tests.support.http import get
from tests.support.s3 import S3Server
from tests.support.servers import CHOSEN_POSTGRES_BIN, TEST_SETTINGS

pytestmark = [
    pytest.mark.wide,
    pytest.mark.skipif(not can_mount(), reason="a small file system needs root"),
]

DISK_MB, LARGER_DISK_MB = 256, 512
RATE_MB = 16  # a second: slow enough that the forecast comes first


@pytest.fixture
def disk(server_dir: Path) -> Iterator[Path]:
    """A small file system of its own."""
    path = server_dir / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=755", "none", str(path)], check=True)
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)
    path.rmdir()


@pytest.fixture
def postgres(disk: Path) -> Iterator[PostgresServer]:
    settings = {**TEST_SETTINGS, "max_wal_size": "64MB", "min_wal_size": "32MB"}
    with PostgresServer(disk / "data", settings=settings, bin_dir=CHOSEN_POSTGRES_BIN) as server:
        install(server.dsn())
        yield server


@pytest.fixture
def service(postgres: PostgresServer, redis_url: str, s3: S3Server, disk: Path, make_service: MakeService) -> Service:
    service = make_service(
        postgres.dsn(),
        "s3://archive/full",
        redis_url,
        archive={"endpoint_url": s3.endpoint_url},
        http={"listen": "127.0.0.1:0"},
        monitor={"interval_s": 0.2, "barrier_interval_s": 0, "disk_path": str(disk)},
        environment=s3.environment,
    ).start()
    service.wait_until_caught_up(postgres.dsn())
    return service


def test_the_disk_made_larger_and_the_bucket_back_nothing_is_lost(
    postgres: PostgresServer, service: Service, s3: S3Server, disk: Path, redis_url: str
) -> None:
    fill_the_disk(postgres, service, s3)
    enlarge(disk)
    postgres.start()
    s3.heal()
    service.wait_until_caught_up(postgres.dsn())
    wal_is_freed(postgres)
    verdict = check(postgres.dsn(), s3.objects(), redis_url, read_archive(s3.objects()).transactions)
    assert verdict.findings == [], str(verdict)
    service.command("archive", "verify", "--full", "--against", postgres.dsn())
    assert service.stop() == 0


def test_the_bucket_still_away_the_slot_is_given_up_and_repaired_afterwards(
    postgres: PostgresServer, service: Service, s3: S3Server, disk: Path
) -> None:
    fill_the_disk(postgres, service, s3)
    enlarge(disk)
    postgres.start()
    query(postgres.dsn(), "ALTER SYSTEM SET max_slot_wal_keep_size = '64MB'")
    query(postgres.dsn(), "SELECT pg_reload_conf()")
    wal_is_freed(postgres)
    s3.heal()
    assert service.wait() == 78
    service.command("repair")
    service.start()
    service.wait_until_caught_up(postgres.dsn())
    service.command("archive", "verify", "--full", "--against", postgres.dsn())
    assert service.stop() == 0


def fill_the_disk(postgres: PostgresServer, service: Service, s3: S3Server) -> None:
    """The bucket away, and WAL at a steady rate until Postgres has ended and cannot start; it was said before."""
    s3.fail(503, methods="PUT GET HEAD")
    said_before = False
    with contextlib.suppress(psycopg.OperationalError), psycopg.connect(postgres.dsn(), autocommit=True) as application:
        for _ in range(2 * DISK_MB):
            application.execute(
                "INSERT INTO turns (domain, channel, session_hash, role, content) VALUES ('d', 'c', 's', 'user', 'x')"
            )
            application.execute("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 1048576))")
            time.sleep(1 / RATE_MB)
            said_before = said_before or "fills the disk in" in get(service, "/readyz").body
    assert said_before
    wait_until(lambda: not postgres.running, "Postgres has ended")
    with pytest.raises(Unavailable):
        postgres.start()
    assert "No space left on device" in postgres.log_path.read_text()
    assert (get(service, "/livez").status, get(service, "/readyz").status) == (200, 503)


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", f"remount,size={LARGER_DISK_MB}m", str(disk)], check=True)


def wal_is_freed(postgres: PostgresServer) -> None:
    def freed() -> bool:
        query(postgres.dsn(), "CHECKPOINT")
        return bool(query(postgres.dsn(), "SELECT sum(size) < 128 * 1024 * 1024 FROM pg_ls_waldir()")[0][0])

    wait_until(freed, "the WAL is freed")
