"""Supervises a Valkey (or Redis) server, without persistence unless `settings` ask for it.

with ValkeyServer(directory) as server:         # or: async with
    connect(server.url)
"""

import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from cdc.embedded.binaries import find_valkey
from cdc.embedded.process import ServerProcess, free_port, wait_for
from cdc.embedded.server import Server
from cdc.errors import Unavailable

log = structlog.get_logger()

_SETTINGS: Final[dict[str, str]] = {"save": "", "appendonly": "no", "daemonize": "no"}


class ValkeyServer(Server):
    """One Valkey server. `start` and `stop` block; `async with` does the same beside the event loop.

    `settings` are configuration directives as text (`{"maxmemory": "10mb"}`), read at each start. `port` None means a
    free port, kept over restarts. Raises Invalid where no server can run.
    """

    def __init__(
        self,
        work_dir: Path | str,
        *,
        settings: Mapping[str, str] | None = None,
        program: Path | str | None = None,
        port: int | None = None,
    ) -> None:
        super().__init__(port)
        self.work_dir = Path(work_dir).absolute()
        self.settings = {**_SETTINGS, **(settings or {})}
        self.program = find_valkey(Path(program) if program else None)

    @property
    def bin_dir(self) -> Path:
        return self.program.parent

    @property
    def log_path(self) -> Path:
        return self.work_dir / "valkey.log"

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *, timeout_s: float = 60) -> None:
        """Start the server and return when it answers PING. Raises Unavailable if it ends or takes too long."""
        if self.running:
            return
        self.work_dir.mkdir(parents=True, exist_ok=True)
        self._spawn(timeout_s)
        log.info("valkey_started", port=self.port, pid=self.pid)

    def stop(self, *, timeout_s: float = 30) -> None:
        """Send SIGTERM: the server saves what its settings say, and ends. Raises Unavailable if that takes too long."""
        if self._process is not None:
            if self._process.running:
                self._process.send(signal.SIGTERM)
            self._process.wait(timeout_s)
            self._process = None
            log.info("valkey_stopped", port=self.port)

    def close(self) -> None:
        """Stop the server; kill it if it hangs or was stopped by SIGSTOP."""
        try:
            self.stop(timeout_s=5)
        except Unavailable:
            self.kill()

    def _spawn(self, timeout_s: float) -> None:
        chosen = self._port
        for attempts_left in (2, 1, 0):
            self._port = chosen or free_port()
            self._process = ServerProcess(self._argv(), self.log_path, death_signal=signal.SIGINT)
            try:
                wait_for("Valkey", self._answers, self._process, timeout_s)
            except Unavailable:
                retry = chosen is None and not self._process.running and attempts_left > 0
                if not retry:
                    self.close()
                    raise
            else:
                return

    def _argv(self) -> list[str]:
        own = {"bind": "127.0.0.1", "port": str(self._port), "dir": str(self.work_dir)}
        directives = {**self.settings, **own}
        return [str(self.program), *(word for name, value in directives.items() for word in (f"--{name}", value))]

    def _answers(self) -> bool:
        """True if PING answers PONG, or NOAUTH where a password is set; LOADING means not yet."""
        if self._process is None or not self._process.listens_on(self.port):
            return False
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(b"PING\r\n")
                answer = connection.recv(64)
        except OSError:
            return False
        return answer.startswith((b"+PONG", b"-NOAUTH"))
