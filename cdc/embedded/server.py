"""The base class of every embedded server: `with` and `async with` around its start and its end."""

import asyncio
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Server(ABC):
    """Started when a `with` begins, closed when it ends.

    `start` and `close` block; `async with` does the same beside the event loop, and closes even when cancelled, also in
    the middle of the start.
    """

    @abstractmethod
    def start(self) -> None:
        """Start the server; returns when it answers."""

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
