"""Another day for a process: what libfaketime (Debian: faketime) is told, and what it cannot do.

python -m tests.support.clock +400d make test     # a command, and what it starts, 400 days from now
"""

import os
import sys
from pathlib import Path

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")

SHIFTED = "faketime" in os.environ.get("LD_PRELOAD", "")
"""Whether the clock of this run of the suites is shifted (`make shifted`)."""


def shifted_environment(offset: str | Path) -> dict[str, str]:
    """The environment of a process whose clock is `offset` (`+400d`, `-3h`) away; only its monotonic one is right.

    A path names a file that holds the offset, which is looked at once a second.
    """
    environment = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).with_name("shifted")), str(Path(__file__).parents[2])]),
    }
    if isinstance(offset, Path):
        return environment | {"FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_CACHE_DURATION": "1"}
    return environment | {"FAKETIME": offset}


def main(offset: str, *command: str) -> None:
    if not FAKETIME.exists():
        sys.exit(f"{FAKETIME} is not there: apt-get install faketime")
    os.execvpe(command[0], command, {**os.environ, **shifted_environment(offset)})


if __name__ == "__main__":
    main(*sys.argv[1:])
