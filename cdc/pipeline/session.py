"""One replication connection, from START_REPLICATION to its end.

Its tasks have names, and the death of one ends the session:

1. `receive` reads the socket, assembles transactions, has them show that they go on with the archive's history
   (`continuity.py`), and offers them to both sinks' queues. The archive's queue full: it pauses, which Postgres
   tolerates as long as status updates go out. But if the bucket is failing, the queue is shed and reading goes on for
   the cache alone; when the bucket answers, the session ends and the next one reads again from the slot, which still
   holds everything that was not acknowledged.
2. `archive` gathers, writes, notes progress and acknowledges. It alone writes to the archive, so there is one PUT in
   flight. When idle it records coverage, so that a quiet publication does not hold WAL.
3. `feedback` tells the server the durable position on its own timer, whatever the others do.
4. `silence` asks a server that has said nothing for long to answer; if it does not, another connection is asked whether
   its WAL sender still serves us. A decode that is silent for minutes is healthy; a middle box that swallows bytes is
   not, and TCP's own deadlines do not see it.

A session ends by a stop request, by the loss of the connection, or because the server shuts down: the sentinel sees
that, and the connection is closed at once, because a walsender waits for acknowledgements before it lets Postgres go
down. In every case what was received whole is still archived, within `DRAIN_S`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from cdc import metrics
from cdc.archive.writer.sink import ArchiveSink
from cdc.change import Batch
from cdc.config import ArchiveSettings
from cdc.crash import crash_point
from cdc.errors import CdcError, Unavailable
from cdc.health.vitals import Vitals
from cdc.lsn import format_lsn
from cdc.pgoutput.assembler import Assembler
from cdc.pipeline.cache_feed import CacheFeed
from cdc.pipeline.continuity import Continuity
from cdc.pipeline.progress import Progress
from cdc.pipeline.queue import TransactionQueue
from cdc.pipeline.tally import Tally
from cdc.postgres.stream.replication import ReplicationStream
from cdc.postgres.stream.sentinel import Sentinel

log = structlog.get_logger()

# How long the last whole transactions may take to reach the archive when a session ends. Less than the 30 s that
# container runtimes grant between SIGTERM and SIGKILL; being killed loses nothing, it only repeats work.
DRAIN_S = 20.0
# Without a sentinel nobody tells us that Postgres wants to shut down: so long may acknowledgements stall.
STALL_WITHOUT_SENTINEL_S = 10.0
# How often an idle archive task looks whether there is WAL to cover, and a paused reader whether the bucket fails.
TICK_S = 0.5
# How long the other connection may take to say whether our WAL sender lives.
ANSWER_S = 10.0


class Session:
    """Runs one connection. `stream` is started, `archive` fenced, both at the position of `progress`."""

    def __init__(
        self,
        stream: ReplicationStream,
        assembler: Assembler,
        archive: ArchiveSink,
        feed: CacheFeed | None,
        progress: Progress,
        continuity: Continuity,
        settings: ArchiveSettings,
        vitals: Vitals,
        *,
        recheck: Callable[[], Awaitable[None]],
        still_served: Callable[[], Awaitable[bool]],
        status_interval_s: float,
        silence_s: float,
    ) -> None:
        self._stream = stream
        self._assembler = assembler
        self._archive = archive
        self._feed = feed
        self._progress = progress
        self._continuity = continuity
        self._settings = settings
        self._vitals = vitals
        self._recheck = recheck
        self._still_served = still_served
        self._status_interval_s = status_interval_s
        self._silence_s = silence_s
        self._listening_since: float | None = None
        self._queue = TransactionQueue(settings.queue_bytes, progress.archived_lsn)
        self._queue_bytes = metrics.queue_bytes.labels("archive")
        self._tally = Tally()
        self._shed = False
        self._end = asyncio.Event()
        self._failure: CdcError | None = None
        self._covered_at = time.monotonic()
        self._rechecked_at = time.monotonic()
        self._acknowledged_at = time.monotonic()

    async def run(self, stop: asyncio.Event, sentinel: Sentinel | None) -> None:
        """Work until `stop` is set (then return) or until the connection ends (then raise its error)."""
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
            await self._drain(archive)
            feedback.cancel()
            self._send_status()
        await self._stream.close()
        if self._failure is not None:
            raise self._failure

    # receive ------------------------------------------------------------------------------------------------------

    async def _receive_loop(self) -> None:
        try:
            while True:
                await self._receive_once()
        except CdcError as error:
            self._failure = error

    async def _receive_once(self) -> None:
        self._listening_since = time.monotonic()
        frames = await self._stream.receive()
        self._listening_since = None
        received = self._assembler.feed(frames)
        transactions = received.transactions
        self._continuity.check(transactions, 0 if self._assembler.in_transaction else received.wal_end)
        end_lsn = next((t.end_lsn for t in reversed(transactions) if t.last), 0)
        self._progress.received(end_lsn, received.wal_end, self._assembler.in_transaction)
        if received.reply_requested:
            self._send_status()
        if not transactions:
            return
        self._vitals.backlog.received(transactions)
        metrics.transactions.inc(sum(t.last for t in transactions))
        metrics.changes.inc(sum(len(t.changes) for t in transactions))
        self._tally.count(transactions)
        if not self._shed:
            self._queue.put(transactions)
            self._queue_bytes.set(self._queue.nbytes)
            crash_point("transactions_queued")
        if self._feed is not None:
            await self._feed.offer(transactions)
        if self._queue.full:
            await self._make_room()

    async def _make_room(self) -> None:
        """Wait for the archive; or, if the bucket is failing, shed its queue and go on for the cache alone."""
        while self._queue.full:
            if self._archive.struggling:
                log.warning("archive_queue_shed", bytes=self._queue.nbytes)
                self._shed = True
                self._queue.drop()
                self._queue_bytes.set(0)
                return
            try:
                async with asyncio.timeout(TICK_S):
                    await self._queue.room()
            except TimeoutError:
                continue

    # archive ------------------------------------------------------------------------------------------------------

    async def _archive_loop(self) -> None:
        started = 0.0
        while not (self._queue.closed and self._queue.empty):
            try:
                async with asyncio.timeout(TICK_S):
                    await self._queue.gather(self._settings.segment_bytes, started + self._settings.linger_s)
            except TimeoutError:
                await self._cover()
            else:
                batch = self._queue.pop(self._settings.segment_bytes)
                self._queue_bytes.set(self._queue.nbytes)
                if len(batch):
                    started = time.monotonic()
                    await self._write(batch)
            if self._shed:  # while the PUT was being tried, of a batch or of coverage
                self._fail(Unavailable("the bucket answers again; reading again from the slot what was shed"))
                return

    async def _write(self, batch: Batch) -> None:
        if self._continuity.pending:
            return  # replays, if it is the archive's history at all; nothing is acknowledged before that is known
        self._archived(await self._archive.write(batch))
        if time.monotonic() - self._rechecked_at > self._settings.coverage_interval_s:
            await self._look_again()

    def _archived(self, lsn: int, *, idle: bool = False) -> None:
        self._progress.archived(lsn)
        self._acknowledged_at = self._covered_at = time.monotonic()
        self._vitals.archived(lsn)
        self._send_status()
        if self._feed is not None:
            self._feed.archive_advanced(lsn, idle=idle)

    async def _cover(self) -> None:
        """Idle, and the WAL went on without changes of ours: record it as covered, then acknowledge it."""
        lsn = self._progress.coverable_lsn
        if lsn is None:
            return
        waited_s = time.monotonic() - self._covered_at
        grown_bytes = lsn - self._progress.archived_lsn
        if waited_s < self._settings.coverage_interval_s and grown_bytes < self._settings.coverage_wal_bytes:
            return
        await self._look_again()
        await self._archive.write_coverage(lsn)
        crash_point("coverage_written")
        self._archived(lsn, idle=True)

    async def _look_again(self) -> None:
        """Idle or not: whether the publication still is what it was."""
        await self._recheck()
        self._rechecked_at = time.monotonic()

    async def _drain(self, archive: asyncio.Task[None]) -> None:
        """Let the archive take what was received whole; a failing bucket gets no second chance here."""
        self._queue.close()
        deadline = time.monotonic() + DRAIN_S
        while not archive.done() and time.monotonic() < deadline and not self._archive.struggling:
            crash_point("draining")
            await asyncio.wait([archive], timeout=0.05)
        if not archive.done():
            log.warning("archive_drain_abandoned", bytes=self._queue.nbytes)
            archive.cancel()

    # feedback -----------------------------------------------------------------------------------------------------

    async def _feedback_loop(self, sentinel: Sentinel | None) -> None:
        while True:
            self._send_status()
            await asyncio.sleep(self._status_interval_s)
            stalled_s = time.monotonic() - self._acknowledged_at
            if sentinel is None and self._archive.struggling and stalled_s > STALL_WITHOUT_SENTINEL_S:
                self._fail(Unavailable("acknowledgements stall and no sentinel watches for the server's shutdown"))

    def _send_status(self, *, reply_requested: bool = False) -> None:
        acknowledged = self._progress.acknowledged_lsn
        self._vitals.reported(self._progress.received_lsn, acknowledged)
        self._stream.send_status(
            self._progress.received_lsn, acknowledged, acknowledged, reply_requested=reply_requested
        )
        crash_point("status_sent")

    async def _silence_loop(self) -> None:
        while True:
            await asyncio.sleep(self._silence_s / 4)
            since = self._listening_since
            silent_s = 0.0 if since is None else time.monotonic() - since
            if silent_s < self._silence_s / 2:
                continue
            if silent_s < self._silence_s:
                self._send_status(reply_requested=True)
            elif await self._is_served():
                self._listening_since = time.monotonic()
            else:
                self._fail(Unavailable(f"the server was silent for {silent_s:.0f} s and serves us no longer"))

    async def _is_served(self) -> bool:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._still_served()
        except (TimeoutError, Unavailable):
            return False

    async def _watch(self, sentinel: Sentinel) -> None:
        await sentinel.wait_ended()
        log.info("sentinel_ended", acknowledged=format_lsn(self._progress.acknowledged_lsn))
        self._fail(Unavailable("the server ended our idle session: it is shutting down or restarting"))

    def _fail(self, error: CdcError) -> None:
        self._failure = self._failure or error
        self._end.set()
