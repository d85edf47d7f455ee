"""The replication stream: CopyData from the WAL sender in, status updates out, over our own socket pump.

libpq (through `psycopg.pq`) frames the protocol; when to read is ours. psycopg's own wait would cancel the query when
its task is cancelled, and so kill the stream; here a cancelled `receive()` leaves the stream as it was.

What is promised:

- `receive()` gives CopyData messages in order and loses none, cancelled or not;
- `send_status()` never waits, and may be called while no `receive()` is under way. What the socket does not take at
  once is written when it does;
- the stream starts where the slot stands (LSN 0/0). No other position is ever passed, because Postgres would silently
  skip or fast-forward;
- the end of the stream is an error of `cdc.errors` that says what to do.

Postgres flushes every row to the socket by itself. Waking up for each costs us some 6 µs a message, and the WAL sender
even more. So under steady traffic the pump rests a moment between reads ("interrupt moderation"). A message that comes
after a quiet moment is never held back.
"""

import asyncio
import contextlib
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import psycopg
import structlog
from psycopg import pq
from psycopg.errors import Diagnostic

from cdc.config import PostgresSettings
from cdc.errors import CdcError, Unavailable
from cdc.lsn import parse_lsn
from cdc.pgoutput.frames import encode_status_update
from cdc.position import Epoch
from cdc.postgres.quoting import quote_identifier, quote_literal
from cdc.postgres.refusal import (
    NOT_IN_PREREQUISITE_STATE,
    UNDEFINED_OBJECT,
    Refusal,
    SlotActive,
    at_slot,
    in_session,
    in_stream,
    refusal_of_exception,
    refusal_of_result,
    refused_as,
)
from cdc.postgres.session import Connection, connect
from cdc.postgres.stream.pump import Pump
from cdc.postgres.stream.short_sleep import ShortSleep

__all__ = ["Identity", "ReplicationStream", "SlotActive"]

log = structlog.get_logger()

# One call of receive() hands over about this much. The rest waits in the socket, and so holds the WAL sender back.
_RECEIVE_BYTES: Final = 256 * 1024
# A read of less means that the pump ran ahead of the WAL sender: a rest lets more gather. A Unix socket holds some 280
# messages, however small. The sender must not find it full, and needs about 1 ms to write so many.
_SMALL_BYTES: Final = 32 * 1024
_REST_S: Final = 0.0004
# Traffic is steady after so many reads in a row, each at most _QUIET_S after the one before.
_STEADY_READS: Final = 8
_QUIET_S: Final = 0.001
# How long close() waits for the server to answer CopyDone, and a starting stream for its answer.
_CLOSE_S: Final = 2.0
_ANSWER_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Identity:
    """The answer to IDENTIFY_SYSTEM (manual, "Streaming Replication Protocol")."""

    epoch: Epoch
    flushed_lsn: int
    database: str


