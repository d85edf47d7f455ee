"""The dead man's switch: while the service is ready it calls an address again and again, so that silence means trouble.

The receiver is an uptime service or another machine. It hears nothing when we are not ready, when we are gone, and when
the network between us is down. No alert of ours could say that. The address is a secret, because the usual ones hold a
token in their path: it is in no log line and no error.
"""

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus

import aiohttp
import structlog

from cdc import __version__
from cdc.health.verdict import Health

log = structlog.get_logger()

_TIMEOUT = aiohttp.ClientTimeout(total=10.0)


class Ping:
    """Sends a GET to `url` every `interval_s` seconds while the verdict is ready."""

    def __init__(self, url: str, interval_s: float, verdict: Callable[[], Health]) -> None:
        self._url = url
        self._interval_s = interval_s
        self._verdict = verdict
        self._outcome = ""

    async def run(self) -> None:
        """Call the address at every interval until cancelled."""
        async with aiohttp.ClientSession(timeout=_TIMEOUT, headers={"User-Agent": f"waltier/{__version__}"}) as session:
            while True:
                started = time.monotonic()
                self._note(await self._call(session) if self._verdict().ready else "withheld: not ready")
                await asyncio.sleep(max(0.0, self._interval_s - (time.monotonic() - started)))

    async def _call(self, session: aiohttp.ClientSession) -> str:
        """Call once. Return the outcome, in words that hold nothing of the address."""
        try:
            async with session.get(self._url, allow_redirects=False) as response:
                return "accepted" if response.status < HTTPStatus.MULTIPLE_CHOICES else f"status {response.status}"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return f"failed: {type(error).__name__}"

    def _note(self, outcome: str) -> None:
        """Log an outcome that differs from the last one."""
        if outcome == self._outcome:
            return
        self._outcome = outcome
        quiet = outcome == "accepted" or outcome.startswith("withheld")
        (log.info if quiet else log.warning)("ping", outcome=outcome)
