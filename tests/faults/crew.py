"""The services of a round, and their supervisor: whoever ends without being told to is written down and started again.

A fault tells the crew what it does to a service (`kill`, `terminate`, `replace`), so that the ends it brings about are
counted and every other end is a finding: an exit code nobody expects, or a log line that is no JSON, which is a bug's
traceback. After a few of those it gives up, for nothing more would be learnt.
"""

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from tests.faults.background import Background
from tests.faults.trouble import Findings
from tests.support.cdc_process import Service

_POLL_S = 0.05
_END_S = 60.0
_MOST_UNEXPECTED = 4
FENCED = 75


class Crew(Background):
    """Start with `with`. `make` gives a new service of this name, not started; one is at work, and is `main`."""

    def __init__(self, make: Callable[[str], Service], findings: Findings) -> None:
        self.starts = 0
        self.given_up = False
        self.exits: Counter[str] = Counter()
        self._make = make
        self._findings = findings
        self._services: list[Service] = []
        self._all: list[Service] = []
        self._unexpected = 0
        self._expected: dict[Service, int] = {}
        self._lock = threading.RLock()
        super().__init__("supervisor")

    @property
    def main(self) -> Service:
        return self._services[0]

    def recruit(self) -> Service:
        """Start one more service, last in the line."""
        service = self._make(f"service-{len(self._all) + 1}")
        with self._lock:
            self._services.append(service)
            self._all.append(service)
            self._start(service)
        return service

    def kill(self, service: Service, *, restart: bool = True) -> None:
        """SIGKILL, and its successor at once; without a restart it leaves the crew."""
        with self._lock:
            if service.running:
                service.kill()
            self.exits["killed"] += 1
            if restart:
                self._start(service)
            elif service in self._services:
                self._leave(service)

    def arm(self, service: Service, crash_at: str) -> None:
        """Start it anew, to die by its own hand at this passing of this point (cdc/crash.py)."""
        with self._lock:
            self._expected[service] = -signal.SIGKILL
            service.kill()
            self._start(service, {"CDC_CRASH_AT": crash_at})

    def disarm(self, service: Service) -> None:
        """Whether it came to that point or not."""
        with self._lock:
            code, expected = service.process.poll(), self._expected.pop(service)
            if code is None:
                self.kill(service)
                return
            self.exits["crash point"] += 1
            if code != expected:
                self._findings.add(f"{service.name} ended with {code} before its crash point", service.log_tail(5))
            self._start(service)

    def terminate(self, service: Service) -> None:
        """SIGTERM: it must end, and with 0. Then it is started again."""
        with self._lock:
            self._expected[service] = 0
            service.process.terminate()
        self._await_end(service, "SIGTERM")
        with self._lock:
            self._start(service)

    def dismiss_zombie(self, zombie: Service) -> None:
        """It was suspended while another one took over: bucket or slot tell it so, and it ends with 75 by itself."""
        with self._lock:
            self._expected[zombie] = FENCED
            zombie.resume()
        self._await_end(zombie, "being fenced")
        with self._lock:
            self._leave(zombie)

    def _await_end(self, service: Service, why: str) -> None:
        deadline_s = time.monotonic() + _END_S
        while service.running and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        with self._lock:
            expected = self._expected.pop(service)
            if service.running:
                self._findings.add(f"{service.name} is still running {_END_S:.0f} s after {why}")
                service.kill()
                return
            code = service.process.returncode
            if _too_young(service, code):
                self.exits["terminated in its start"] += 1
                return
            self.exits[str(code)] += 1
            if code != expected:
                self._findings.add(f"{service.name} ended with {code} after {why}, not {expected}", service.log_tail(5))

    def _leave(self, service: Service) -> None:
        self._services.remove(service)
        if not self._services:
            self.recruit()

    def _start(self, service: Service, environment: Mapping[str, str] | None = None) -> None:
        service.start(environment)
        self.starts += 1

    def _run(self) -> None:
        while not self._stopping.wait(_POLL_S):
            with self._lock:
                for service in list(self._services):
                    if not service.running and service not in self._expected:
                        self._note_end(service)

    def _note_end(self, service: Service) -> None:
        code = service.process.returncode
        self.exits[str(code)] += 1
        if code == FENCED and len(self._services) > 1:  # of two, whoever loses its connection may lose its place
            self._leave(service)
            return
        self._findings.add(f"{service.name} ended with {code} by itself", service.log_tail(5))
        self._unexpected += 1
        self.given_up = self._unexpected >= _MOST_UNEXPECTED
        if self.given_up:
            self._expected[service] = code
            return
        time.sleep(_POLL_S)
        self._start(service)

    def __enter__(self) -> Self:
        self.recruit()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()
        for service in self._all:
            service.resume()
            service.__exit__(None, None, None)
        for service in self._all:
            self._read_log(service)

    def stop(self) -> None:
        """At the end of a round, with nothing wrong any more: everyone ends with 0."""
        self._end()
        for service in list(self._services):
            if service.running:
                self._expected[service] = 0
                service.process.terminate()
                self._await_end(service, "the last SIGTERM")

    def _read_log(self, service: Service) -> None:
        bugs = [line for line in service.log() if "raw" in line or "exception" in line]
        if bugs:
            self._findings.add(f"{service.name} logged a bug, {len(bugs)} lines", "\n".join(map(_text, bugs[:60])))


def _too_young(service: Service, code: int) -> bool:
    """SIGTERM found a Python that was still importing, with no handler yet."""
    return code == -signal.SIGTERM and not service.log(of_this_life=True)


def _text(line: dict[str, Any]) -> str:
    return str(line.get("raw") or line.get("exception"))
