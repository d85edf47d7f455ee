"""Lists what a person can run beside the demo and after it. Every program is one that this machine has.

The `cdc` of an environment is seldom on the path, so it is named with its directory where it is not.
"""

import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cdc.demo.stage import Stage, own_command


@dataclass(frozen=True, slots=True)
class Command:
    """A command to paste, and what it shows."""

    what: str
    text: str


def live_commands(stage: Stage) -> Iterator[Command]:
    """Yield the commands for a demo that runs."""
    psql = _program("psql", beside=stage.postgres.bin_dir)
    client = _program("valkey-cli", "redis-cli", beside=stage.valkey.bin_dir)
    if psql:
        yield Command("the tables", f"{psql} {stage.dsn} -c 'SELECT * FROM turns LIMIT 5'")
    if client:
        client = f"{client} -p {stage.valkey.port}"
        yield Command("a key", f"{client} RANDOMKEY")
        yield Command("a session's last turns", f"{client} ZREVRANGE session:SESSION_HASH:turns 0 9")
    yield Command("all is well?", f"{_cdc()} status --config {stage.configuration}")
    if _program("curl"):
        yield Command("is it ready?", f"curl {stage.address}readyz")


def later_commands(stage: Stage) -> Iterator[Command]:
    """Yield the commands for what the demo leaves behind."""
    cdc = _cdc()
    yield Command("its segments", f"{cdc} archive ls --config {stage.configuration}")
    yield Command("verify again", f"{cdc} archive verify --config {stage.configuration}")
    if _program("zstdcat") and _program("jq"):
        yield Command("every change", f"zstdcat {stage.archive}/log/*.zst | jq -c 'select(.op)' | head")
    else:
        yield Command("every change", f"{cdc} archive cat --config {stage.configuration} | head")
    yield Command("what the service said", f"{_program('jq .', 'cat')} {stage.service_log}")
    yield Command("remove it all", f"rm -r {stage.directory}")


def _cdc() -> str:
    """The command of this installation: `cdc` where the path leads to it, else with its directory."""
    own = own_command()
    found = shutil.which("cdc")
    return "cdc" if found and len(own) == 1 and Path(found).samefile(own[0]) else shlex.join(own)


def _program(*commands: str, beside: Path | None = None) -> str:
    """The first command whose program can be run, in a directory of its own or from the path; '' if none can."""
    for command in commands:
        name = command.partition(" ")[0]
        if beside is not None and os.access(beside / name, os.X_OK):
            return str(beside / command)
        if shutil.which(name):
            return command
    return ""
