"""The socket pump: moves CopyData from a libpq connection, and waits for its socket through the event loop.

psycopg's own wait cancels the running query when its task is cancelled. This one leaves no trace. A cancelled wait
registers nothing and changes nothing, and the next call goes on where it stopped.
"""

import asyncio
import select

import psycopg
from psycopg import pq


class Pump:
    """Reads and writes one connection that is in copy mode, or about to be.

    `ended`: the server has ended the copy, and its result can be fetched. `broken`: the connection failed. Everything
    that had arrived before was handed out first.
    """

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        pgconn.nonblocking = 1
        self._pgconn = pgconn
        self._socket = pgconn.socket
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        # Under TLS the rest of a record (16 KiB at most, libpq reads at least 8) can wait where poll does not see it.
        self._dry_reads = 2 if pgconn.ssl_in_use else 0
        self.ended = False
        self.broken: psycopg.Error | None = None

    @property
    def over(self) -> bool:
        return self.ended or self.broken is not None

    def drain(self, bound_bytes: int) -> tuple[list[bytes], int]:
        """Take the messages that libpq and the socket hold, up to about the bound; return their size in bytes too.

        Never waits.
        """
        messages: list[bytes] = []
        nbytes = dry_reads = 0
        get_copy_data, consume_input, poll = self._pgconn.get_copy_data, self._pgconn.consume_input, self._poll.poll
        try:
            while nbytes < bound_bytes and not self.over:
                size, data = get_copy_data(1)
                if size > 0:
                    # The memory view ends with libpq's buffer; this copy outlives it.
                    messages.append(bytes(data))
                    nbytes += size
                    dry_reads = 0
                elif size < 0:
                    self.ended = True
                elif poll(0):
                    # libpq reads one buffer (16 KiB) at a time, so the socket may hold more.
                    consume_input()
                elif dry_reads < self._dry_reads:
                    consume_input()
                    dry_reads += 1
                else:
                    break
        except psycopg.Error as error:
            self.broken = error
        return messages, nbytes

    async def readable(self) -> None:
        """Wait for the socket to have something to read, or to be closed."""
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_reader(self._socket, _wake, ready)
        try:
            await ready
        finally:
            loop.remove_reader(self._socket)

    async def flushed(self) -> None:
        """Wait until the socket has taken all of libpq's output. Raises psycopg.Error."""
        loop = asyncio.get_running_loop()
        while self._pgconn.flush() == 1:
            ready = loop.create_future()
            loop.add_writer(self._socket, _wake, ready)
            try:
                await ready
            finally:
                loop.remove_writer(self._socket)

    async def result(self) -> pq.abc.PGresult | None:
        """Wait for the next result of the running query. Raises psycopg.Error."""
        while self._pgconn.is_busy():
            await self.readable()
            self._pgconn.consume_input()
        return self._pgconn.get_result()

    async def cleared(self) -> None:
        """Wait until the query is over, so that the connection takes another one. Raises psycopg.Error."""
        while await self.result() is not None:
            pass

    def result_at_hand(self) -> pq.abc.PGresult | None:
        """Return the next result if it has arrived. The server may have said why before a connection broke."""
        try:
            return None if self._pgconn.is_busy() else self._pgconn.get_result()
        except psycopg.Error:
            return None


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
