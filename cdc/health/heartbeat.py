"""Feels the pulse: whether the loop turns, and whether the archive moves while WAL waits for it.

The loop is measured by how late a sleep ends. A loop that is held for good answers nobody, which every prober and the
watchdog take for what it is; one that is held again and again answers late, and says so here.
"""

import asyncio
import time

from cdc.health.readings import Readings
from cdc.health.vitals import Phase, Vitals

BEAT_S = 1.0


class Heartbeat:
    """Writes `vitals.pulse` once a second."""

    def __init__(self, vitals: Vitals) -> None:
        self._vitals = vitals
        self._moved: tuple[float, ...] = ()
        self._tried: tuple[float, ...] = ()

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            self.feel(Readings.take(), time.time())
            started = time.monotonic()
            await asyncio.sleep(BEAT_S)
            self._vitals.pulse.late_s = max(0.0, time.monotonic() - started - BEAT_S)

    def feel(self, readings: Readings, now: float) -> None:
        """Compare with the last beat."""
        pulse, archived = self._vitals.pulse, readings.archived_lsn or 0
        streaming = self._vitals.phase is Phase.STREAMING
        pulse.waiting_bytes = max(0, (readings.received_lsn or 0) - archived) if streaming else 0
        pulse.open_gap = bool(readings.value("cdc_gap_open"))
        moved: tuple[float, ...] = (archived, readings.total("cdc_segments_total"))
        tried: tuple[float, ...] = (*moved, readings.total("cdc_puts_total"), readings.total("cdc_retries_total"))
        if moved != self._moved or not pulse.waiting_bytes:
            self._moved, pulse.moved_at = moved, now
        if tried != self._tried or not pulse.waiting_bytes:
            self._tried, pulse.tried_at = tried, now
