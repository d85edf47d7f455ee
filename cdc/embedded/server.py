"""The base class of every embedded server: its process and port, and `with` and `async with` around its life."""

import asyncio
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from cdc.embedded.process import ServerProcess


class Server(ABC):
    """Started when a `with` begins, closed when it ends.

    `start` and `close` block; `async with` does the same beside the event loop, and closes even when cancelled, also in
    the middle of the start. `port` None means a free port, kept over restarts.
    """

    def __init__(self, port: int | None) -> None:
        self._port = port
        self._process: ServerProcess | None = None

    @property
    def port(self) -> int:
        """The port on 127.0.0.1. Raises RuntimeError before the first start."""
        if self._port is None:
            raise RuntimeError("the server has not been started")
        return self._port

    @property
    def pid(self) -> int:
        """The process id; Postgres's is the postmaster's. Raises RuntimeError while the server does not run."""
        return self._started().pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    @abstractmethod
    def start(self) -> None:
        """Start the server; returns when it answers."""

    @abstractmethod
    def stop(self) -> None:
        """Stop the server in order. Raises Unavailable if it does not end in time."""

    def restart(self) -> None:
        """Stop and start on the same port, with the present `settings`."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """Send SIGKILL; returns when the server's children are gone too. It loses what it has not persisted."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _started(self) -> ServerProcess:
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process

    @abstractmethod
    def close(self) -> None:
        """Stop the server; kill it if it does not stop."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        starting = asyncio.ensure_future(asyncio.to_thread(self.start))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:  # no thread can be stopped: what it starts meanwhile is closed
            await asyncio.wait([starting])
            await asyncio.to_thread(self.close)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.shield(asyncio.to_thread(self.close))
