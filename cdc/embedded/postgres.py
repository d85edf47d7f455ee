"""Supervises a Postgres server: initialises, starts, restarts and kills it.

    with PostgresServer(directory) as server:       # or: async with
        connect(server.dsn())

The data directory is initialised once and kept: a second supervisor on it finds the data of the first. Settings are
written to a file that postgresql.conf includes, so `ALTER SYSTEM` still overrides them. Changed `settings` apply after
a restart.
"""

import os
import shutil
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

import structlog

from cdc.embedded.binaries import find_postgres
from cdc.embedded.process import NOBODY, Identity, ServerProcess, free_port, run, wait_for
from cdc.embedded.server import Server
from cdc.errors import Invalid, Unavailable

log = structlog.get_logger()

StopMode = Literal["smart", "fast", "immediate"]

# pg_ctl's modes as signals to the postmaster (manual, "Shutting Down the Server").
_STOP_SIGNAL: Final[dict[StopMode, signal.Signals]] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}

_SETTINGS: Final[dict[str, str]] = {
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "wal_compression": "off",
    # With UTC, the server's log can be compared with ours.
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%a ",
}

# Addresses of Unix sockets end at 107 bytes (unix(7)); Postgres adds a file name of at most 20.
_SOCKET_DIR_BYTES = 107 - len("/.s.PGSQL.65535.lock")

_SETTINGS_FILE = "waltier.conf"

_ATTEMPTS = 20
_ATTEMPT_PAUSE_S = 0.25


