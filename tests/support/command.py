"""The `cdc` command as an operator has it: a process of its own, with its configuration in the environment."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PROGRAM = "import sys; from cdc.cli import main; sys.exit(main())"


class Command:
    """`command("status")` runs `cdc status`; nothing of the caller's own CDC_* is inherited."""

    def __init__(self, settings: Mapping[str, str], directory: Path) -> None:
        self.settings = dict(settings)
        self.directory = directory

    def __call__(self, *arguments: str, stdin: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", _PROGRAM, *arguments],
            env=self._environment(settings),
            cwd=self.directory,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

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
                [sys.executable, "-c", _PROGRAM, *arguments],
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
            process.wait(60)
            assert process.stdout is not None
            process.stdout.close()

    @property
    def log(self) -> str:
        return (self.directory / "run.log").read_text()

    def wait_until(self, true: Callable[[], bool], timeout_s: float = 60) -> None:
        """Poll until it is true; fails with the service's log."""
        deadline = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)

    def _environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CDC_")}
        ours = {"PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "200"}
        return {**inherited, **ours, **self.settings, **settings}
