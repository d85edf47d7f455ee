"""Fixtures of servers. `--services` says where they come from; see tests/support/servers.py."""

import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import hypothesis
import pytest
import structlog

from cdc.config import ArchiveSettings
from cdc.embedded import PostgresServer, ValkeyServer
from tests.support.servers import (
    CHOSEN_POSTGRES_BIN,
    COMPOSE_FILE,
    COMPOSE_S3_CREDENTIALS,
    DEBIAN_POSTGRES_BIN,
    DEBIAN_REDIS,
    TEST_SETTINGS,
    PostgresAddress,
    RedisAddress,
    RemotePostgres,
    RemoteRedis,
    address_from_environment,
    answers_http,
    answers_ping,
    check_docker,
    compose_command,
    flushed_redis,
    fresh_database,
    s3_archive,
    wait_until_answering,
)


class MakePostgres(Protocol):
    """Starts an embedded Postgres of the test's own, with fsync off, and ends it after the test."""

    def __call__(
        self, *, settings: Mapping[str, str] | None = None, bin_dir: Path | None = None, encoding: str = "UTF8"
    ) -> PostgresServer: ...


MakeValkey = Callable[..., ValkeyServer]

# An example that took long says something of the machine, and nothing of the code.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--services",
        choices=("local", "docker", "external"),
        default="local",
        help="where the servers come from: embedded, deploy/compose.yaml, or CDC_TEST_* in the environment",
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("--services") == "docker":
        check_docker()
    # A shell's background job begins with SIGINT ignored, and so would every command that a test wants to interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command that a test calls sends the process's log lines to its own stderr, which is closed after the test."""
    handlers, level, excepthook = logging.root.handlers[:], logging.root.level, sys.excepthook
    yield
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    sys.excepthook = excepthook


@pytest.fixture(scope="session")
def services(request: pytest.FixtureRequest) -> str:
    """`local`, `docker` or `external`."""
    return str(request.config.getoption("--services"))


@pytest.fixture(scope="session")
def worker_number(request: pytest.FixtureRequest) -> int:
    """0 for the first worker of pytest-xdist, or without it."""
    worker: dict[str, str] = getattr(request.config, "workerinput", {})
    return int(worker.get("workerid", "gw0").removeprefix("gw"))


@pytest.fixture(scope="session")
def server_dir() -> Iterator[Path]:
    """A directory for servers' data: a short path, which an unprivileged server can reach too."""
    made = Path(tempfile.mkdtemp(prefix="waltier-tests-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session")
def docker_compose_file() -> str:
    return str(COMPOSE_FILE)


@pytest.fixture(scope="session")
def docker_compose_command() -> str:
    return compose_command()


@pytest.fixture(scope="session")
def docker_setup() -> list[str]:
    return ["up --detach postgres redis s3"]


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest, services: str, server_dir: Path) -> Iterator[PostgresAddress]:
    """The Postgres of this session. Share it: make databases on it, and leave its settings and its life alone."""
    if services == "local":
        with PostgresServer(server_dir / "postgres", settings=TEST_SETTINGS, bin_dir=CHOSEN_POSTGRES_BIN) as server:
            yield server
        return
    if services == "docker":
        docker = request.getfixturevalue("docker_services")
        remote = RemotePostgres(f"postgresql://postgres@127.0.0.1:{docker.port_for('postgres', 5432)}/postgres")
    else:
        remote = RemotePostgres(address_from_environment("CDC_TEST_POSTGRES_DSN"))
    wait_until_answering(remote)
    yield remote


@pytest.fixture(scope="session")
def valkey_server(request: pytest.FixtureRequest, services: str, server_dir: Path) -> Iterator[RedisAddress]:
    """The Redis of this session. Share it: flush your own database, and leave its settings and its life alone."""
    if services == "local":
        with ValkeyServer(server_dir / "valkey") as server:
            yield server
    elif services == "docker":
        docker = request.getfixturevalue("docker_services")
        url = f"redis://127.0.0.1:{docker.port_for('redis', 6379)}/0"
        docker.wait_until_responsive(lambda: answers_ping(url), timeout=120, pause=0.2)
        yield RemoteRedis(url)
    else:
        yield RemoteRedis(address_from_environment("CDC_TEST_REDIS_URL"))


