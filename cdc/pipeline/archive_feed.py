"""Brings every change to the archive, and notes how far the archive is. Postgres may forget what is archived here.

1. `offer` queues what was received. `make_room` makes the reader pause while the queue is full. Postgres tolerates that
   as long as status updates go out. But if the bucket is failing, the queue is **shed**, and reading goes on for the
   cache alone.
2. `run` gathers, writes and notes. It alone writes to the archive, so there is one PUT in flight. When nothing comes,
   it records **coverage**, so that a quiet publication does not hold WAL.
3. When the bucket answers after the queue was shed, `run` ends. The next connection reads again from the slot, which
   still holds everything that was not acknowledged.
4. `drain` ends a connection: what was received whole is still archived.

A feed lives as long as one replication connection.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

import structlog

from cdc import metrics
from cdc.change import Batch, Transaction
from cdc.config import ArchiveSettings
from cdc.crash import crash_point
from cdc.health.vitals import Vitals
from cdc.pipeline.continuity import Continuity
from cdc.pipeline.progress import Progress
from cdc.pipeline.queue import TransactionQueue
from cdc.pipeline.sinks import Gate

log = structlog.get_logger()

# How long the last whole transactions may take to reach the archive when a session ends. Less than the 30 s that
# container runtimes grant between SIGTERM and SIGKILL; being killed loses nothing, it only repeats work.
DRAIN_S = 20.0
# How often an idle feed checks for WAL to cover, and a paused reader for a failing bucket.
TICK_S = 0.5

Acknowledge = Callable[[int, bool], None]
"""Is called with how far the archive is, and whether it was idle: all that was received is in it."""


class ArchiveFeed:
    """Feeds `gate`, the archive's writer. `recheck` raises an error if the publication is not what it was."""

    def __init__(
        self,
        gate: Gate,
        progress: Progress,
        continuity: Continuity,
        settings: ArchiveSettings,
        recheck: Callable[[], Awaitable[None]],
        vitals: Vitals,
    ) -> None:
        self.shed = False
        self._gate = gate
        self._progress = progress
        self._continuity = continuity
        self._settings = settings
        self._recheck = recheck
        self._vitals = vitals
        self._queue = TransactionQueue(settings.queue_bytes, progress.archived_lsn)
        self._queue_bytes = metrics.queue_bytes.labels(gate.name)
        self._advanced_at = time.monotonic()
        self._rechecked_at = time.monotonic()

    @property
    def stalled_s(self) -> float:
        """Seconds for which a failing bucket has let nothing be acknowledged; 0 while it does not fail."""
        return time.monotonic() - self._advanced_at if self._gate.struggling else 0.0

    def offer(self, transactions: Iterable[Transaction]) -> None:
        """Queue what was received next; never refuses. Once the queue was shed, it is passed over."""
        if self.shed:
            return
        self._queue.put(transactions)
        self._queue_bytes.set(self._queue.nbytes)
        crash_point("transactions_queued")

    async def make_room(self) -> None:
        """Wait until the queue is below its limit. If the bucket is failing, shed the queue instead."""
        while self._queue.full:
            if self._gate.struggling:
                log.warning("archive_queue_shed", bytes=self._queue.nbytes)
                self.shed = True
                self._queue.drop()
                self._queue_bytes.set(0)
                return
            try:
                async with asyncio.timeout(TICK_S):
                    await self._queue.room()
            except TimeoutError:
                continue

    async def run(self, acknowledge: Acknowledge) -> None:
        """Archive until the queue is closed and empty, or until what was shed can be read again (`shed` says so).

        Raises Invalid, DataError, Fenced or Diverged from the archive, and what `recheck` raises.
        """
        started = 0.0
        while not (self._queue.closed and self._queue.empty):
            try:
                async with asyncio.timeout(TICK_S):
                    await self._queue.gather(self._settings.segment_bytes, started + self._settings.linger_s)
            except TimeoutError:
                await self._cover(acknowledge)
            else:
                batch = self._queue.pop(self._settings.segment_bytes)
                self._queue_bytes.set(self._queue.nbytes)
                if len(batch):
                    started = time.monotonic()
                    await self._write(batch, acknowledge)
            if self.shed:  # while the PUT was being tried, of a batch or of coverage
                return

    async def drain(self, running: asyncio.Task[None]) -> None:
        """Let `run` take what was received whole, within `DRAIN_S`. A failing bucket is not tried again here."""
        self._queue.close()
        deadline = time.monotonic() + DRAIN_S
        while not running.done() and time.monotonic() < deadline and not self._gate.struggling:
            crash_point("draining")
            await asyncio.wait([running], timeout=0.05)
        if not running.done():
            log.warning("archive_drain_abandoned", bytes=self._queue.nbytes)
            running.cancel()

    async def _write(self, batch: Batch, acknowledge: Acknowledge) -> None:
        if self._continuity.pending:
            return  # replays, if it is the archive's history at all; nothing is acknowledged before that is known
        lsn = await self._gate.write(batch)
        self._note(lsn)
        acknowledge(lsn, False)
        if time.monotonic() - self._rechecked_at > self._settings.coverage_interval_s:
            await self._look_again()

    async def _cover(self, acknowledge: Acknowledge) -> None:
        """Record as covered, then acknowledge, WAL that went by without changes of ours while we were idle."""
        lsn = self._progress.coverable_lsn
        if lsn is None:
            return
        waited_s = time.monotonic() - self._advanced_at
        grown_bytes = lsn - self._progress.archived_lsn
        if waited_s < self._settings.coverage_interval_s and grown_bytes < self._settings.coverage_wal_bytes:
            return
        await self._look_again()
        await self._gate.write_coverage(lsn)
        crash_point("coverage_written")
        self._note(lsn)
        acknowledge(lsn, True)

    def _note(self, lsn: int) -> None:
        """Note that the archive is durable up to `lsn`."""
        self._advanced_at = time.monotonic()
        self._progress.archived(lsn)
        self._vitals.archived(lsn)

    async def _look_again(self) -> None:
        await self._recheck()
        self._rechecked_at = time.monotonic()
