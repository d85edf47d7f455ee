"""Barriers measure the recovery point: marks are written into the WAL, and arrive when the archive holds their place.

The measure does not rely on our own counts of what was received or waits. Anything that keeps the archive from
following, known or unknown, keeps a barrier from arriving. One barrier is under way at a time, so a day without a
bucket writes one. Only a service that streams writes barriers: a standby does not know the archive of the other one.

The first comes one interval after the stream began: a service that is started again and again writes none.
"""

import asyncio
import time
from datetime import UTC, datetime

import structlog

from cdc import metrics
from cdc.config import PostgresSettings
from cdc.errors import CdcError, Unavailable
from cdc.health.vitals import Barrier, Phase, SourceFacts, Vitals
from cdc.postgres.message import connect_for_barriers, emit_barrier
from cdc.postgres.session import Connection

log = structlog.get_logger()

# The pause between two checks for the barrier under way, and so the resolution of the measured times.
TICK_S = 0.05
# The statement has its own limit on the server; this one is for a network that swallows answers.
DEADLINE_S = 20.0


class Barriers:
    """Writes barriers and notes in `vitals.recovery` which of them the archive holds. `run` it as a task of its own."""

    def __init__(self, postgres: PostgresSettings, interval_s: float, vitals: Vitals) -> None:
        self._postgres = postgres
        self._interval_s = interval_s
        self._vitals = vitals
        self._upstream: SourceFacts | None = None
        self._written = 0
        self._due_at = time.monotonic() + interval_s
        self._refusal = ""
        self._connection: Connection | None = None

    async def run(self) -> None:
        """Write a barrier at every interval, and check for the one under way, until cancelled."""
        try:
            while True:
                self.look(time.time())
                if self._is_due():
                    await self._write()
                await asyncio.sleep(TICK_S if self._vitals.recovery.waiting else min(1.0, self._interval_s / 4))
        finally:
            await self._close()

    def look(self, now: float) -> None:
        """Note whether the barrier under way has arrived, and forget what was measured of another server.

        `now` is Unix time in seconds.
        """
        vitals, recovery = self._vitals, self._vitals.recovery
        if vitals.upstream != self._upstream or vitals.phase is Phase.STANDING_BY:
            self._upstream, recovery.waiting, recovery.proved_at = vitals.upstream, None, None
            self._due_at = time.monotonic() + self._interval_s
        waiting = recovery.waiting
        if waiting is not None and vitals.positions.archived >= waiting.lsn:
            recovery.waiting, recovery.proved_at = None, waiting.at
            metrics.barrier_s.observe(max(0.0, now - waiting.at))

    def _is_due(self) -> bool:
        streaming = self._vitals.phase is Phase.STREAMING
        return streaming and self._vitals.recovery.waiting is None and time.monotonic() >= self._due_at

    async def _write(self) -> None:
        self._due_at = time.monotonic() + self._interval_s
        try:
            await self._emit()
        except CdcError as error:
            self._failed(error)
        except Exception as bug:
            # It must not cost the replication, which is what is measured here.
            log.exception("barrier_crashed")
            self._failed(Unavailable(f"the barrier crashed ({type(bug).__name__})", hint="report it, with the log"))
        else:
            self._refusal = ""

    async def _emit(self) -> None:
        at = time.time()
        try:
            async with asyncio.timeout(DEADLINE_S):
                if self._connection is None:
                    self._connection = await connect_for_barriers(self._postgres)
                text = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
                lsn = await emit_barrier(self._connection, self._written, text)
        except TimeoutError:
            await self._close()
            raise Unavailable("Postgres did not answer in time", hint="check postgres.dsn, and the network") from None
        except BaseException:
            await self._close()
            raise
        self._written += 1
        self._vitals.recovery.waiting = Barrier(lsn, at)

    def _failed(self, error: CdcError) -> None:
        metrics.errors.labels("barrier", type(error).__name__).inc()
        if error.message != self._refusal:
            log.warning("barrier_failed", reason=error.message, detail=error.detail, hint=error.hint)
        self._refusal = error.message

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
