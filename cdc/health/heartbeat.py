"""Feels the pulse: whether the loop turns, and whether the archive moves while WAL waits for it.

The loop is measured by how late a sleep ends. A loop that is held for good answers nobody, which every prober and the
watchdog take for what it is; one that is held again and again answers late, and says so here.
"""

import asyncio
import time

from cdc.health.vitals import Phase, Vitals

BEAT_S = 1.0


class Heartbeat:
    """Writes `vitals.pulse` once a second."""

    def __init__(self, vitals: Vitals) -> None:
        self._vitals = vitals
        self._moved: tuple[int, ...] = ()
        self._tried: tuple[int, ...] = ()

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            self.feel(time.time())
            started = time.monotonic()
            await asyncio.sleep(BEAT_S)
            self._vitals.pulse.late_s = max(0.0, time.monotonic() - started - BEAT_S)

    def feel(self, now: float) -> None:
        """Compare with the last beat."""
        pulse, positions, archive = self._vitals.pulse, self._vitals.positions, self._vitals.archive
        streaming = self._vitals.phase is Phase.STREAMING
        pulse.waiting_bytes = max(0, positions.received - positions.archived) if streaming else 0
        pulse.open_gap = archive.open_gap
        moved = (positions.archived, archive.segments)
        tried = (*moved, archive.puts, archive.retries)
        if moved != self._moved or not pulse.waiting_bytes:
            self._moved, pulse.moved_at = moved, now
        if tried != self._tried or not pulse.waiting_bytes:
            self._tried, pulse.tried_at = tried, now
