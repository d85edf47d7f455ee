"""`cdc` as the outside sees it: processes with a configuration, an exit code, and lines of JSON on stderr.

    with Service(tmp_path, dsn=..., archive_url=...) as service:    # starts `cdc run`, and kills it at the end
        service.wait_until_archived(admin_dsn)

    cdc = Command({"CDC_ARCHIVE__URL": ...}, tmp_path)              # any command, configured by its environment
    cdc.facts("status")

Nothing here imports the implementation. "Caught up" is asked of Postgres and Redis: a logical message marks a place in
the WAL, and a sink that is past it has everything that was committed before.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import psycopg
import pytest
import redis

from tests.support.canaries import leaks, secrets_of

# How long a test waits for what happens at once on a quiet machine. A wait ends when it happens; only a bug comes here.
PATIENCE_S = 120.0

# The installed command's content, so that it runs by this interpreter whatever PATH says.
PROGRAM = "import sys; from cdc.cli import main; sys.exit(main())"
COMMAND = (sys.executable, "-c", PROGRAM)


def wait_until(
    true: Callable[[], bool], what: str | Callable[[], str], *, timeout_s: float = PATIENCE_S, poll_s: float = 0.05
) -> None:
    """Poll until it is true. Fails the test after a generous while, with what was waited for."""
    deadline_s = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline_s:
            pytest.fail(f"after {timeout_s:.0f} s still not: {what if isinstance(what, str) else what()}")
        time.sleep(poll_s)


def settled(value: Callable[[], int], *, for_s: float = 2.0, timeout_s: float = PATIENCE_S) -> int:
    """The value once it has stayed the same for so long. Fails the test if it never does."""
    last, since_s = value(), time.monotonic()

    def still() -> bool:
        nonlocal last, since_s
        now = value()
        if now != last:
            last, since_s = now, time.monotonic()
        return time.monotonic() - since_s >= for_s

    wait_until(still, f"unchanged for {for_s:.0f} s", timeout_s=timeout_s)
    return last


def parse_lsn(text: str) -> int:
    """`16/B374D848` as a number."""
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def query(dsn: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """One statement on a connection of its own; its rows, if it has any."""
    with psycopg.connect(dsn, autocommit=True, client_encoding="utf8") as connection:
        found = connection.execute(statement.encode(), parameters or None)
        return found.fetchall() if found.description else []


def postgres_version(dsn: str) -> int:
    """The server's major version."""
    return int(query(dsn, "SHOW server_version_num")[0][0]) // 10000


def needs_postgres(dsn: str, version: int) -> None:
    """Skip the test on an older server: what it is about came with this major version."""
    if postgres_version(dsn) < version:
        pytest.skip(f"this came with Postgres {version}")


def mark(dsn: str) -> int:
    """Commit a marker; whoever has confirmed this position has all that was committed before the call."""
    return parse_lsn(query(dsn, "SELECT pg_logical_emit_message(true, 'waltier.test', 'here')::text")[0][0])


def confirmed_flush_lsn(dsn: str, slot: str = "cdc") -> int:
    """What Postgres may forget; 0 while there is no slot."""
    found = query(dsn, "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s", slot)
    return parse_lsn(found[0][0]) if found and found[0][0] else 0


def install(admin_dsn: str) -> None:
    """Tables, publication and roles, as an operator installs them who pipes `cdc init --print` into psql."""
    with psycopg.connect(admin_dsn) as connection:
        connection.execute(_installation())


@cache
def _installation() -> bytes:
    """Asked once: a process takes ten times as long as its SQL, and more than a hundred tests begin with this."""
    return run_cdc("init", "--print", check=True).stdout.encode()


