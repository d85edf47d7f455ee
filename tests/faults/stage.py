"""The processes of a round: Postgres, Redis with a replica, a bucket, services; and the wires between them.

Services reach Postgres and Redis through proxies, whose ports never change; the harness itself reaches them directly.
A bucket is the R2-like server of tests/s3, or a directory on a small file system of its own. After a failover of
Redis `cache_url` is another one.
"""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
import redis
from psycopg import conninfo

from cdc.embedded import PostgresServer, ValkeyServer
from tests.faults.crew import Crew
from tests.faults.objects import directory_tail, log_objects, read_directory
from tests.faults.trouble import Findings
from tests.faults.venue import Venue
from tests.faults.watch import CacheWatch
from tests.support.cdc_process import PROGRAM, Service, install
from tests.support.clock import shifted_environment
from tests.support.proxy import Proxy
from tests.support.s3 import S3Server
from tests.support.servers import TEST_SETTINGS

ROOT = Path(__file__).parents[2]

# So that a suspended service loses its slot while a fault lasts.
WAL_SENDER_TIMEOUT_S = 3
_DISK = "96m"
_POSTGRES = {**TEST_SETTINGS, "wal_sender_timeout": f"{WAL_SENDER_TIMEOUT_S}s", "deadlock_timeout": "200ms"}


class Stage:
    """Start with `with`; everything ends with it. `directory` keeps logs and data."""

    def __init__(self, directory: Path, venue: Venue, *, program: str = PROGRAM) -> None:
        self.directory = directory
        self.venue = venue
        self.findings = Findings()
        self.rewritten = False
        self.promoted = False
        self._program = program
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._open(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def _open(self, stack: ExitStack) -> None:
        self.postgres = stack.enter_context(
            PostgresServer(self.directory / "pg", settings=_POSTGRES, bin_dir=self.venue.postgres_bin)
        )
        self.dsn = self.postgres.dsn()
        install(self.dsn)
        program = self.venue.redis_program
        self.redis = stack.enter_context(ValkeyServer(self.directory / "redis-a", program=program))
        self.replica = stack.enter_context(ValkeyServer(self.directory / "redis-b", program=program))
        self.postgres_wire = stack.enter_context(Proxy(self.postgres.port))
        self.redis_wire = stack.enter_context(Proxy(self.redis.port))
        self.s3 = stack.enter_context(S3Server())
        self.cache_watch = CacheWatch(lambda: self.cache_url, self.dsn, self.findings)
        self.disk = self.directory / "disk"
        self.clock_file = self.directory / "clock"
        self.clock_file.write_text("+0")
        if self.venue.on_disk:
            self.disk.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "none", str(self.disk)], check=True)
            stack.callback(subprocess.run, ["umount", "--lazy", str(self.disk)], check=False)
        self.crew = stack.enter_context(Crew(self._make_service, self.findings))

    def _make_service(self, name: str) -> Service:
        return Service(
            self.directory / "services",
            dsn=conninfo.make_conninfo(self.dsn, user="cdc_replicator", port=self.postgres_wire.port),
            archive_url=f"file://{self.disk}/archive" if self.venue.on_disk else "s3://archive/faults",
            cache_url=f"redis://127.0.0.1:{self.redis_wire.port}/0",
            environment=self._environment(),
            name=name,
            postgres={"silence_s": 3},
            archive={**self.venue.archive, "endpoint_url": self.s3.endpoint_url},
            cache=self.venue.cache,
            program=self._program,
        )

    def _environment(self) -> Mapping[str, str]:
        environment = self.s3.environment | {"PYTHONPATH": str(ROOT)}
        if not self.venue.clock:
            return environment
        return environment | shifted_environment(self.clock_file)

    # What it holds.

    @property
    def cache_url(self) -> str:
        return self.redis.url

    def objects(self) -> dict[str, bytes]:
        return read_directory(f"file://{self.disk}/archive") if self.venue.on_disk else self.s3.objects()

    def tail(self) -> bytes | None:
        """The archive's last segment."""
        if self.venue.on_disk:
            return directory_tail(f"file://{self.disk}/archive")
        log = log_objects(self.s3.objects())
        return log[max(log)] if log else None

    def keep_objects(self) -> None:
        """As evidence, where logs and data are."""
        for key, body in self.objects().items():
            path = self.directory / "objects" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)

    # What faults and others do with it.

    def query(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """One statement as the superuser, on a connection of its own."""
        with psycopg.connect(self.dsn, autocommit=True, connect_timeout=5) as connection:
            connection.execute("SET lock_timeout = '2s'")
            found = connection.execute(statement.encode(), parameters or None)
            return found.fetchall() if found.description else []

    @contextmanager
    def redis_client(self) -> Iterator[redis.Redis]:
        with redis.Redis.from_url(self.cache_url, socket_timeout=10) as client:
            yield client

    def swap_redis(self) -> None:
        """The replica is the primary from now on."""
        self.redis, self.replica = self.replica, self.redis
        self.redis_wire.target_port = self.redis.port
        self.redis_wire.cut()

    def heal(self) -> None:
        """Whatever faults may have left behind."""
        self.s3.heal()
        for wire in (self.postgres_wire, self.redis_wire):
            wire.latency_s = wire.byte_s = 0.0
            wire.thaw()
        (self.disk / "ballast").unlink(missing_ok=True)
        self.postgres.start()
        self.redis.start()
