"""Runs an embedded Postgres for a while, in a directory of its own below the temporary one, and removes it all.

If this process is killed, the server ends too, but its directory stays. A process holds a lock on a file in the
directory that it uses, and the kernel releases the lock when the process ends. So the next process removes directories
of its own user that are not locked.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Final

from cdc.embedded.postgres import PostgresServer

PREFIX: Final = "waltier-drill-"

_LOCK = "lock"

# Nothing here need survive a crash: the data is read once and removed.
_SETTINGS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "wal_level": "minimal"} | {
    "max_wal_senders": "0", "max_wal_size": "1GB",
}  # fmt: skip


@contextlib.asynccontextmanager
async def scratch_server() -> AsyncIterator[str]:
    """Start a server and yield its superuser's DSN. Raises Invalid where no server can run."""
    await asyncio.to_thread(remove_leftovers)
    directory, lock = await asyncio.to_thread(_make_directory)
    try:
        async with PostgresServer(directory / "postgres", settings=_SETTINGS) as server:
            yield server.dsn()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        lock.close()


def _make_directory() -> tuple[Path, IO[str]]:
    directory = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = (directory / _LOCK).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    directory.chmod(0o755)  # an unprivileged Postgres must reach its data in here
    return directory, lock


def remove_leftovers() -> None:
    """Remove the directories of drills that were killed."""
    for directory in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if directory.lstat().st_uid != os.geteuid() or directory.is_symlink():
                continue
            with (directory / _LOCK).open("r+") as lock:
                if _is_free(lock):
                    shutil.rmtree(directory, ignore_errors=True)


def _is_free(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
