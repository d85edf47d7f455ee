"""Feeds the cache from the queue, the archive or a snapshot. It may be away for hours and never holds the slot.

1. `open`: the cache itself says how far it is. If it says nothing (new, flushed, evicted, another epoch), it is
   **warmed** from a Postgres snapshot at a known LSN.
2. While that position is short of where the live queue begins, it **catches up** from the archive.
3. Then it **follows** the live queue. When the queue overflows, it is dropped, and the feed goes back to 2. When the
   cache is away, the feed tries again with backoff and goes back to 1.

Only a bug here can end the service: this feed expects `Unavailable` and `Moved`, and goes on after them.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Protocol

import structlog

from cdc import metrics
from cdc.change import Batch, Transaction
from cdc.crash import crash_point
from cdc.errors import Invalid, Moved, Unavailable
from cdc.health.vitals import CacheState, Vitals
from cdc.pipeline.queue import Since, TransactionQueue
from cdc.pipeline.sinks import Follower
from cdc.position import Epoch, Position

log = structlog.get_logger()

# A healthy cache that is slower than a burst may make the reader wait this long. Then its queue is dropped. Without a
# limit the cache would hold the slot; if the queue were dropped at once, the cache would read everything twice.
PATIENCE_S = 1.0
BACKOFF_FIRST_S, BACKOFF_LAST_S = 0.1, 5.0
BATCH_BYTES = 4 * 1024 * 1024


class _ColdCacheError(Exception):
    """The archive does not lead from the cache's position to the queue: the cache must be filled from a snapshot."""


class ArchiveLog(Protocol):
    """The archive as a source of transactions. `covered_upto` is how far the last reading has come."""

    covered_upto: int

    def transactions(self, after: Position | None) -> AsyncIterator[Transaction]:
        """Read the transactions after a position, in order, to the present end.

        Raises Moved where transactions alone do not lead on from there (a snapshot or a gap), and Unavailable.
        """
        ...


