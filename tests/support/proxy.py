"""A TCP proxy between the service and a server: it cuts connections, lets them hang, or slows them down.

It runs in a thread of the test's process. A cut resets what is open and lets new connections in; `freeze` passes no
byte on and says nothing, as a network does that has lost its route; `latency_s` delays each piece that passes, and with
`byte_s` the bytes pass one by one, each after so long. A new `target_port` counts for new connections.

    with Proxy(5432) as proxy:
        service = make_service(dsn=..., port=proxy.port)
        proxy.cut()
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

_START_DEADLINE_S = 30.0
_PIECE_BYTES = 64 * 1024


class Proxy:
    """Start with `with`. Every method may be called from any thread."""

    def __init__(self, target_port: int, *, latency_s: float = 0.0) -> None:
        self.target_port = target_port
        self.latency_s = latency_s
        self.byte_s = 0.0
        self.port = 0
        self.connections = 0
        self._flowing = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._over = asyncio.Event()

    def cut(self) -> None:
        """Reset every connection of the moment, in both directions."""
        self._call(self._cut)

    def freeze(self) -> None:
        """Pass nothing on, and close nothing, until `thaw`. New connections are accepted and meet silence."""
        self._call(self._flowing.clear)

    def thaw(self) -> None:
        self._call(self._flowing.set)

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(ready),), name="proxy", daemon=True)
        self._thread.start()
        if not ready.wait(_START_DEADLINE_S):
            raise RuntimeError("the proxy did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._call(self._over.set)
        if self._thread is not None:
            self._thread.join()

    def _call(self, act: Callable[[], None]) -> None:
        if self._loop is None:
            raise RuntimeError("the proxy is not running")
        self._loop.call_soon_threadsafe(act)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._flowing.set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._over.wait()
        server.close()
        self._cut()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, there_writer}
        self._writers |= both
        try:
            await asyncio.wait(
                [
                    asyncio.ensure_future(self._pass_on(reader, there_writer)),
                    asyncio.ensure_future(self._pass_on(there_reader, writer)),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            self._writers -= both
            for end in both:
                end.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(_PIECE_BYTES):
                await asyncio.sleep(self.latency_s)
                await self._send(piece, writer)

    async def _send(self, piece: bytes, writer: asyncio.StreamWriter) -> None:
        while piece:
            await asyncio.sleep(self.byte_s)
            await self._flowing.wait()
            count = 1 if self.byte_s else len(piece)
            writer.write(piece[:count])
            await writer.drain()
            piece = piece[count:]
