"""Measures the disk of the server's WAL, if it is on this machine: the free space and the size.

The server's address does not prove that it is here: it may be a tunnel's or a container's. The process that serves us
must run on this machine and be a Postgres. Where that cannot be seen, `monitor.disk_path` says it.
"""

import os
from pathlib import Path

from cdc.monitor.forecast import Disk
from cdc.postgres.observation import Observation


def find_disk(observation: Observation, disk_path: str | None) -> Disk | None:
    """Measure the disk; None where it is not on this machine, or cannot be read. Blocks as the file system does."""
    if disk_path is not None:
        return _measure(Path(disk_path))
    if observation.data_directory is None or not _is_here(observation.backend_pid):
        return None
    data_directory = Path(observation.data_directory)
    # pg_wal is often a link to another disk. Without the right to look into the data directory, its own disk is taken.
    return _measure(data_directory / "pg_wal") or _measure(data_directory)


def _measure(path: Path) -> Disk | None:
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return Disk(free_bytes=found.f_bavail * found.f_frsize, total_bytes=found.f_blocks * found.f_frsize)


def _is_here(backend_pid: int) -> bool:
    """Postgres writes its process titles as `postgres: role database address state`."""
    try:
        return Path(f"/proc/{backend_pid}/cmdline").read_bytes().startswith(b"postgres:")
    except OSError:
        return False
