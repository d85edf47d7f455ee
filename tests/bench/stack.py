"""The servers of the bench, and one database with everything that a run of the service needs.

A `Scene` is a database with sql/ installed, an archive directory, and a configuration. `begin()` runs the service once
so that slot, archive and cache begin at one position, and remembers that state: every later run starts from it again,
on the very same WAL.
"""

import asyncio
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from redis import Redis

from cdc.archive.format.header import Header
from cdc.archive.format.object_key import log_key
from cdc.archive.format.segment import decode_segment_header
from cdc.embedded import PostgresServer, ValkeyServer
from cdc.lsn import parse_lsn
from cdc.postgres import install
from tests.bench.contenders import drop_slot
from tests.bench.subject import CHECKOUT, Subject, wait_until

SLOT, START_SLOT, PUBLICATION = "cdc", "bench_start", "cdc"

# What production does, but that no vacuum and no checkpoint falls into one contender's time and not into another's.
_POSTGRES = {"autovacuum": "off", "max_wal_size": "16GB", "checkpoint_timeout": "1h", "shared_buffers": "256MB"}

_CONFIGURATION = """\
[postgres]
dsn = "{dsn}"

[archive]
url = "{archive}"

[cache]
url = "{redis}"
{projections}"""

# The defaults for turns, and a key for each row of the small table.
SMALL_PROJECTIONS = """
[[cache.projections]]
kind = "row"
table = "public.small"
key = "small:{id}"
"""


@dataclass(slots=True)
class Stack:
    directory: Path
    postgres: PostgresServer
    valkey: ValkeyServer


@contextmanager
def open_stack(directory: Path) -> Iterator[Stack]:
    """The servers, in a directory that an unprivileged Postgres can reach."""
    with (
        PostgresServer(directory / "postgres", settings=_POSTGRES) as postgres,
        ValkeyServer(directory / "valkey") as valkey,
    ):
        yield Stack(directory, postgres, valkey)


@dataclass(slots=True)
class Scene:
    """One database and its archive. `connection` is a superuser's, in autocommit."""

    stack: Stack
    name: str
    projections: str = ""
    root: Path | None = None
    connection: psycopg.Connection[Any] = field(init=False)
    cache: Redis = field(init=False)
    _meta: dict[Any, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        with psycopg.connect(self.stack.postgres.dsn(), autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {self.name}".encode())
        asyncio.run(install.apply(self.dsn))
        self.connection = psycopg.connect(self.dsn, autocommit=True)
        self.cache = Redis.from_url(self.stack.valkey.url)
        self.configuration.write_text(
            _CONFIGURATION.format(
                dsn=self.stack.postgres.dsn(user="cdc_replicator", database=self.name),
                archive=self.archive.as_uri(),
                redis=self.stack.valkey.url,
                projections=self.projections,
            )
        )

    @property
    def dsn(self) -> str:
        return self.stack.postgres.dsn(database=self.name)

    @property
    def archive(self) -> Path:
        return self.stack.directory / f"archive-{self.name}"

    @property
    def configuration(self) -> Path:
        return self.stack.directory / f"{self.name}.toml"

    @property
    def log(self) -> Path:
        return self.stack.directory / f"{self.name}.log"

    def start(self, root: Path | None = None, environment: Mapping[str, str] | None = None) -> Subject:
        """The service, interpreted from the checkout or from `root`."""
        return Subject(self.configuration, self.log, root or CHECKOUT, environment)

    def wait_streaming(self, subject: Subject) -> None:
        wait_until("the service streams", lambda: self._slot_active() and self.cache_lsn() > 0, subject)

    def _slot_active(self) -> bool:
        return bool(self.walsender_pid())

    def walsender_pid(self) -> int:
        """The process that reads the slot; 0 for none."""
        query = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s"
        row = self.connection.execute(query, [SLOT]).fetchone()
        return 0 if row is None or row[0] is None else int(row[0])

    def begin(self) -> None:
        """Slot, archive and cache begin here; the slot `START_SLOT` stays where they began."""
        self.cache.flushall()
        subject = self.start()
        try:
            self.wait_streaming(subject)
            subject.stop()
        finally:
            subject.kill()
        self.connection.execute("SELECT pg_copy_logical_replication_slot(%s::name, %s::name)", [SLOT, START_SLOT])
        drop_slot(self.connection, SLOT)
        shutil.copytree(self.archive, self._beginning)
        self._meta = self.cache.hgetall("cdc:meta")

    @property
    def _beginning(self) -> Path:
        return self.archive.with_name(self.archive.name + "-beginning")

    def rewind(self) -> None:
        """Everything as `begin` left it, but for the WAL, which has grown."""
        drop_slot(self.connection, SLOT)
        shutil.rmtree(self.archive)
        shutil.copytree(self._beginning, self.archive)
        self.cache.flushall()
        self.cache.hset("cdc:meta", mapping=self._meta)
        self.connection.execute("SELECT pg_copy_logical_replication_slot(%s::name, %s::name)", [START_SLOT, SLOT])

    def end(self) -> None:
        """Give back what the WAL and the memory hold for this scene."""
        for slot in (SLOT, START_SLOT):
            drop_slot(self.connection, slot)
        self.connection.close()
        self.cache.flushall()
        self.cache.close()
        for directory in (self.archive, self._beginning):
            shutil.rmtree(directory, ignore_errors=True)

    def cache_lsn(self) -> int:
        text = self.cache.hget("cdc:meta", "lsn")
        return parse_lsn(text.decode()) if isinstance(text, bytes) else 0

    def wal_position(self) -> int:
        row = self.connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        return parse_lsn(row[0]) if row else 0

    def segments(self) -> list[tuple[float, Header]]:
        """Every segment: the wall-clock second at which it got its name, and its header."""
        found: list[tuple[float, Header]] = []
        while (path := self.archive / log_key(len(found))).exists():
            found.append((path.stat().st_ctime, decode_segment_header(path.read_bytes())))
        return found

    def last_header(self, at_least: int = 0) -> tuple[int, Header]:
        """The number and header of the last segment, looked for from `at_least` on."""
        seq = at_least
        while (self.archive / log_key(seq + 1)).exists():
            seq += 1
        return seq, decode_segment_header((self.archive / log_key(seq)).read_bytes())
