"""Measures how long a commit takes to arrive, from outside: it looks where a reader would look.

The clock starts when COMMIT returns to the application. For the cache it stops when the row's key is there, which is
polled. For the archive it stops when the object that holds the row got its name in the directory, a time that the file
system remembers. Commits are sampled, because asking for all of them would load what is being measured.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from cdc.archive.format.header import Header
from cdc.archive.format.object_key import log_key
from cdc.archive.format.segment import decode_segment
from cdc.cache.reader import CacheReader
from cdc.demo.workload import Commit

# One sample at a time, and a pause between two, so that the meter costs little of what it measures.
_PAUSE_S = 0.05
_POLL_S = 0.0005
_ARCHIVE_POLL_S = 0.02
# A row that is deleted or gets another key before we look never appears.
_GIVE_UP_S = 5.0
# Enough for a p99 of the last minute or so.
_KEPT = 1000


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest value that `percent` of the values do not exceed; None for no values."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)] if ordered else None


class CacheMeter:
    """Follows one commit at a time to its row's key."""

    def __init__(self, reader: CacheReader) -> None:
        self.latencies_s: deque[float] = deque(maxlen=_KEPT)
        self._reader = reader
        self._next: asyncio.Queue[Commit] = asyncio.Queue(maxsize=1)

    def offer(self, commit: Commit) -> None:
        """Take the commit as a sample if none is being followed."""
        if commit.turn_id is not None and self._next.empty():
            self._next.put_nowait(commit)

    async def run(self) -> None:
        while True:
            while not self._next.empty():
                self._next.get_nowait()
            commit = await self._next.get()
            await self._follow(commit)
            await asyncio.sleep(_PAUSE_S)

    async def _follow(self, commit: Commit) -> None:
        while not await self._reader.exists(f"turn:{commit.turn_id}"):
            if time.time() - commit.committed_at > _GIVE_UP_S:
                return
            await asyncio.sleep(_POLL_S)
        self.latencies_s.append(time.time() - commit.committed_at)


class ArchiveMeter:
    """Reads each segment as it appears, and notes the archive's position and the samples in it."""

    def __init__(self, directory: Path) -> None:
        self.latencies_s: deque[float] = deque(maxlen=_KEPT)
        self.segments = 0
        self.bytes = 0
        self.transactions = 0
        self.changes = 0
        self.tail: Header | None = None
        self.last_commit_lsn = 0
        self._directory = directory
        self._waiting: dict[bytes, float] = {}
        self._sampled_at = 0.0

    def offer(self, commit: Commit) -> None:
        """Take the commit as a sample if the last one is long enough ago."""
        if commit.turn_id is not None and commit.committed_at - self._sampled_at > _PAUSE_S:
            self._sampled_at = commit.committed_at
            self._waiting[commit.turn_id.encode()] = commit.committed_at

    async def run(self) -> None:
        while True:
            found = self.look()
            await asyncio.sleep(0 if found else _ARCHIVE_POLL_S)

    def look(self) -> bool:
        """Read the next segment if it is there; returns whether it was."""
        path = self._directory / log_key(self.segments)
        try:
            durable_at, data = path.stat().st_ctime, path.read_bytes()
        except FileNotFoundError:
            return False
        segment = decode_segment(data)
        self.segments += 1
        self.bytes += len(data)
        self.transactions += segment.header.transactions
        self.changes += segment.header.changes
        self.tail = segment.header
        self.last_commit_lsn = max(self.last_commit_lsn, segment.header.last_lsn)
        self._settle(b"\n".join(segment.lines), durable_at)
        return True

    def _settle(self, lines: bytes, durable_at: float) -> None:
        for turn_id in [turn_id for turn_id in self._waiting if turn_id in lines]:
            self.latencies_s.append(max(0.0, durable_at - self._waiting.pop(turn_id)))
