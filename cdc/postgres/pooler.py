"""Detects a connection pooler between us and Postgres, and reads the server's clock."""

from dataclasses import dataclass
from typing import Final

from cdc.postgres.session import Connection

_ASKED: Final = 3


@dataclass(frozen=True, slots=True)
class Backends:
    """Process ids of the server: `told_pid` was announced to us when we connected, `pids` ran our statements."""

    told_pid: int
    pids: tuple[int, ...]

    @property
    def pooled(self) -> bool:
        """True behind a pooler: it makes up the process id and cancellation key, or changes the process under us."""
        return set(self.pids) != {self.told_pid}


async def detect_pooler(connection: Connection) -> Backends:
    """Ask three times which process runs our statements. Raises Unavailable or Invalid."""
    pids = [int((await connection.one("SELECT pg_backend_pid()"))[0]) for _ in range(_ASKED)]
    return Backends(connection.backend_pid, tuple(pids))


async def read_time(connection: Connection) -> float:
    """Read the server's clock, in seconds since 1970. Raises Unavailable or Invalid."""
    (now,) = await connection.one("SELECT extract(epoch FROM clock_timestamp())::float8")
    return float(now)
