"""Runs the slot watch beside the service: it looks every few seconds, keeps the last report, and never ends anything.

It has a connection of its own, so it sees the slots also while the service stands by, waits or starves. When it cannot
look, it logs that once at the beginning and once at the end. The last report stays, with its time.
"""

import asyncio
from typing import Any

import structlog

from cdc import metrics
from cdc.config import MonitorSettings, PostgresSettings
from cdc.errors import CdcError, Unavailable
from cdc.finding import Finding
from cdc.health.vitals import Positions
from cdc.monitor.gauges import Gauges
from cdc.monitor.report import Report, finite, postgres_facts, slot_facts
from cdc.monitor.watcher import Watcher

log = structlog.get_logger()

# Our slot is made during the first start, perhaps just after the first look.
_UNTIL_SEEN_S = 1.0


class Monitor:
    """Keeps the latest report, and writes `positions.server`. `run` it as a task of its own.

    `latest` is None until the first look succeeds. `mishap` is the error of the last look; None if it succeeded.
    """

    def __init__(
        self, postgres: PostgresSettings, settings: MonitorSettings, positions: Positions | None = None
    ) -> None:
        self._settings = settings
        self._positions = positions or Positions()
        self._watcher = Watcher(postgres, settings)
        self._gauges = Gauges()
        self.latest: Report | None = None
        self.mishap: CdcError | None = None
        self._seen = False

    @property
    def reasons(self) -> list[Finding]:
        """The reasons why the service is not ready, as far as slots tell; none before the first report."""
        return [] if self.latest is None else self.latest.reasons

    @property
    def warnings(self) -> list[Finding]:
        """The warnings that are not among the reasons. One of them is that the slots cannot be watched, if so."""
        reasons = self.reasons
        warnings = [] if self.latest is None else self.latest.warnings(self._settings.warn_s)
        found = [warning for warning in warnings if warning not in reasons]
        if self.mishap is not None:
            message = f"the slots cannot be watched: {self.mishap.message}"
            found.append(Finding("monitor", message, self.mishap.hint or "cdc slots"))
        return found

    @property
    def slots(self) -> list[dict[str, Any]]:
        """Every slot of the server, as `cdc slots --json` prints it."""
        found = self.latest
        return [] if found is None else [slot_facts(slot, found) for slot in found.observation.slots]

    @property
    def postgres(self) -> dict[str, Any]:
        """The server, as `cdc slots --json` prints it."""
        if self.latest is None:
            return {"wal_bytes_per_s": None, "oldest_transaction": None, "disk": None}
        return postgres_facts(self.latest)

    @property
    def retained_bytes(self) -> int | None:
        """WAL that our slot keeps; None where it is unknown, or infinite because the slot is lost."""
        return None if self.latest is None else self.latest.retained_bytes

    @property
    def limit_bytes(self) -> int | None:
        """`max_slot_wal_keep_size`; None if it is unlimited."""
        return None if self.latest is None else finite(self.latest.observation.keep_bytes)

    async def run(self) -> None:
        """Look at every interval until cancelled."""
        try:
            while True:
                await self._look()
                await asyncio.sleep(self._pause_s)
        finally:
            await self._watcher.close()

    @property
    def _pause_s(self) -> float:
        """Seconds until the next look: soon until our slot was seen, unless the last look failed."""
        soon = not self._seen and self.mishap is None
        return min(self._settings.interval_s, _UNTIL_SEEN_S) if soon else self._settings.interval_s

    async def _look(self) -> None:
        try:
            self.latest = await self._watcher.look()
            self._positions.server = self.latest.observation.wal_lsn
            self._seen = self._seen or self.latest.has_ours
            self._gauges.show(self.latest)
        except CdcError as error:
            self._failed(error)
        except Exception as bug:
            # It must not cost the replication, which is what is watched here.
            log.exception("monitor_crashed")
            self._failed(Unavailable(f"the monitor crashed ({type(bug).__name__})", hint="report it, with the log"))
        else:
            self._succeeded()

    def _succeeded(self) -> None:
        if self.mishap is not None:
            log.info("monitor_recovered")
        self.mishap = None
        metrics.monitor_up.set(1)

    def _failed(self, error: CdcError) -> None:
        if self.mishap is None or self.mishap.message != error.message:
            log.warning("monitor_failed", reason=error.message, detail=error.detail, hint=error.hint)
        self.mishap = error
        metrics.errors.labels("monitor", type(error).__name__).inc()
        metrics.monitor_up.set(0)
