"""Tells systemd the service's state through $NOTIFY_SOCKET (sd_notify(3), Type=notify). Without the variable: nothing.

- `READY=1` when the service first streams or stands by. A standby is up: its work is to wait, without a limit. That it
  does not replicate is what /readyz says. Until then we extend the deadline of the start for as long as we are alive.
  Filling an archive with the rows that exist may take hours, and a Postgres that is away is waited for.
- `STATUS=` the phase and what is wrong, whenever it changes, for `systemctl status`.
- `WATCHDOG=1` at half of $WATCHDOG_USEC or sooner, from the event loop, and only while alive. A blocked loop, a dead
  task or a wedged archive lets the watchdog expire.
- `STOPPING=1` when asked to stop, and at the end.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Mapping

import structlog

from cdc.health.verdict import Health
from cdc.health.vitals import Phase, Vitals

log = structlog.get_logger()

_TICK_S = 0.5
# How much longer a start may take, counted from each EXTEND_TIMEOUT_USEC.
_EXTEND_US = 30_000_000
_UP = frozenset({Phase.STREAMING, Phase.STANDING_BY})


class Supervisor:
    """Sends the service's state to systemd. `of_environment` makes one where systemd listens."""

    def __init__(self, address: str, watchdog_s: float | None, vitals: Vitals, verdict: Callable[[], Health]) -> None:
        # "@name" is systemd's spelling of an address in Linux's abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_s = watchdog_s
        self._vitals = vitals
        self._verdict = verdict
        self._said: set[str] = set()
        self._status = ""
        self._deaf = False

    @classmethod
    def of_environment(
        cls, vitals: Vitals, verdict: Callable[[], Health], environ: Mapping[str, str] = os.environ
    ) -> "Supervisor | None":
        """Make a supervisor from the variables that systemd sets; None without $NOTIFY_SOCKET.

        A $WATCHDOG_PID of another process means that the watchdog is not for us.
        """
        address = environ.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return None
        microseconds, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        ours = microseconds.isdecimal() and int(microseconds) > 0 and pid in ("", str(os.getpid()))
        return cls(address, int(microseconds) / 1_000_000 if ours else None, vitals, verdict)

    async def run(self) -> None:
        """Send the state at every tick until cancelled; then send that we stop."""
        interval_s = _TICK_S if self._watchdog_s is None else min(_TICK_S, self._watchdog_s / 2)
        try:
            while True:
                self.tell()
                await asyncio.sleep(interval_s)
        finally:
            self._once("STOPPING=1")

    def tell(self) -> None:
        """Send the state of this moment; a message that is sent once is not repeated."""
        verdict, phase = self._verdict(), self._vitals.phase
        if phase in _UP:
            self._once("READY=1")
        if phase is Phase.STOPPING:
            self._once("STOPPING=1")
        if verdict.alive:
            self._keep_alive()
        self._show(str(verdict.reasons[0]) if verdict.reasons else f"{phase.value}, ready")

    def _keep_alive(self) -> None:
        if "READY=1" not in self._said:
            self._send(f"EXTEND_TIMEOUT_USEC={_EXTEND_US}")
        if self._watchdog_s is not None:
            self._send("WATCHDOG=1")

    def _show(self, status: str) -> None:
        if status != self._status:
            self._status = status
            self._send(f"STATUS={status}")

    def _once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self._send(message)

    def _send(self, message: str) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._deaf:
                log.warning("supervisor_unreachable", error=error.strerror)
            self._deaf = True
