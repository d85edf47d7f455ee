"""What the cache must hold, in plain Python and one change at a time: the oracle of the cache's tests.

It is written from the rules in `cdc/cache/projection.py`, and shares nothing with the code that keeps them.
"""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from cdc.cache.connection import Connection
from cdc.cache.sink import CacheSink
from cdc.change import CREATE, DELETE, UPDATE, Batch, Change, Column, Relation, RowChange, Transaction, Truncate
from cdc.config import CacheSettings, HistoryProjection, LatestProjection, RowProjection
from cdc.position import Epoch, Position
from cdc.row import Row

TURNS = Relation(
    16385,
    "public",
    "turns",
    "f",
    [
        Column("id", "bigint", 20, -1, True),
        Column("turn_id", "text", 25, -1, False),
        Column("session_hash", "text", 25, -1, False),
        Column("pos", "integer", 23, -1, False),
        Column("content", "text", 25, -1, False),
        Column("created_at", "timestamp with time zone", 1184, -1, False),
    ],
)

HISTORY = HistoryProjection(table="public.turns", key="session:{session_hash}:turns", order_by="pos", limit=3)
ROW = RowProjection(table="public.turns", key="turn:{turn_id}")
LATEST = LatestProjection(
    table="public.turns", key="session:{session_hash}:state", order_by="pos", columns=("id", "pos", "content")
)
PROJECTIONS = (HISTORY, ROW, LATEST)

EPOCH = Epoch("7", 1)
START = Position(EPOCH, 8)
"""Where a cache stands that was warmed with `snapshot()`, before the first transaction."""
NOW_US = time.time_ns() // 1000

Turn = dict[str, Any]


def turn(id: int, session: str | None = "a", pos: int | None = None, content: str = "hello", **other: Any) -> Turn:
    return {
        "id": id,
        "turn_id": f"t{id}",
        "session_hash": session,
        "pos": id if pos is None else pos,
        "content": content,
        "created_at": "2026-11-22 18:07:13.802498+00",
        **other,
    }


def row_of(turn: Turn) -> Row:
    return [None if value is None else str(value).encode() for value in turn.values()]


async def snapshot(*turns: Turn, relation: Relation = TURNS) -> AsyncIterator[tuple[Relation, list[Row]]]:
    """The rows as a warm-up is given them, two at a time."""
    for first in range(0, len(turns), 2):
        yield relation, [row_of(turn) for turn in turns[first : first + 2]]


def created(turn: Turn, seq: int = 0) -> RowChange:
    return RowChange(CREATE, seq, TURNS, row_of(turn), None)


def updated(old: Turn, new: Turn, seq: int = 0) -> RowChange:
    return RowChange(UPDATE, seq, TURNS, row_of(new), row_of(old))


def deleted(turn: Turn, seq: int = 0) -> RowChange:
    return RowChange(DELETE, seq, TURNS, None, row_of(turn))


def truncated(seq: int = 0, relation: Relation = TURNS) -> Truncate:
    return Truncate(seq, relation, cascade=False, restart_identity=False)


def transaction(number: int, commit_time_us: int, *changes: Change) -> Transaction:
    """Transaction `number` (from 1) ends at LSN `number * 16 + 8`; changes are numbered anew."""
    for seq, change in enumerate(changes):
        change.seq = seq
    lsn = number * 16
    return Transaction(number, lsn, commit_time_us, list(changes), end_lsn=lsn + 8, nbytes=sum(map(_nbytes, changes)))


def _nbytes(change: Change) -> int:
    row = change.new if isinstance(change, RowChange) else None
    return 100 + sum(len(value) for value in row or () if isinstance(value, bytes))


def end_lsn(number: int) -> int:
    return number * 16 + 8


def pieces(whole: Transaction, *cuts: int) -> list[Transaction]:
    """The transaction in pieces, cut before the changes with these numbers."""
    edges = [0, *cuts, len(whole.changes)]
    return [
        Transaction(
            whole.xid,
            whole.commit_lsn,
            whole.commit_time_us,
            whole.changes[first:last],
            first_seq=first,
            end_lsn=whole.end_lsn if last == len(whole.changes) else 0,
            last=last == len(whole.changes),
        )
        for first, last in pairwise(edges)
    ]


@dataclass
class Entry:
    """One key: a string's object, or a history's rows with their scores, oldest first."""

    expiry_ms: int
    value: Turn | None = None
    rows: list[tuple[float, Turn]] = field(default_factory=list)


