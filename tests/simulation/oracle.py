"""Works out what the cache must hold, change by change from the snapshot that it was warmed with.

The rules are those of `tests/support/cache_model.py`; the changes are the truth's. A fault of Redis itself (an
eviction, a failover that loses the last seconds) changes the oracle too, so that every key has one right value
afterwards as well.
"""

import copy
import functools
import json
from typing import Any

from cdc.cache.checkpoint import Checkpoint
from cdc.lsn import parse_lsn
from tests.simulation.history import History
from tests.support.cache_model import HISTORY, LATEST, ROW, CacheModel, Entry

Stored = tuple[bytes | dict[bytes, float], int]
"""A key's value (a string, or a sorted set's members with their scores), and when it expires (ms)."""

_TTL_MS = 1000 * max(one.ttl_s for one in (HISTORY, LATEST, ROW))
_read = functools.lru_cache(4096)(json.loads)


class Oracle:
    """The keys that the cache must hold. `history` is None while it is being filled: nothing can be said of it then."""

    def __init__(self) -> None:
        self.model = CacheModel()
        self.history: History | None = None
        self.done = (0, 0)

    def copy(self) -> "Oracle":
        other = Oracle()
        other.model, other.history, other.done = copy.deepcopy(self.model), self.history, self.done
        return other

    def forget(self) -> None:
        self.history = None

    def warmed(self, history: History, lsn: int, keys: dict[bytes, Stored], now_ms: int) -> str:
        """Check a cache that was filled from a snapshot at `lsn`, and take over its expiries.

        Returns what is wrong with it, or ''.
        """
        self.history, self.done, self.model = history, (history.count_upto(lsn), 0), CacheModel()
        rows = history.state_at(lsn).values()
        for turn in sorted(rows, key=lambda turn: (turn["pos"] or 0, turn["id"])):
            self.model.change(None, turn, now_ms)
        for name, entry in self.model.entries.items():
            expiry_ms = keys.get(name.encode(), (b"", entry.expiry_ms))[1]
            if not 0 < expiry_ms <= now_ms + _TTL_MS:
                return f"{name} lives until {expiry_ms}, and it is {now_ms}"
            entry.expiry_ms = expiry_ms
        return self.difference(keys)

    def advance(self, checkpoint: Checkpoint) -> str:
        """Apply the changes before the checkpoint. Returns what is wrong with it, or ''."""
        assert self.history is not None
        target, transactions = self._target(checkpoint), self.history.transactions
        if target < self.done:
            return f"the checkpoint went back: {target} after {self.done} ({checkpoint.describe()})"
        number, seq = self.done
        while (number, seq) < target:
            changes = transactions[number].changes
            until = target[1] if number == target[0] else len(changes)
            for change in changes[seq:until]:
                if change.op == "t":
                    self.model.entries.clear()
                elif change.op != "m":
                    self.model.change(change.old, change.new, transactions[number].time_us // 1000)
            number, seq = (number, until) if number == target[0] else (number + 1, 0)
        self.done = target
        return ""

    def _target(self, checkpoint: Checkpoint) -> tuple[int, int]:
        assert self.history is not None
        number = self.history.count_upto(parse_lsn(checkpoint.lsn.decode()))
        if not checkpoint.part:
            return number, 0
        commit_lsn, seq = checkpoint.part.decode().split(":")[:2]
        transactions, open_ = self.history.transactions, number
        while transactions[open_].commit_lsn != parse_lsn(commit_lsn):
            assert not transactions[open_].touches_rows
            open_ += 1
        return open_, int(seq)

    def difference(self, keys: dict[bytes, Stored]) -> str:
        """Describe how the keys differ from what they must be; '' if they do not."""
        if self.history is None:
            return "nobody knows what it holds"
        entries = self.model.entries
        names = {*entries, *(key.decode() for key in keys)}
        return ", ".join(
            f"{name} is {_told(keys.get(name.encode()))} instead of {entries.get(name)}"
            for name in sorted(names)
            if not _same(entries.get(name), keys.get(name.encode()))
        )


def _same(entry: Entry | None, stored: Stored | None) -> bool:
    if entry is None or stored is None:
        return entry is None and stored is None
    value, expiry_ms = stored
    if expiry_ms != entry.expiry_ms:
        return False
    if isinstance(value, bytes):
        return bool(_read(value) == entry.value)
    return [(score, _read(member)) for member, score in ordered(value)] == entry.rows


def ordered(members: dict[bytes, float]) -> list[tuple[bytes, float]]:
    """Order members as a sorted set does: by score, then by bytes."""
    return sorted(members.items(), key=lambda item: (item[1], item[0]))


def _told(stored: Stored | None) -> Any:
    return "absent" if stored is None else stored
