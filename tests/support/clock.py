"""Another day for a process: what libfaketime (Debian: faketime) is told, and what it cannot do."""

import os
import select
import time
from pathlib import Path

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")

SHIFTED = "faketime" in os.environ.get("LD_PRELOAD", "")
"""Whether the clock of this run of the suites is shifted, as `.ci/run` does once."""


def shifted_environment(offset: str | Path) -> dict[str, str]:
    """The environment of a process whose clock is `offset` (`+400d`, `-3h`) away; only its monotonic one is right.

    A path names a file that holds the offset, which is looked at once a second.
    """
    environment = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    if isinstance(offset, Path):
        return environment | {"FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_CACHE_DURATION": "1"}
    return environment | {"FAKETIME": offset}


def sleep_as_told() -> None:
    """Make `time.sleep` work in a shifted process.

    libfaketime 0.9.10 shifts the absolute moment that it waits for, although the clock of that moment is the one that
    was to be left alone: each sleep is refused with EINVAL. select() waits for a span of time.
    """
    if SHIFTED:
        time.sleep = lambda seconds: select.select([], [], [], float(seconds)) and None
