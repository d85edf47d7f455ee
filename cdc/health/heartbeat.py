"""The heartbeat measures whether the event loop turns, and whether the archive moves while WAL waits for it.

The loop is measured by how late a sleep ends. A loop that is blocked for good answers no request: every prober and the
watchdog notice that by themselves. A loop that is blocked again and again answers late: the heartbeat notices that.
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
        """Measure once a second until cancelled."""
        while True:
            self.feel(time.monotonic())
            started = time.monotonic()
            await asyncio.sleep(BEAT_S)
            self._vitals.pulse.late_s = max(0.0, time.monotonic() - started - BEAT_S)

    def feel(self, now: float) -> None:
        """Compare the vitals with those of the last beat, and note in `vitals.pulse` what moved.

        `now` is the monotonic clock's, in seconds.
        """
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