class CacheModel:
    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def apply(self, batch: Batch) -> None:
        for piece in batch:
            for change in piece.changes:
                self._apply(change, piece.commit_time_us // 1000)

    def _apply(self, change: Change, commit_ms: int) -> None:
        if isinstance(change, Truncate):
            if change.relation.qualified_name == "public.turns":
                self.entries.clear()
        elif isinstance(change, RowChange) and change.relation.qualified_name == "public.turns":
            self.change(_turn_of(change.old), _turn_of(change.new), commit_ms)

    def change(self, old: Turn | None, new: Turn | None, commit_ms: int) -> None:
        self._row(old, new, commit_ms + ROW.ttl_s * 1000)
        self._history(old, new, commit_ms + HISTORY.ttl_s * 1000)
        self._latest(old, new, commit_ms + LATEST.ttl_s * 1000)

    def _row(self, old: Turn | None, new: Turn | None, expiry_ms: int) -> None:
        if old is not None:
            self.entries.pop(f"turn:{old['turn_id']}", None)
        if new is not None:
            self.entries[f"turn:{new['turn_id']}"] = Entry(expiry_ms, value=new)

    def _history(self, old: Turn | None, new: Turn | None, expiry_ms: int) -> None:
        old_key, new_key = _session_key(old, "turns"), _session_key(new, "turns")
        was_there = self._leave(old_key, old)
        if new is None or new_key is None or new["pos"] is None:
            return
        moved = old is not None and old["pos"] != new["pos"] and new_key in self._histories
        if old_key != new_key or was_there or moved:
            entry = self.entries.setdefault(new_key, Entry(expiry_ms))
            entry.expiry_ms = expiry_ms
            entry.rows.append((float(new["pos"]), new))
            entry.rows.sort(key=lambda item: (item[0], json.dumps(item[1]).replace(": ", ":").replace(", ", ",")))
            del entry.rows[: -HISTORY.limit]
        self._drop_empty(new_key)

    @property
    def _histories(self) -> set[str]:
        return {key for key, entry in self.entries.items() if entry.value is None}

    def _leave(self, key: str | None, old: Turn | None) -> bool:
        """Take a row out of its history. The key stays for a moment, so that an empty one keeps its place."""
        entry = self.entries.get(key) if key is not None else None
        if entry is None or old is None or all(row != old for _, row in entry.rows):
            return False
        entry.rows = [(score, row) for score, row in entry.rows if row != old]
        if key is not None:
            self._drop_empty(key)
        return True

    def _drop_empty(self, key: str) -> None:
        entry = self.entries.get(key)
        if entry is not None and entry.value is None and not entry.rows:
            del self.entries[key]

    def _latest(self, old: Turn | None, new: Turn | None, expiry_ms: int) -> None:
        old_key, new_key = _session_key(old, "state"), _session_key(new, "state")
        if old_key is not None and old_key != new_key and old is not None:
            self._unless_newer(old_key, old)
        if new is None or new_key is None:
            return
        chosen = {name: new[name] for name in ("pos", "id", "content")}
        stored = self.entries.get(new_key)
        stored_pos = None if stored is None or stored.value is None else stored.value["pos"]
        if old_key != new_key:  # new here; one from elsewhere cannot be known to be the newest of an absent key
            newest = old is None if stored_pos is None else new["pos"] is not None and stored_pos <= new["pos"]
            if new["pos"] is not None and newest:
                self.entries[new_key] = Entry(expiry_ms, value=chosen)
        elif old is not None and stored_pos is not None:
            same = old["pos"] == stored_pos
            if new["pos"] is not None and new["pos"] >= stored_pos and (same or new["pos"] != old["pos"]):
                self.entries[new_key] = Entry(expiry_ms, value=chosen)
            elif same:
                del self.entries[new_key]

    def _unless_newer(self, key: str, old: Turn) -> None:
        stored = self.entries.get(key)
        if stored is not None and stored.value is not None and stored.value["pos"] == old["pos"]:
            del self.entries[key]


def _session_key(turn: Turn | None, kind: str) -> str | None:
    return None if turn is None or turn["session_hash"] is None else f"session:{turn['session_hash']}:{kind}"


def _turn_of(row: Row | None) -> Turn | None:
    if row is None:
        return None
    values = [value.decode() if isinstance(value, bytes) else None for value in row]
    turn = dict(zip([column.name for column in TURNS.columns], values, strict=True))
    return {name: int(value) if value is not None and name in ("id", "pos") else value for name, value in turn.items()}


async def command(sink: CacheSink, *words: str) -> object:
    """A plain command, as a reader of the cache sends it."""
    return await sink._connection.call(*(word.encode() for word in words))


async def read_cache(settings: CacheSettings) -> dict[str, Entry]:
    """Every key of the cache but the checkpoint, as the model keeps them."""
    connection = Connection(settings)
    try:
        keys: list[bytes] = await connection.call(b"KEYS", b"*")
        return {key.decode(): await _read(connection, key) for key in keys if key != b"cdc:meta"}
    finally:
        await connection.close()


async def _read(connection: Connection, key: bytes) -> Entry:
    expiry_ms = int(await connection.call(b"PEXPIRETIME", key))
    if (await connection.call(b"TYPE", key)) in (b"string", "string"):
        return Entry(expiry_ms, value=json.loads(await connection.call(b"GET", key)))
    members = await connection.call(b"ZRANGE", key, b"0", b"-1", b"WITHSCORES")
    return Entry(expiry_ms, rows=[(float(score), json.loads(member)) for member, score in members])
