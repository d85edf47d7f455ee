"""Watches the server's slots over one connection, and forecasts from all the looks together."""

import asyncio
from collections.abc import AsyncGenerator

from cdc.config import MonitorSettings, PostgresSettings
from cdc.errors import CdcError, Unavailable
from cdc.monitor.disk import find_disk
from cdc.monitor.meter import Meter
from cdc.monitor.report import Report, report
from cdc.postgres.observation import connect_to_watch, observe
from cdc.postgres.session import Connection

# Each statement has its own limit on the server; this one is for a network that swallows answers.
DEADLINE_S = 20.0

# A rate takes two looks: the last checkpoint stands for an earlier one, but it says nothing of the readers.
_BETWEEN_LOOKS_S = 1.0


class Watcher:
    """Looks at the slots when asked. It connects at the first look and after an error. Close it at the end."""

    def __init__(self, postgres: PostgresSettings, settings: MonitorSettings) -> None:
        self._postgres = postgres
        self._settings = settings
        self._meter = Meter()
        self._connection: Connection | None = None

    async def look(self) -> Report:
        """Look once. Raises Unavailable or Invalid; the next look then connects again."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                if self._connection is None:
                    self._connection = await connect_to_watch(self._postgres)
                observation = await observe(self._connection)
                disk = await asyncio.to_thread(find_disk, observation, self._settings.disk_path)
        except TimeoutError:
            await self.close()
            raise Unavailable("Postgres did not answer in time", hint="check postgres.dsn, and the network") from None
        except BaseException:
            await self.close()
            raise
        return report(observation, disk, self._meter, self._postgres.slot)

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


async def look(postgres: PostgresSettings, settings: MonitorSettings) -> Report:
    """Report on all slots now, with forecasts from two looks a second apart. Raises Unavailable or Invalid."""
    watcher = Watcher(postgres, settings)
    try:
        await watcher.look()
        await asyncio.sleep(_BETWEEN_LOOKS_S)
        return await watcher.look()
    finally:
        await watcher.close()


async def watch(
    postgres: PostgresSettings, settings: MonitorSettings, interval_s: float
) -> AsyncGenerator[Report | CdcError, None]:
    """Yield a report every `interval_s` seconds, or the error that kept us from one.

    The second comes within a second, because the first knows no rate.
    """
    watcher, pause_s = Watcher(postgres, settings), min(interval_s, _BETWEEN_LOOKS_S)
    try:
        while True:
            try:
                yield await watcher.look()
            except CdcError as error:
                yield error
            await asyncio.sleep(pause_s)
            pause_s = interval_s
    finally:
        await watcher.close()
