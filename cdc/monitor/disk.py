"""The disk of the server's WAL, if it is this machine's: how much is free, and how large it is.

That the server is here is not to be taken from its address, which may be a tunnel's or a container's. The process that
serves us must be one of this machine's, and a Postgres. Where that cannot be seen, `monitor.disk_path` says it.
"""

import os
from pathlib import Path

from cdc.monitor.forecast import Disk
from cdc.postgres.observation import Observation


def find_disk(observation: Observation, disk_path: str | None) -> Disk | None:
    """Blocks as long as the file system does. None where the disk is not ours to see."""
    if disk_path is not None:
        return _measure(Path(disk_path))
    if observation.data_directory is None or not _is_here(observation.backend_pid):
        return None
    data_directory = Path(observation.data_directory)
    # pg_wal is often a link to another disk; who may not look into the data directory sees its own.
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
