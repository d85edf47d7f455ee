"""Sets up what the demo needs: a directory, a Postgres, a Valkey, a configuration file, and the service itself.

The service is started as production starts it, `cdc run --config cdc.toml`, in a process of its own, with the role and
the publication that `cdc init` installs. At the end the servers' data is removed. The archive, the configuration and
the service's log stay, so that they can be looked at.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from pydantic import SecretStr

from cdc.config import PostgresSettings, Settings, load
from cdc.embedded import PostgresServer, ValkeyServer
from cdc.embedded.process import ServerProcess, free_port
from cdc.errors import Unavailable
from cdc.postgres import install
from cdc.postgres.session import connect

_DATABASE = "chat"
_SERVICE_ROLE = "cdc_replicator"

# On SIGTERM the service drains for up to 20 s.
_STOP_S = 30.0

_ANSWER = aiohttp.ClientTimeout(total=10.0)

_CONFIGURATION = """\
# Written by `cdc demo`. The servers in it ended with the demo; the archive is still there.
[postgres]
dsn = "{dsn}"

[archive]
url = "{archive}"

[cache]
url = "{redis}"

[http]
listen = "127.0.0.1:{port}"
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """Addresses and paths. `application` is the DSN with which the chat application and the demo itself connect."""

    directory: Path
    archive: Path
    configuration: Path
    postgres: PostgresServer
    valkey: ValkeyServer
    application: PostgresSettings
    settings: Settings

    @property
    def dsn(self) -> str:
        return self.application.dsn.get_secret_value()

    @property
    def address(self) -> str:
        """The service's address over HTTP."""
        return f"http://{self.settings.http.listen}/"

    @property
    def service_log(self) -> Path:
        return self.directory / "service.log"


@contextlib.asynccontextmanager
async def set_up() -> AsyncIterator[Stage]:
    """Start servers, install sql/, and write the service's configuration; the service is not started yet.

    Raises Invalid where no server can run.
    """
    directory = _make_directory()
    try:
        async with PostgresServer(directory / "postgres") as postgres, ValkeyServer(directory / "valkey") as valkey:
            with _without_settings_from_outside():
                yield await _furnish(directory, postgres, valkey)
    finally:
        for name in ("postgres", "valkey"):
            shutil.rmtree(directory / name, ignore_errors=True)


def _make_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="waltier-demo-"))
    directory.chmod(0o755)  # an unprivileged Postgres must reach its data in here
    return directory


async def _furnish(directory: Path, postgres: PostgresServer, valkey: ValkeyServer) -> Stage:
    admin = await connect(_settings_of(postgres.dsn()))
    await admin.execute(f"CREATE DATABASE {_DATABASE}")
    await admin.close()
    dsn = postgres.dsn(database=_DATABASE)
    await install.apply(dsn)
    archive, configuration = directory / "archive", directory / "cdc.toml"
    configuration.write_text(
        _CONFIGURATION.format(
            dsn=postgres.dsn(user=_SERVICE_ROLE, database=_DATABASE),
            archive=archive.as_uri(),
            redis=valkey.url,
            port=free_port(),
        )
    )
    return Stage(
        directory, archive, configuration, postgres, valkey, _settings_of(dsn), load(configuration)
    )  # fmt: skip


def _settings_of(dsn: str) -> PostgresSettings:
    return PostgresSettings(dsn=SecretStr(dsn))


@contextlib.contextmanager
def _without_settings_from_outside() -> Iterator[None]:
    """Hide CDC_* and credentials, so that the demo never reaches real servers."""
    ours = ("CDC_", "CREDENTIALS_DIRECTORY")
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(ours)}
    try:
        yield
    finally:
        os.environ.update(hidden)


class ServiceProcess:
    """Starts and stops `cdc run`, which ends with this process in every case."""

    def __init__(self, stage: Stage) -> None:
        argv = [*own_command(), "run", "--config", str(stage.configuration)]
        self._process = ServerProcess(argv, stage.service_log, death_signal=signal.SIGTERM)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while the service runs."""
        return self._process.exit_code

    def last_words(self) -> str:
        return self._process.last_words()

    def check_running(self) -> None:
        """Raise Unavailable, with the end of its log, if the service has ended by itself."""
        if not self._process.running:
            raise Unavailable("the service ended by itself", detail=self._process.last_words())

    async def stop(self) -> bool:
        """Send SIGTERM and wait. Returns False if the service had to be killed."""
        if self._process.running:
            self._process.send(signal.SIGTERM)
        try:
            await asyncio.to_thread(self._process.wait, _STOP_S)
        except Unavailable:
            await asyncio.to_thread(self._process.kill)
            return False
        return True


@contextlib.asynccontextmanager
async def running_service(stage: Stage) -> AsyncIterator[ServiceProcess]:
    """Start the service, and stop it at the end if it still runs."""
    service = ServiceProcess(stage)
    try:
        yield service
    finally:
        await service.stop()


async def ask_ready(stage: Stage) -> str:
    """Return what the service's /readyz says: `ok`, or why not."""
    try:
        async with aiohttp.ClientSession(timeout=_ANSWER) as session, session.get(f"{stage.address}readyz") as response:
            return (await response.text()).splitlines()[0]
    except (aiohttp.ClientError, OSError) as error:
        return f"nothing ({type(error).__name__})"


def own_command() -> list[str]:
    """Return the argv that runs the `cdc` of this installation."""
    script = Path(sys.executable).with_name("cdc")
    return (
        [str(script)]
        if script.exists()
        else [sys.executable, "-c", "from cdc.cli import main; raise SystemExit(main())"]
    )
