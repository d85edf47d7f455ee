"""Notices that a server has fallen silent. TCP's own deadlines miss that where a middle box swallows bytes.

After half of `silence_s` the server is asked to answer. After all of it another connection asks the server whether its
WAL sender still serves us. If it does, the wait begins again: a decode that is silent for minutes is healthy.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from cdc.errors import Unavailable

# How long the other connection may take to say whether our WAL sender lives.
ANSWER_S = 10.0


class Silence:
    """Watches one connection. Only the time between `listening` and `heard` counts."""

    def __init__(self, silence_s: float, still_served: Callable[[], Awaitable[bool]]) -> None:
        self._silence_s = silence_s
        self._still_served = still_served
        self._listening_since: float | None = None

    def listening(self) -> None:
        """Note that the reader waits for bytes from now on."""
        self._listening_since = time.monotonic()

    def heard(self) -> None:
        """Note that bytes came. The time that the reader then takes is not the server's silence."""
        self._listening_since = None

    async def run(self, ask: Callable[[], None]) -> Unavailable:
        """Watch until the server is gone; return the error that says so. `ask` makes it answer if it can."""
        while True:
            await asyncio.sleep(self._silence_s / 4)
            since = self._listening_since
            silent_s = 0.0 if since is None else time.monotonic() - since
            if silent_s < self._silence_s / 2:
                continue
            if silent_s < self._silence_s:
                ask()
            elif await self._is_served():
                self._listening_since = time.monotonic()
            else:
                return Unavailable(f"the server was silent for {silent_s:.0f} s and serves us no longer")

    async def _is_served(self) -> bool:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._still_served()
        except (TimeoutError, Unavailable):
            return False