class PostgresServer(Server):
    """One Postgres server. `start` and `stop` block; `async with` does the same beside the event loop.

    `settings` are configuration parameters as text, on top of defaults that suit logical replication. `port` None means
    a free port, kept over restarts. `encoding` counts at initialisation only. Raises Invalid where no server can run.
    """

    def __init__(
        self,
        data_dir: Path | str,
        *,
        settings: Mapping[str, str] | None = None,
        bin_dir: Path | str | None = None,
        port: int | None = None,
        encoding: str = "UTF8",
    ) -> None:
        super().__init__(port)
        self.data_dir = Path(data_dir).absolute()
        self.settings = {**_SETTINGS, **(settings or {})}
        self.encoding = encoding
        self._binaries = find_postgres(Path(bin_dir) if bin_dir else None)
        self._socket_dir: Path | None = None

    @property
    def bin_dir(self) -> Path:
        return self._binaries.bin_dir

    @property
    def version(self) -> int:
        """The server's major version, as 18."""
        return self._binaries.version

    @property
    def log_path(self) -> Path:
        return self.data_dir.with_name(self.data_dir.name + ".log")

    @property
    def socket_dir(self) -> Path:
        if self._socket_dir is None:
            raise RuntimeError("the server has not been started")
        return self._socket_dir

    def dsn(self, *, user: str = "postgres", database: str = "postgres") -> str:
        """A connection string; `postgres` is the superuser, and no role needs a password."""
        return f"postgresql://{quote(user, safe='')}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def start(self, *, timeout_s: float = 120) -> None:
        """Initialise the data directory if it is empty, start the server, return when it accepts connections.

        Raises Unavailable if the server ends or does not answer in time.
        """
        if self.running:
            return
        self._prepare()
        self._spawn(timeout_s)
        log.info("postgres_started", port=self.port, pid=self.pid, version=self.version)

    def stop(self, mode: StopMode = "fast", *, timeout_s: float = 60) -> None:
        """Stop as `pg_ctl stop -m` does. Raises Unavailable if the server does not end in time."""
        if self._process is not None:
            if self._process.running:
                self._process.send(_STOP_SIGNAL[mode])
            self._process.wait(timeout_s)
            self._process = None
            log.info("postgres_stopped", port=self.port, mode=mode)
        self._remove_socket_dir()

    def restart(self, mode: StopMode = "fast", *, timeout_s: float = 60) -> None:
        """Stop and start on the same port, with the present `settings`."""
        self.stop(mode, timeout_s=timeout_s)
        self.start()

    def close(self) -> None:
        """Stop the server; kill it if it does not stop."""
        try:
            self.stop("fast", timeout_s=15)
        except Unavailable:
            self.kill()
            self.stop()

    def _prepare(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (self.data_dir / "PG_VERSION").exists():
            self._initialise()
        if self._socket_dir is None:
            self._socket_dir = self._make_socket_dir()

    def _give_to_nobody(self, path: Path) -> None:
        if self._binaries.identity is Identity.NOBODY:
            os.chown(path, NOBODY, NOBODY)

    def _initialise(self) -> None:
        if any(self.data_dir.iterdir()):
            raise Invalid(
                f"{self.data_dir} is neither empty nor a database cluster",
                hint="choose a directory that does not exist yet, as one under /tmp",
            )
        self._give_to_nobody(self.data_dir)
        options = ["--locale=C", f"--encoding={self.encoding}", "--auth=trust", "--username=postgres"]
        if self.settings.get("fsync") == "off":
            options.append("--no-sync")
        try:
            run(
                [str(self.bin_dir / "initdb"), "-D", str(self.data_dir), *options],
                self._binaries.identity,
                timeout_s=300,
            )
        except Unavailable as error:
            raise Invalid(
                f"initdb cannot make a database cluster in {self.data_dir}",
                detail=error.detail,
                hint="choose a directory on another file system, as one under /tmp",
            ) from error
        with (self.data_dir / "postgresql.conf").open("a") as configuration:
            configuration.write(f"\ninclude_if_exists = '{_SETTINGS_FILE}'\n")

    def _make_socket_dir(self) -> Path:
        if len(os.fsencode(self.data_dir)) <= _SOCKET_DIR_BYTES:
            return self.data_dir
        made = Path(tempfile.mkdtemp(prefix="waltier-", dir="/tmp"))  # short, private, and removed by us
        self._give_to_nobody(made)
        return made

    def _remove_socket_dir(self) -> None:
        if self._socket_dir is not None and self._socket_dir != self.data_dir:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        self._socket_dir = None

    def _spawn(self, timeout_s: float) -> None:
        chosen = self._port
        for attempts_left in range(_ATTEMPTS - 1, -1, -1):
            self._port = chosen or free_port()
            self._write_settings()
            self._process = ServerProcess(
                [str(self.bin_dir / "postgres"), "-D", str(self.data_dir)],
                self.log_path,
                identity=self._binaries.identity,
                death_signal=signal.SIGINT,
            )
            try:
                wait_for("Postgres", self._accepts_connections, self._process, timeout_s)
            except Unavailable as error:
                if self._process.running or attempts_left == 0 or not _passes(error, port_is_ours=chosen is None):
                    self.close()
                    raise
                time.sleep(_ATTEMPT_PAUSE_S)
            else:
                return

    def _write_settings(self) -> None:
        own = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": str(self.socket_dir),
        }
        lines = [f"{name} = '{_quote(value)}'\n" for name, value in {**self.settings, **own}.items()]
        (self.data_dir / _SETTINGS_FILE).write_text("".join(lines))

    def _accepts_connections(self) -> bool:
        if not self._started().listens_on(self.port):
            return False
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(_startup_message(user="postgres", database="postgres"))
                answer = connection.recv(512)
        except OSError:
            return False
        # 57P03: starting up, shutting down or in recovery. Any other refusal comes from a server that works.
        return bool(answer) and not (answer[:1] == b"E" and b"57P03" in answer)


def _passes(error: Unavailable, *, port_is_ours: bool) -> bool:
    """True if a start that failed may succeed in a moment.

    There are two such cases. Another process took the port between our search and the server's bind: then we search
    again. Or the children of a postmaster that was killed still hold its shared memory, until they notice.
    """
    taken = "could not bind" in error.detail
    return (taken and port_is_ours) or "is still in use" in error.detail


def _quote(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")


def _startup_message(**parameters: str) -> bytes:
    """Encode the StartupMessage of protocol 3.0 (manual, "Message Formats")."""
    body = b"".join(word.encode() + b"\0" for pair in parameters.items() for word in pair) + b"\0"
    return struct.pack("!II", len(body) + 8, 3 << 16) + body
