"""One replication connection, from START_REPLICATION to its end.

Its tasks have names, and the death of one ends the session:

1. `receive` reads the socket, assembles transactions, checks that they go on with the archive's history
   (`continuity.py`), notes progress, and offers them to both feeds.
2. `archive` is `archive_feed.py`: it writes, and what it has written is acknowledged at once. When it ends because it
   had shed changes, the session ends too, and the next one reads them again from the slot.
3. `feedback` tells the server the durable position on its own timer. The other tasks cannot delay it.
4. `silence` is `silence.py`: a server that says nothing for long is asked to answer. If it no longer serves us, the
   session ends.

A session ends by a stop request, by the loss of the connection, or because the server shuts down. The sentinel sees a
shutdown, and the connection is closed at once, because a WAL sender waits for acknowledgements before it lets Postgres
go down. In every case what was received whole is still archived, within `DRAIN_S`.
"""

import asyncio
from dataclasses import dataclass

import structlog

from cdc import metrics
from cdc.change import Transaction
from cdc.crash import crash_point
from cdc.errors import CdcError, Unavailable
from cdc.health.vitals import Vitals
from cdc.lsn import format_lsn
from cdc.pgoutput.assembler import Assembler
from cdc.pipeline.archive_feed import ArchiveFeed
from cdc.pipeline.cache_feed import CacheFeed
from cdc.pipeline.continuity import Continuity
from cdc.pipeline.progress import Progress
from cdc.pipeline.silence import Silence
from cdc.pipeline.tally import Tally
from cdc.postgres.stream.replication import ReplicationStream
from cdc.postgres.stream.sentinel import Sentinel

log = structlog.get_logger()

# Without a sentinel we do not learn that Postgres wants to shut down. Acknowledgements may then stall only so long.
STALL_WITHOUT_SENTINEL_S = 10.0


@dataclass(frozen=True, slots=True)
class Incoming:
    """A started connection: its stream, the assembler of its transactions, and the check of their continuity."""

    stream: ReplicationStream
    assembler: Assembler
    continuity: Continuity


class Session:
    """Runs one connection. `incoming` and the feeds begin at the position of `progress`."""

    def __init__(
        self,
        incoming: Incoming,
        progress: Progress,
        archive: ArchiveFeed,
        cache: CacheFeed | None,
        silence: Silence,
        vitals: Vitals,
        *,
        status_interval_s: float,
    ) -> None:
        self._stream = incoming.stream
        self._assembler = incoming.assembler
        self._continuity = incoming.continuity
        self._progress = progress
        self._archive = archive
        self._cache = cache
        self._silence = silence
        self._vitals = vitals
        self._status_interval_s = status_interval_s
        self._tally = Tally()
        self._end = asyncio.Event()
        self._failure: CdcError | None = None

    async def run(self, stop: asyncio.Event, sentinel: Sentinel | None) -> None:
        """Work until `stop` is set; then return. Raises the error that ended the connection, of any kind."""
        async with asyncio.TaskGroup() as tasks:
            archive = tasks.create_task(self._archive_loop(), name="archive")
            feedback = tasks.create_task(self._feedback_loop(sentinel), name="feedback")
            silence = tasks.create_task(self._silence_loop(), name="silence")
            receive = tasks.create_task(self._receive_loop(), name="receive")
            endings: list[asyncio.Task[object]] = [
                tasks.create_task(self._end.wait(), name="end"),
                tasks.create_task(stop.wait(), name="stop"),
            ]
            if sentinel is not None:
                endings.append(tasks.create_task(self._watch(sentinel), name="sentinel"))
            await asyncio.wait([receive, *endings], return_when=asyncio.FIRST_COMPLETED)
            for task in (receive, silence, *endings):
                task.cancel()
            if self._failure is not None:
                self._vitals.interrupted(self._failure)
                feedback.cancel()
                await self._stream.close()
            await self._archive.drain(archive)
            feedback.cancel()
            self._send_status()
        await self._stream.close()
        if self._failure is not None:
            raise self._failure

    async def _receive_loop(self) -> None:
        try:
            while True:
                await self._receive_once()
        except CdcError as error:
            self._failure = error

    async def _receive_once(self) -> None:
        self._silence.listening()
        frames = await self._stream.receive()
        self._silence.heard()
        received = self._assembler.feed(frames)
        transactions = received.transactions
        self._continuity.check(transactions, 0 if self._assembler.in_transaction else received.wal_end)
        end_lsn = next((t.end_lsn for t in reversed(transactions) if t.last), 0)
        self._progress.received(end_lsn, received.wal_end, self._assembler.in_transaction)
        if received.reply_requested:
            self._send_status()
        if transactions:
            await self._offer(transactions)

    async def _offer(self, transactions: list[Transaction]) -> None:
        self._vitals.backlog.received(transactions)
        metrics.transactions.inc(sum(t.last for t in transactions))
        metrics.changes.inc(sum(len(t.changes) for t in transactions))
        self._tally.count(transactions)
        self._archive.offer(transactions)
        if self._cache is not None:
            await self._cache.offer(transactions)
        await self._archive.make_room()

    async def _archive_loop(self) -> None:
        await self._archive.run(self._acknowledge)
        if self._archive.shed:
            self._fail(Unavailable("the bucket answers again; reading again from the slot what was shed"))

    def _acknowledge(self, lsn: int, idle: bool) -> None:
        """Tell Postgres and the cache that the archive is durable up to `lsn`."""
        self._send_status()
        if self._cache is not None:
            self._cache.archive_advanced(lsn, idle=idle)

    async def _feedback_loop(self, sentinel: Sentinel | None) -> None:
        while True:
            self._send_status()
            await asyncio.sleep(self._status_interval_s)
            if sentinel is None and self._archive.stalled_s > STALL_WITHOUT_SENTINEL_S:
                self._fail(Unavailable("acknowledgements stall and no sentinel watches for the server's shutdown"))

    def _send_status(self, *, reply_requested: bool = False) -> None:
        acknowledged = self._progress.acknowledged_lsn
        self._vitals.reported(self._progress.received_lsn, acknowledged)
        self._stream.send_status(
            self._progress.received_lsn, acknowledged, acknowledged, reply_requested=reply_requested
        )
        crash_point("status_sent")

    async def _silence_loop(self) -> None:
        self._fail(await self._silence.run(lambda: self._send_status(reply_requested=True)))

    async def _watch(self, sentinel: Sentinel) -> None:
        await sentinel.wait_ended()
        log.info("sentinel_ended", acknowledged=format_lsn(self._progress.acknowledged_lsn))
        self._fail(Unavailable("the server ended our idle session: it is shutting down or restarting"))

    def _fail(self, error: CdcError) -> None:
        self._failure = self._failure or error
        self._end.set()