class CacheFeed:
    """Brings every change to the cache, in order, from the queue, the archive or a snapshot.

    `warm_up` fills the opened sink from a snapshot, and returns the sink's position after it.
    """

    def __init__(
        self,
        sink: Follower,
        reader: ArchiveLog,
        warm_up: Callable[[], Awaitable[Position]],
        queue_bytes: int,
        vitals: Vitals,
    ) -> None:
        self.state = CacheState.OPENING
        self._vitals = vitals
        vitals.cache_state = self.state
        self.queue = TransactionQueue(queue_bytes)
        self._sink = sink
        self._reader = reader
        self._warm_up = warm_up
        self._held: tuple[Since, Batch] | None = None
        self._archive_advanced = asyncio.Event()
        self._covered_lsn = 0
        self._cold = False
        self._queue_bytes = metrics.queue_bytes.labels(sink.name)

    @property
    def epoch(self) -> Epoch:
        """The history that the cache's positions belong to."""
        return self._sink.epoch

    def restart(self, since_lsn: int) -> None:
        """Begin with a new replication connection, which will send everything after `since_lsn` again."""
        self._held = None
        # The last connection's coverage says nothing about the changes that this one is about to send again.
        self._covered_lsn = 0
        self.queue.restart(since_lsn)

    async def offer(self, transactions: Iterable[Transaction]) -> None:
        """Queue live transactions. Waits for room for `PATIENCE_S` at most, and only while the cache is at work."""
        self.queue.put(transactions)
        self._queue_bytes.set(self.queue.nbytes)
        if not self.queue.full:
            return
        if self.state in (CacheState.OPENING, CacheState.LIVE):
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self.queue.room()
            except TimeoutError:
                pass
            else:
                return
        log.info("cache_queue_dropped", state=self.state.value, bytes=self.queue.nbytes)
        self.queue.drop()
        self._queue_bytes.set(self.queue.nbytes)

    def archive_advanced(self, covered_lsn: int, *, idle: bool = False) -> None:
        """Note that the archive holds more, up to `covered_lsn`.

        `idle` says that it holds everything that was received. Then the cache's position may go there too.
        """
        self._archive_advanced.set()
        if idle:
            self._covered_lsn = covered_lsn
            self.queue.wake()

    async def run(self) -> None:
        """Feed the cache until cancelled, or until the queue is closed and empty."""
        backoff_s = BACKOFF_FIRST_S
        while not (self.queue.closed and self.queue.empty and self._held is None):
            try:
                await self._bring_up()
                backoff_s = BACKOFF_FIRST_S
                await self._follow()
            except _ColdCacheError as cold:
                log.warning("cache_cannot_catch_up", reason=str(cold))
                self._cold = True
            except Moved as moved:
                metrics.errors.labels(self._sink.name, "Moved").inc()
                log.warning("cache_checkpoint_moved", reason=moved.message)
                await asyncio.sleep(BACKOFF_FIRST_S)
            except (Unavailable, Invalid) as error:
                # Invalid too: at the start it ends the service, but a password that is changed later must not.
                self._enter(CacheState.AWAY)
                metrics.retries.labels(sink=self._sink.name).inc()
                metrics.errors.labels(self._sink.name, type(error).__name__).inc()
                log.warning("cache_unavailable", reason=error.message, hint=error.hint, retry_s=round(backoff_s, 1))
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, BACKOFF_LAST_S)

    async def close(self) -> None:
        """Close the connection to the cache."""
        await self._sink.close()

    def _enter(self, state: CacheState) -> None:
        if state is not self.state:
            log.info("cache_state", state=state.value, previous=self.state.value)
        self.state = state
        self._vitals.cache_state = state

    def _since(self) -> Since:
        return self.queue.since if self._held is None else self._held[0]

    async def _bring_up(self) -> None:
        position = await self._sink.open()
        if position is None or self._cold:
            self._enter(CacheState.WARMING)
            metrics.warm_ups.inc()
            position = await self._warm_up()
            self._cold = False
        self._vitals.positions.cached = position.lsn
        while not self._since().reached_by(position):
            if self.state is not CacheState.CATCHING_UP:
                self._enter(CacheState.CATCHING_UP)
                metrics.catch_ups.inc()
            position = await self._catch_up(position)

    async def _catch_up(self, position: Position) -> Position:
        """Apply what the archive holds beyond `position`; wait for more if the archive ends before the queue begins."""
        self._archive_advanced.clear()
        pieces: list[Transaction] = []
        nbytes = 0
        async for piece in self._archived(position):
            pieces.append(piece)
            nbytes += piece.nbytes
            if nbytes >= BATCH_BYTES:
                await self._write(Batch(pieces))
                crash_point("catch_up_applied")
                pieces, nbytes = [], 0
        if pieces:
            await self._write(Batch(pieces))
        crash_point("catch_up_applied")
        await self._advance(self._reader.covered_upto)
        position = self._sink_position()
        if not self._since().reached_by(position):
            try:
                async with asyncio.timeout(BACKOFF_LAST_S):
                    await self._archive_advanced.wait()
            except TimeoutError:
                pass
        return position

    async def _archived(self, position: Position) -> AsyncIterator[Transaction]:
        try:
            async for piece in self._reader.transactions(position):
                yield piece
        except Moved as moved:
            # A snapshot or a gap lies between: transactions alone do not lead across it.
            raise _ColdCacheError(moved.message) from moved

    def _sink_position(self) -> Position:
        position = self._sink.position
        if position is None:
            raise Moved("the cache lost its checkpoint while it was being brought up")
        return position

    async def _write(self, batch: Batch) -> None:
        self._vitals.positions.cached = await self._sink.write(batch)

    async def _advance(self, lsn: int) -> None:
        self._vitals.positions.cached = await self._sink.advance(lsn)

    async def _follow(self) -> None:
        """Write what the queue brings until the sink can no longer go on with the queue."""
        self._enter(CacheState.LIVE)
        while True:
            if self._held is None:
                await self.queue.wait()
                since = self.queue.since
                if not since.reached_by(self._sink_position()):
                    return
                batch = self.queue.pop(BATCH_BYTES)
                self._queue_bytes.set(self.queue.nbytes)
                if len(batch):
                    self._held = (since, batch)
            if self._held is not None:
                await self._write(self._held[1])
                self._held = None
            elif self._covered_lsn > self._sink_position().lsn:
                # The checkpoint may go there only while nothing is queued. If that fails, `wake` makes us check again.
                self.queue.wake()
                await self._advance(self._covered_lsn)
            if self.queue.closed and self.queue.empty:
                return