def run_cdc(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    check: bool = False,
    timeout_s: float = 2 * PATIENCE_S,
) -> subprocess.CompletedProcess[str]:
    """A `cdc` command to its end."""
    done = _run(arguments, {**os.environ, **(environment or {})}, timeout_s=timeout_s)
    if check and done.returncode:
        pytest.fail(f"cdc {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return done


def _run(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    directory: Path | None = None,
    stdin: str | None = None,
    timeout_s: float = 2 * PATIENCE_S,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment,
        cwd=directory,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


class Command:
    """`command("status")` runs `cdc status`; nothing of the caller's own CDC_* is inherited."""

    def __init__(self, settings: Mapping[str, str], directory: Path) -> None:
        self.settings = dict(settings)
        self.directory = directory

    def __call__(self, *arguments: str, stdin: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
        return _run(arguments, self._environment(settings), directory=self.directory, stdin=stdin)

    def facts(self, *arguments: str, **settings: str) -> Any:
        """What `--json` prints."""
        done = self(*arguments, "--json", **settings)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    @contextmanager
    def running(self, **settings: str) -> Iterator["subprocess.Popen[bytes]"]:
        """`cdc run`, killed at the end if it still runs. Its log is `run.log` in the directory."""
        with self.started("run", **settings) as process:
            yield process

    @contextmanager
    def started(self, *arguments: str, **settings: str) -> Iterator["subprocess.Popen[bytes]"]:
        """A command that goes on, killed at the end if it still runs. What it says on stderr is in `run.log`."""
        with (self.directory / "run.log").open("ab") as log:
            process = subprocess.Popen(
                [*COMMAND, *arguments],
                env=self._environment(settings),
                cwd=self.directory,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(PATIENCE_S)
            assert process.stdout is not None
            process.stdout.close()

    @property
    def log(self) -> str:
        return (self.directory / "run.log").read_text()

    def wait_until(self, true: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        """Poll until it is true; fails with the service's log."""
        wait_until(true, lambda: f"what the test waits for\n{self.log}", timeout_s=timeout_s, poll_s=0.1)

    def _environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CDC_")}
        return {**inherited, "COLUMNS": "200", **self.settings, **settings}


class Service:
    """One `cdc run`. It may be started again after it has ended; the log then goes on in the same file.

    `archive`, `postgres`, `cache`, `http` and `monitor` are options of their sections; `cache_url` None means no cache.
    Another `program` is for a service with a planted bug.
    """

    def __init__(
        self,
        directory: Path,
        *,
        dsn: str,
        archive_url: str,
        cache_url: str | None = None,
        environment: Mapping[str, str] | None = None,
        name: str = "service",
        archive: Mapping[str, object] | None = None,
        postgres: Mapping[str, object] | None = None,
        cache: Mapping[str, object] | None = None,
        http: Mapping[str, object] | None = None,
        monitor: Mapping[str, object] | None = None,
        program: str = PROGRAM,
    ) -> None:
        sections: dict[str, dict[str, object]] = {
            "postgres": {"dsn": dsn, "status_interval_s": 0.5, **(postgres or {})},
            "archive": {"url": archive_url, "linger_s": 0.2, **(archive or {})},
            "http": {"listen": "127.0.0.1:0", **(http or {})},
            "monitor": dict(monitor or {}),
        }
        if cache_url is not None:
            sections["cache"] = {"url": cache_url, **(cache or {})}
        directory.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.config_file = directory / f"{name}.toml"
        self.log_file = directory / f"{name}.log"
        self.slot = str(sections["postgres"].get("slot", "cdc"))
        self.cache_url = cache_url
        self.kills = 0
        self._program = program
        self._life_began_at = 0
        self.environment = {**os.environ, **(environment or {})}
        self._secrets = secrets_of(sections, self.environment)
        self._process: subprocess.Popen[bytes] | None = None
        self.config_file.write_text(_toml(sections))

    # Life and death.

    def start(self, environment: Mapping[str, str] | None = None) -> Self:
        """`environment` is of this life alone."""
        self._life_began_at = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-c", self._program, "run", "--config", str(self.config_file)],
                env={**self.environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        return self

    def stop(self, timeout_s: float = PATIENCE_S) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()
        self.kills += 1

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for its end; the exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the service is still running after {timeout_s:.0f} s:\n{self.log_tail()}")

    def run_to_end(self, timeout_s: float = PATIENCE_S) -> int:
        """Start it and wait for its end; the exit code."""
        return self.start().wait(timeout_s)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.running:
            self.process.kill()
            self.process.wait()
        if error is None and self.log_file.exists():
            # Whatever a test is about: no secret is ever logged.
            found = leaks({"the log": self.log_file.read_text(errors="replace")}, self._secrets)
            if found:
                pytest.fail("\n".join(found))

    # What it is seen to do.

    @property
    def process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the service was not started")
        return self._process

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def rss_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    @property
    def cpu_s(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def log(self, *, of_this_life: bool = False) -> list[dict[str, Any]]:
        """Its log, a dict a line. A line that is not JSON is a bug's traceback and stays as `{"raw": line}`."""
        told = self.log_file.read_bytes() if self.log_file.exists() else b""
        lines = told[self._life_began_at if of_this_life else 0 :].decode(errors="replace").splitlines()
        return [_json_or_raw(line) for line in lines if line.strip()]

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log() if line.get("event") == event]

    def log_tail(self, lines: int = 60) -> str:
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    def failure(self) -> dict[str, Any]:
        """The last error it logged, with `reason`, `detail` and `hint`."""
        failures = [line for line in self.log() if line.get("level") == "error" and "reason" in line]
        if not failures:
            pytest.fail(f"no error was logged:\n{self.log_tail()}")
        return failures[-1]

    def wait_for_event(self, event: str, *, more_than: int = 0, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait until this event has been logged more often than so."""
        self._wait(lambda: len(self.events(event)) > more_than, f"{event} logged", timeout_s)
        return self.events(event)[-1]

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Another `cdc` command with this service's configuration and environment, to its end."""
        return run_cdc(*arguments, "--config", str(self.config_file), environment=self.environment, check=check)

    def wait_until_archived(self, admin_dsn: str, *, timeout_s: float = PATIENCE_S) -> None:
        """Wait until everything committed before this call is acknowledged."""
        self._wait_until_acknowledged(admin_dsn, mark(admin_dsn), timeout_s)

    def archive_and_stop(self, admin_dsn: str) -> None:
        """Wait until everything committed before this call is acknowledged, and end it: exit code 0."""
        self.wait_until_archived(admin_dsn)
        assert self.stop() == 0, self.log_tail()

    def wait_until_caught_up(self, admin_dsn: str, *, timeout_s: float = PATIENCE_S) -> None:
        """Wait until everything committed before this call is in both sinks, as they themselves say."""
        target = mark(admin_dsn)
        self._wait_until_acknowledged(admin_dsn, target, timeout_s)
        if self.cache_url is not None:
            self._wait(lambda: self.cached_lsn() >= target, "cached", timeout_s)

    def _wait_until_acknowledged(self, admin_dsn: str, target: int, timeout_s: float) -> None:
        # A new slot confirms the place where it begins, before the rows of the backfill are archived.
        self.wait_for_event("streaming", timeout_s=timeout_s)
        self._wait(lambda: confirmed_flush_lsn(admin_dsn, self.slot) >= target, "archived and acknowledged", timeout_s)

    def cached_lsn(self) -> int:
        """The cache's own checkpoint; 0 if it has none or is away."""
        if self.cache_url is None:
            return 0
        try:
            with redis.Redis.from_url(self.cache_url) as client:
                lsn: Any = client.hget("cdc:meta", "lsn")
        except redis.RedisError:
            return 0
        return parse_lsn(lsn.decode()) if lsn else 0

    def _wait(self, true: Callable[[], bool], what: str, timeout_s: float) -> None:
        def true_or_over() -> bool:
            running = self.running
            if true():
                return True
            if not running:
                pytest.fail(f"the service ended with {self.process.returncode} before: {what}\n{self.log_tail()}")
            return False

        wait_until(true_or_over, lambda: f"{what}\n{self.log_tail()}", timeout_s=timeout_s)


def _json_or_raw(line: str) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except ValueError:
        return {"raw": line}
    return parsed if isinstance(parsed, dict) else {"raw": line}


def _toml(sections: Mapping[str, Mapping[str, object]]) -> str:
    """Strings, numbers and booleans; JSON spells them as TOML does."""
    return "\n".join(
        f"[{section}]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in options.items())
        for section, options in sections.items()
    )
