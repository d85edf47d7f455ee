"""The program under test: the real `cdc run` in a process of its own, and what /proc says of that process."""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cdc.embedded.process import ServerProcess
from cdc.errors import Unavailable

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_STOP_S = 60
_MAIN = "import sys; from cdc.cli import main; sys.exit(main())"
CHECKOUT = Path(__file__).parents[2]


def cpu_s(pid: int) -> float:
    """CPU seconds a process has used so far, in user and system mode, by all threads (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def children_cpu_s() -> float:
    """CPU seconds that ended children of this process have used."""
    times = os.times()
    return times.children_user + times.children_system


class Subject:
    """Started when made. `root` is the directory whose `cdc` is run: the checkout, or a compiled copy of it."""

    def __init__(
        self,
        configuration: Path,
        log_path: Path,
        root: Path = CHECKOUT,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        variables = [f"{name}={value}" for name, value in {"PYTHONPATH": root, **(environment or {})}.items()]
        python = ["/usr/bin/env", "-C", str(root), *variables, sys.executable, "-c", _MAIN]
        argv = [*python, "run", "--config", str(configuration)]
        self._process = ServerProcess(argv, log_path, death_signal=signal.SIGTERM)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.running

    def poll(self) -> int | None:
        return self._process.exit_code

    def check_running(self) -> None:
        if not self.running:
            raise Unavailable("cdc run ended by itself", detail=self._process.last_words())

    def cpu_s(self) -> float:
        return cpu_s(self.pid)

    def peak_bytes(self) -> int:
        """The most memory it has held (VmHWM) since it started or since `forget_peak`."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024

    def forget_peak(self) -> None:
        """Begin the peak again from what is held now (proc(5), clear_refs)."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def stop(self) -> None:
        """SIGTERM, and wait. Raises Unavailable if it ended in any other way than well."""
        self.check_running()
        self._process.send(signal.SIGTERM)
        self._process.wait(_STOP_S)
        if self._process.exit_code != 0:
            detail = self._process.last_words()
            raise Unavailable(f"cdc run ended with exit code {self._process.exit_code}", detail=detail)

    def kill(self) -> None:
        if self.running:
            self._process.kill()


def wait_until(
    what: str, ready: Callable[[], bool], subject: Subject, timeout_s: float = 300, poll_s: float = 0.02
) -> None:
    """Poll until `ready()` is true. Raises TimeoutError, or Unavailable if the subject ends first."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        subject.check_running()
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(poll_s)
