"""Starts, watches and signals one server process, which ends when this process does.

Servers get a session of their own, so that Ctrl-C at a terminal reaches us first and we stop them in order. They get
a death signal from the kernel, so that even SIGKILL leaves no orphan (`launch.py`). That signal comes when the *thread*
dies that started the process (prctl(2), PR_SET_PDEATHSIG). So one thread, which lives as long as we do, starts all of
them, and `start()` may be called from a worker thread.
"""

import enum
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from random import SystemRandom

import psutil

from cdc.errors import Invalid, Unavailable

NOBODY = 65534

# Below the range from which the kernel gives ports to clients (32768 and up): connections that are opened during a
# restart do not take the server's port.
_PORTS = range(20_000, 32_000)

_POLL_S = 0.01


class Identity(enum.Enum):
    """The user as which a server runs; see `launch.py`."""

    SAME = "same"
    USER_NAMESPACE = "userns"
    NOBODY = "nobody"


_Task = tuple[Sequence[str], Path, Future["subprocess.Popen[bytes]"]]


@cache
def _spawner() -> "queue.SimpleQueue[_Task]":
    tasks: queue.SimpleQueue[_Task] = queue.SimpleQueue()

    def spawn_all() -> None:
        while True:
            argv, log_path, spawned = tasks.get()
            try:
                with log_path.open("ab") as output:
                    process = subprocess.Popen(
                        argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                    )
                spawned.set_result(process)
            except OSError as error:
                spawned.set_exception(error)

    threading.Thread(target=spawn_all, name="embedded-spawner", daemon=True).start()
    return tasks


def launch_argv(argv: Sequence[str], identity: Identity, death_signal: signal.Signals) -> list[str]:
    """Make the command line that runs `argv` as `identity`; the kernel sends it `death_signal` when we end."""
    launcher = Path(__file__).with_name("launch.py")
    return [
        sys.executable, "-I", "-S", str(launcher), str(os.getpid()), identity.value, str(int(death_signal)), *argv
    ]  # fmt: skip


def run(argv: Sequence[str], identity: Identity = Identity.SAME, *, timeout_s: float = 60) -> str:
    """Run a program to its end and return what it printed. Raises Unavailable if it fails."""
    try:
        finished = subprocess.run(
            launch_argv(argv, identity, signal.SIGKILL),
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{argv[0]} does not run", detail=str(error)) from error
    output = finished.stdout.decode(errors="replace").strip()
    if finished.returncode != 0:
        raise Unavailable(f"{argv[0]} failed with exit code {finished.returncode}", detail=output[-2000:])
    return output


def _works(identity: Identity) -> bool:
    try:
        run([shutil.which("true") or "/bin/true"], identity)
    except Unavailable:
        return False
    return True


@cache
def unprivileged_identities() -> tuple[Identity, ...]:
    """List the ways in which we can run a program that refuses root here, best first. Raises Invalid if none works."""
    if os.geteuid() != 0:
        return (Identity.SAME,)
    working = tuple(filter(_works, (Identity.USER_NAMESPACE, Identity.NOBODY)))
    if not working:
        raise Invalid(
            "Postgres does not run as root, and this machine lets root become nobody else",
            detail="neither a user namespace nor a change to the user nobody is permitted here",
            hint="run as an ordinary user: useradd -m waltier && su waltier -c 'make demo'",
        )
    return working


def free_port() -> int:
    """Find a port on 127.0.0.1 where nothing listens."""
    random = SystemRandom()
    for _ in range(200):
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Unavailable(f"no free port on 127.0.0.1 between {_PORTS.start} and {_PORTS.stop}")


class ServerProcess:
    """A running server and its children."""

    def __init__(
        self, argv: Sequence[str], log_path: Path, *, identity: Identity = Identity.SAME, death_signal: signal.Signals
    ) -> None:
        self._log_path = log_path
        self._log_start = log_path.stat().st_size if log_path.exists() else 0
        spawned: Future[subprocess.Popen[bytes]] = Future()
        _spawner().put((launch_argv(argv, identity, death_signal), log_path, spawned))
        self._process = spawned.result()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The exit code: None while the process runs, negative if a signal ended it."""
        return self._process.poll()

    def listens_on(self, port: int) -> bool:
        """True if this process, and not another one, holds the port."""
        try:
            connections = psutil.Process(self.pid).net_connections("inet")
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True  # a hardened /proc: then the server's answer must do
        return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)

    def last_words(self) -> str:
        """The end of the server's log since its start, for an error's detail."""
        with self._log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")[-2000:].strip()

    def send(self, signal_number: signal.Signals) -> None:
        self._process.send_signal(signal_number)

    def wait(self, timeout_s: float) -> None:
        """Wait until the server and its children are gone. Raises Unavailable if they are not after `timeout_s`."""
        children = self._children()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"pid {self.pid} has not ended within {timeout_s} s", detail=self.last_words()) from error
        psutil.wait_procs(children, timeout=timeout_s)

    def kill(self) -> None:
        """Send SIGKILL, and wait for the children: those of Postgres hold the shared memory until they notice."""
        self.send(signal.SIGKILL)
        self.wait(timeout_s=60)

    def _children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


def wait_for(what: str, ready: Callable[[], bool], process: ServerProcess, timeout_s: float) -> None:
    """Poll `ready` until it returns true. Raises Unavailable if the server ends before, or after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if not process.running:
            raise Unavailable(f"{what} ended while it started", detail=process.last_words())
        if time.monotonic() > deadline:
            raise Unavailable(f"{what} is not ready after {timeout_s} s", detail=process.last_words())
        time.sleep(_POLL_S)
