"""Sorts entries by key outside of memory, if there are more than memory holds.

Entries gather in memory. When all `Runs` of a `Sorter` together hold too much, each writes its entries, sorted, as a
run into a temporary directory. Reading merges the runs. Many runs are first merged into a longer one, so that only a
few files are open at a time. The directory is made when it is first needed, and removed with the sorter.
"""

import heapq
import struct
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

# The memory for the entries of all runs, and that of one entry beside its bytes: a tuple and two objects.
_MEMORY_BYTES: Final = 32 * 1024 * 1024
_ENTRY_BYTES: Final = 200

# The number of files that are merged at once.
_FAN_IN: Final = 16
_FILE_BUFFER_BYTES: Final = 64 * 1024

_HEAD = struct.Struct("<QII")


class Entry(NamedTuple):
    """A key and a value. Several entries of one key differ in `order`: no two have the same."""

    key: bytes
    order: int
    value: bytes


class Sorter:
    """Owns the memory and the directory that any number of `Runs` share. Raises OSError where there is no room."""

    def __init__(self, memory_bytes: int = _MEMORY_BYTES) -> None:
        self._memory_bytes = memory_bytes
        self._held_bytes = 0
        self._runs: list[Runs] = []
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0
        self._closed = False

    def new_runs(self) -> "Runs":
        runs = Runs(self)
        self._runs.append(runs)
        return runs

    def held(self, nbytes: int) -> None:
        """Count `nbytes` more in memory; if that is too much, write everything to files."""
        self._held_bytes += nbytes
        if self._held_bytes > self._memory_bytes:
            for runs in self._runs:
                runs.spill()
            self._held_bytes = 0

    def write(self, entries: Iterable[Entry]) -> Path:
        """Write sorted entries to a new file. Raises OSError if there is no room."""
        if self._closed:
            raise OSError("the sorter is closed")
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="waltier-")
        self._files += 1
        path = Path(self._directory.name, f"{self._files}.run")
        with path.open("wb", buffering=_FILE_BUFFER_BYTES) as file:
            for key, order, value in entries:
                file.write(_HEAD.pack(order, len(key), len(value)) + key + value)
        return path

    def close(self) -> None:
        """Remove the directory; nothing can be read any more. May be called again."""
        directory, self._directory = self._directory, None
        self._runs, self._closed = [], True
        if directory is not None:
            directory.cleanup()

    def __enter__(self) -> "Sorter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Runs:
    """Entries to sort. Iterating gives all of them, sorted by key and order."""

    def __init__(self, sorter: Sorter) -> None:
        self._sorter = sorter
        self._entries: list[Entry] = []
        self._levels: list[list[Path]] = []

    def add(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._sorter.held(len(entry.key) + len(entry.value) + _ENTRY_BYTES)

    def spill(self) -> None:
        """Write what is held in memory. Runs of one length are merged into a longer one when there are many."""
        if not self._entries:
            return
        self._entries.sort()
        path, self._entries = self._sorter.write(self._entries), []
        for level in range(len(self._levels) + 1):
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(path)
            if len(self._levels[level]) < _FAN_IN:
                return
            full, self._levels[level] = self._levels[level], []
            path = self._sorter.write(heapq.merge(*map(_read, full)))
            for merged in full:
                merged.unlink()

    def __iter__(self) -> Iterator[Entry]:
        paths = [path for level in self._levels for path in level]
        return heapq.merge(*map(_read, paths), iter(sorted(self._entries)))


def _read(path: Path) -> Iterator[Entry]:
    with path.open("rb", buffering=_FILE_BUFFER_BYTES) as file:
        while head := file.read(_HEAD.size):
            order, key_bytes, value_bytes = _HEAD.unpack(head)
            yield Entry(file.read(key_bytes), order, file.read(value_bytes))