class ReplicationStream:
    """One replication connection. `open`, then `start`, then `receive` and `send_status` until `close`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pgconn = connection.raw.pgconn
        self._pump = Pump(self._pgconn)
        self._slot = self._publication = ""
        self._started = False
        self._writing = False
        self._unsent: bytes | None = None
        self._steady_reads = 0
        self._read_at = 0.0
        self._read_bytes = 0
        self._short_sleep = ShortSleep()
        self._ending: CdcError | None = None
        connection.raw.add_notice_handler(self._heed)

    @classmethod
    async def open(cls, settings: PostgresSettings, server_encoding: str = "UTF8") -> Self:
        """Connect as a WAL receiver. Raises Unavailable or Invalid."""
        return cls(await connect(settings, server_encoding=server_encoding, replication=True))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def backend_pid(self) -> int:
        """The WAL sender's process, as `pg_replication_slots.active_pid` shows it."""
        return self._pgconn.backend_pid

    async def identify(self) -> Identity:
        """Ask which cluster and which timeline this very connection talks to. Only before `start`.

        Raises Unavailable or Invalid.
        """
        return await identify_system(self._connection)

    async def start(self, slot: str, publication: str) -> None:
        """Begin streaming where the slot stands. Raises SlotActive, SlotLost, Invalid or Unavailable."""
        self._slot, self._publication = slot, publication
        command = (
            f"START_REPLICATION SLOT {quote_identifier(slot)} LOGICAL 0/0 (proto_version '1', "
            f"publication_names {quote_literal(quote_identifier(publication))}, messages 'true')"
        )
        try:
            with refused_as(in_session):
                self._pgconn.send_query(command.encode())
                async with asyncio.timeout(_ANSWER_S):
                    await self._pump.flushed()
                    result = await self._pump.result()
                    if result is None or result.status != pq.ExecStatus.COPY_BOTH:
                        await self._pump.cleared()
        except TimeoutError:
            raise Unavailable("Postgres did not start the stream in time", detail=f"waited {_ANSWER_S:.0f} s") from None
        if result is None or result.status != pq.ExecStatus.COPY_BOTH:
            raise at_slot(refusal_of_result(result), slot)
        self._started = True
        log.info("stream_started", slot=slot, publication=publication, pid=self.backend_pid)

    async def receive(self) -> list[bytes]:
        """Wait for at least one CopyData message; return it with all that has arrived, up to 256 KiB or so.

        Raises Unavailable, SlotLost or Invalid when the stream has ended. Safe to cancel.
        """
        await self._rest()
        while True:
            messages, nbytes = self._pump.drain(_RECEIVE_BYTES)
            if self._ending is not None:
                raise self._ending
            if messages:
                self._note_read(nbytes)
                return messages
            if self._pump.over:
                raise self._end_of_stream()
            await self._pump.readable()

    def send_status(self, written: int, flushed: int, applied: int, *, reply_requested: bool = False) -> None:
        """Tell the server what is durable, as LSNs. Never waits, never raises: a dead stream shows in `receive()`."""
        if self._pump.over or not self._started:
            return
        self._unsent = encode_status_update(
            written, flushed, applied, time.time_ns() // 1000, reply_requested=reply_requested
        )
        if not self._writing:
            self._write()

    async def close(self) -> None:
        """End the stream: the last status, CopyDone, and the connection. Waits a moment at most."""
        try:
            if self._started and not self._pump.over:
                with contextlib.suppress(psycopg.Error, TimeoutError):
                    async with asyncio.timeout(_CLOSE_S):
                        await self._end_copy()
        finally:
            self._stop_writing()
            self._short_sleep.close()
            await self._connection.close()

    async def _rest(self) -> None:
        """Let more gather under steady traffic; let others run when the socket never runs dry."""
        if self._read_bytes >= _SMALL_BYTES:
            await asyncio.sleep(0)
        elif self._steady_reads >= _STEADY_READS:
            await self._short_sleep.rest(_REST_S)
            self._read_at = time.monotonic()

    def _note_read(self, nbytes: int) -> None:
        """Count reads that follow one another closely: many in a row are steady traffic."""
        now = time.monotonic()
        self._steady_reads = 0 if now - self._read_at > _QUIET_S else self._steady_reads + 1
        self._read_at, self._read_bytes = now, nbytes

    def _end_of_stream(self) -> CdcError:
        """Make the error that ended the stream, in the server's own words if it had the time to say them."""
        if self._ending is None:
            result = self._pump.result_at_hand()
            if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
                self._ending = in_stream(refusal_of_result(result), self._slot, self._publication)
            elif self._pump.broken is not None:
                self._ending = in_session(refusal_of_exception(self._pump.broken))
            else:
                self._ending = Unavailable("Postgres ended the stream", hint="if this repeats, read the server's log")
        return self._ending

    def _heed(self, diagnostic: Diagnostic) -> None:
        """Make an error of the one warning that means lost rows.

        A publication may not exist yet where the WAL is being read. Since version 18 Postgres then warns, and skips the
        publication and every change with it. Before, that was an error. Here it stays one: what follows is never
        handed out.
        """
        message = diagnostic.message_primary or ""
        log.warning("server_notice", severity=diagnostic.severity_nonlocalized, message=message)
        if diagnostic.sqlstate == NOT_IN_PREREQUISITE_STATE and f'"{self._publication}"' in message:
            refusal = Refusal(UNDEFINED_OBJECT, message, diagnostic.message_detail or "")
            self._ending = in_stream(refusal, self._slot, self._publication)

    def _write(self) -> None:
        """Hand the newest status to libpq and the socket; come back when the socket takes more."""
        try:
            if self._unsent is not None and self._pgconn.put_copy_data(self._unsent) == 1:
                self._unsent = None
            blocked = self._pgconn.flush() == 1 or self._unsent is not None
        except psycopg.Error:
            # `receive()` meets the same broken connection and says why.
            self._unsent, blocked = None, False
        if blocked and not self._writing:
            asyncio.get_running_loop().add_writer(self._pgconn.socket, self._write)
            self._writing = True
        elif not blocked:
            self._stop_writing()

    def _stop_writing(self) -> None:
        if self._writing:
            asyncio.get_running_loop().remove_writer(self._pgconn.socket)
            self._writing = False

    async def _end_copy(self) -> None:
        """Send CopyDone, then read until the server's own: closing over unread data could discard our last status."""
        self._stop_writing()
        self._pgconn.put_copy_end()
        await self._pump.flushed()
        while not self._pump.over:
            messages, _ = self._pump.drain(_RECEIVE_BYTES)
            if not messages and not self._pump.over:
                await self._pump.readable()
            await asyncio.sleep(0)


async def identify_system(connection: Connection) -> Identity:
    """Run IDENTIFY_SYSTEM on a replication connection that is not streaming. Raises Unavailable or Invalid."""
    answer = await connection.one("IDENTIFY_SYSTEM")
    # psycopg gives text as bytes where client_encoding is SQL_ASCII.
    system_identifier, timeline, flushed, database = (
        value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value) for value in answer
    )
    return Identity(Epoch(system_identifier, int(timeline)), parse_lsn(flushed), database)
