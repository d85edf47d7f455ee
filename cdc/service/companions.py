"""Runs tasks beside the service, and never inside it: heartbeat, history, slot watch, barriers, HTTP, ping, systemd.

Each is a task with a name that lives as long as the service. If one ends, that is a bug. It is logged at once, and the
service counts as no longer alive (`/livez`, the watchdog). It goes on replicating until its supervisor restarts it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine

import structlog

from cdc.config import Settings
from cdc.health.heartbeat import Heartbeat
from cdc.health.ping import Ping
from cdc.health.systemd import Supervisor
from cdc.health.verdict import Budget, Health, judge
from cdc.health.vitals import Now, Vitals
from cdc.monitor.barriers import Barriers
from cdc.monitor.monitor import Monitor
from cdc.web.exposition import Exposition
from cdc.web.history import History
from cdc.web.server import WebServer
from cdc.web.status import Status

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def companions(settings: Settings, vitals: Vitals) -> AsyncIterator[None]:
    """Run the tasks while the `async with` lasts. Raises Invalid for an address that this machine does not have."""
    monitor, budget = Monitor(settings.postgres, settings.monitor, vitals.positions), Budget.of(settings)
    history = History(lambda: monitor.retained_bytes)

    def verdict() -> Health:
        return judge(vitals, Now.take(), budget, reasons=monitor.reasons, warnings=monitor.warnings)

    status = Status(settings, vitals, history, monitor)
    server = WebServer(settings, verdict, status, Exposition(vitals, status))
    supervisor, ping_url = Supervisor.of_environment(vitals, verdict), settings.http.ping_url
    async with TaskKeeper(vitals) as keeper, server:
        keeper.start("heartbeat", Heartbeat(vitals).run())
        keeper.start("history", history.run())
        keeper.start("monitor", monitor.run())
        if settings.monitor.barrier_interval_s:
            keeper.start("barriers", Barriers(settings.postgres, settings.monitor.barrier_interval_s, vitals).run())
        if supervisor is not None:
            keeper.start("supervisor", supervisor.run())
        if ping_url is not None:
            keeper.start("ping", Ping(ping_url.get_secret_value(), settings.http.ping_interval_s, verdict).run())
        yield


class TaskKeeper:
    """Runs tasks that must not end. A task that ends is written down in `vitals.pulse.dead`."""

    def __init__(self, vitals: Vitals) -> None:
        self._vitals = vitals
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, work: Coroutine[None, None, None]) -> None:
        """Run `work` as a task of this name until the keeper ends."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._note_end)
        self._tasks.append(task)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        self._vitals.pulse.dead[task.get_name()] = type(error).__name__ if error else "nothing"
        log.error("task_died", task=task.get_name(), exc_info=error)

    async def __aenter__(self) -> "TaskKeeper":
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
