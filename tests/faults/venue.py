"""Where a round is played: which servers, which bucket, and which limits of memory. The seed's first dice decide.

What this machine cannot offer (Debian's older servers, libfaketime, a file system of its own that can be filled) is
left out of the dice and named in `missing`, so that a report says what was not tried.
"""

import random
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.support.clock import FAKETIME
from tests.support.servers import DEBIAN_POSTGRES_BIN, DEBIAN_REDIS

MIB = 1024 * 1024


@cache
def can_mount() -> bool:
    """Whether we may have a mount namespace, in which we mount what we like; it goes with its last process."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def missing() -> dict[str, str]:
    """What cannot be tried here, and why."""
    found = {}
    if not can_mount():
        found["disk_full"] = "needs a mount namespace, as root has it"
    if not FAKETIME.exists():
        found["clock_steps"] = "needs libfaketime (Debian: faketime)"
    if not (DEBIAN_POSTGRES_BIN / "postgres").exists():
        found["Postgres 15"] = "not installed"
    if not DEBIAN_REDIS.exists():
        found["Debian's Redis"] = "not installed"
    return found


@dataclass(frozen=True)
class Venue:
    on_disk: bool = False
    clock: bool = False
    postgres_bin: Path | None = None
    redis_program: Path | None = None
    archive: dict[str, object] = field(default_factory=dict)
    cache: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        words = ["directory" if self.on_disk else "bucket"]
        words += ["shifted clock"] if self.clock else []
        words += ["Postgres 15"] if self.postgres_bin else []
        words += ["Debian's Redis"] if self.redis_program else []
        return ", ".join(words)


def choose_venue(dice: random.Random) -> Venue:
    rolls = [dice.random() for _ in range(4)]
    lacking = missing()
    return Venue(
        on_disk=rolls[0] < 0.25 and "disk_full" not in lacking,
        clock=rolls[1] < 0.4 and "clock_steps" not in lacking,
        postgres_bin=DEBIAN_POSTGRES_BIN if rolls[2] < 0.25 and "Postgres 15" not in lacking else None,
        redis_program=DEBIAN_REDIS if rolls[3] < 0.25 and "Debian's Redis" not in lacking else None,
        archive={
            "segment_bytes": dice.choice([256 * 1024, MIB, 16 * MIB]),
            "queue_bytes": dice.choice([MIB, 8 * MIB, 32 * MIB]),
            "linger_s": dice.choice([0.05, 0.2, 1.0]),
            "put_timeout_s": 2.0,
            "coverage_interval_s": 1,
        },
        cache={
            "queue_bytes": dice.choice([MIB, 16 * MIB]),
            "batch_rows": dice.choice([20, 500]),
            "timeout_s": 1.0,
        },
    )