@pytest.fixture
def database(postgres_server: PostgresAddress) -> Iterator[str]:
    """A superuser's dsn of a fresh database, dropped afterwards with its slots."""
    with fresh_database(postgres_server) as dsn:
        yield dsn


@pytest.fixture
def redis_url(valkey_server: RedisAddress, services: str, worker_number: int) -> str:
    """An empty Redis database. Locally each worker has a server of its own."""
    return flushed_redis(valkey_server, 0 if services == "local" else worker_number)


@pytest.fixture
def archive_dir(tmp_path: Path) -> str:
    """A `file://` archive that does not exist yet."""
    return (tmp_path / "archive").as_uri()


@pytest.fixture
def archive_settings(
    request: pytest.FixtureRequest, services: str, archive_dir: str, monkeypatch: pytest.MonkeyPatch
) -> ArchiveSettings:
    """An archive of this test's own where `--services` says: a directory, the compose file's S3, or a real bucket."""
    if services == "local":
        return ArchiveSettings(url=archive_dir)
    if services == "docker":
        docker = request.getfixturevalue("docker_services")
        for name, value in COMPOSE_S3_CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        port = docker.port_for("s3", 9000)
        docker.wait_until_responsive(lambda: answers_http(port), timeout=120, pause=0.2)
        return s3_archive("s3://archive", f"http://127.0.0.1:{port}")
    return s3_archive(address_from_environment("CDC_TEST_S3_URL"), os.environ.get("CDC_TEST_S3_ENDPOINT"))


@pytest.fixture(scope="session")
def debian_postgres(server_dir: Path) -> Iterator[PostgresServer]:
    """Debian's Postgres, the one with OpenSSL. Mark the tests that need it `wide`."""
    settings = {**TEST_SETTINGS, "ssl": "off"}
    with PostgresServer(server_dir / "debian", settings=settings, bin_dir=DEBIAN_POSTGRES_BIN) as server:
        yield server


@pytest.fixture(scope="session")
def debian_redis(server_dir: Path) -> Iterator[ValkeyServer]:
    """Debian's Redis. Mark the tests that need it `wide`."""
    with ValkeyServer(server_dir / "debian-redis", program=DEBIAN_REDIS) as server:
        yield server


@pytest.fixture
def make_postgres(server_dir: Path) -> Iterator[MakePostgres]:
    """Embedded servers for tests that stop, kill or configure them."""
    with ExitStack() as running:

        def make(
            *, settings: Mapping[str, str] | None = None, bin_dir: Path | None = None, encoding: str = "UTF8"
        ) -> PostgresServer:
            home = Path(tempfile.mkdtemp(prefix="pg-", dir=server_dir))
            home.chmod(0o755)
            running.callback(shutil.rmtree, home, ignore_errors=True)
            server = PostgresServer(
                home / "data",
                settings={**TEST_SETTINGS, **(settings or {})},
                bin_dir=bin_dir or CHOSEN_POSTGRES_BIN,
                encoding=encoding,
            )
            return running.enter_context(server)

        yield make


@pytest.fixture
def make_valkey(server_dir: Path) -> Iterator[MakeValkey]:
    """Embedded Valkey servers for tests that stop, kill or configure them."""
    with ExitStack() as running:

        def make(*, settings: Mapping[str, str] | None = None) -> ValkeyServer:
            home = Path(tempfile.mkdtemp(prefix="valkey-", dir=server_dir))
            running.callback(shutil.rmtree, home, ignore_errors=True)
            return running.enter_context(ValkeyServer(home, settings=settings))

        yield make
