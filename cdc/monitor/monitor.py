"""The slot watch as a task beside the service: looks every few seconds, keeps the last report, and never ends anything.

It has a connection of its own, so that it sees the slots also while the service stands by, waits or starves. That
nobody can look is said once, when it begins, and once when it ends; the last report stays, with its time.
"""

import asyncio

import structlog

from cdc import metrics
from cdc.config import MonitorSettings, PostgresSettings
from cdc.errors import CdcError, Unavailable
from cdc.monitor.gauges import Gauges
from cdc.monitor.report import Notice, Report
from cdc.monitor.watcher import Watcher

log = structlog.get_logger()


class Monitor:
    """`run` it as a task of its own. `latest` is None until the first look succeeded, `mishap` while they do."""

    def __init__(self, postgres: PostgresSettings, settings: MonitorSettings) -> None:
        self._settings = settings
        self._watcher = Watcher(postgres, settings)
        self._gauges = Gauges()
        self.latest: Report | None = None
        self.mishap: CdcError | None = None

    @property
    def reasons(self) -> list[Notice]:
        """Why the service is not ready, as far as slots can tell."""
        return [] if self.latest is None else self.latest.reasons

    @property
    def warnings(self) -> list[Notice]:
        """What somebody should look at, ready or not."""
        found = [] if self.latest is None else self.latest.warnings(self._settings.warn_s)
        if self.mishap is not None:
            message = f"the slots cannot be watched: {self.mishap.message}"
            found.append(Notice("monitor", message, self.mishap.hint or "cdc slots"))
        return found

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            while True:
                await self._look()
                await asyncio.sleep(self._settings.interval_s)
        finally:
            await self._watcher.close()

    async def _look(self) -> None:
        try:
            self.latest = await self._watcher.look()
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
