"""A third sink, as a stranger would write it from `cdc/pipeline/sinks.py` alone: a journal of all changes, in SQLite.

Changes and position move in one transaction of SQLite, so that neither can be ahead of the other. Pieces of a large
transaction are applied as they come; `part_commit_lsn` and `part_seq` say how far.
"""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from cdc.change import Batch, Change, RowChange, Transaction
from cdc.errors import Moved
from cdc.position import Epoch, Position

_TABLES = """
CREATE TABLE IF NOT EXISTS journal (commit_lsn INTEGER, seq INTEGER, op TEXT, key BLOB, row BLOB);
CREATE TABLE IF NOT EXISTS position (epoch TEXT, lsn INTEGER, part_commit_lsn INTEGER, part_seq INTEGER);
"""


class SqliteSink:
    """A `Follower`: `fill` is what its service would call for a warm-up."""

    name = "sqlite"

    def __init__(self, path: Path, epoch: Epoch) -> None:
        self.epoch = epoch
        self.position: Position | None = None
        self._path = path
        self._database: sqlite3.Connection | None = None

    async def open(self) -> Position | None:
        await self.close()
        self._database = sqlite3.connect(self._path)
        self._database.executescript(_TABLES)
        query = "SELECT lsn, part_commit_lsn, part_seq FROM position WHERE epoch = ?"
        found = self._database.execute(query, (str(self.epoch),)).fetchone()
        self.position = None if found is None else Position(self.epoch, *found)
        return self.position

    async def fill(self, changes: Sequence[RowChange], position: Position) -> None:
        """Begin with the rows of a snapshot that shows the database at `position`."""
        with self._transaction() as database:
            database.execute("DELETE FROM journal")
            for change in changes:
                self._note(position.lsn, change)
            self._stand(position)
        self.position = position

    async def write(self, batch: Batch) -> int:
        position = self._required_position()
        with self._transaction():
            for piece in batch:
                if not self._covers(position, piece):
                    position = self._apply(piece, position)
            self._stand(position)
        self.position = position
        return position.lsn

    async def advance(self, lsn: int) -> int:
        position = self._required_position()
        if lsn > position.lsn and not position.part_commit_lsn:
            position = Position(self.epoch, lsn)
            with self._transaction():
                self._stand(position)
        self.position = position
        return position.lsn

    async def close(self) -> None:
        if self._database is not None:
            self._database.close()
        self._database = None

    def _covers(self, position: Position, piece: Transaction) -> bool:
        return piece.commit_lsn < position.lsn

    def _apply(self, piece: Transaction, position: Position) -> Position:
        from_seq = position.part_seq if position.part_commit_lsn else 0
        if position.part_commit_lsn not in (0, piece.commit_lsn) or piece.first_seq > from_seq:
            raise Moved("the stream passed over changes")
        for change in piece.changes:
            if change.seq >= from_seq:
                self._note(piece.commit_lsn, change)
        return self._position_after(piece, position)

    def _position_after(self, piece: Transaction, position: Position) -> Position:
        if piece.last:
            return Position(self.epoch, piece.end_lsn)
        next_seq = max(position.part_seq, piece.first_seq + len(piece.changes))
        return Position(self.epoch, position.lsn, piece.commit_lsn, next_seq)

    def _note(self, commit_lsn: int, change: Change) -> None:
        if isinstance(change, RowChange):
            values = (commit_lsn, change.seq, change.op, change.key, change.after)
            self._transaction().execute("INSERT INTO journal VALUES (?, ?, ?, ?, ?)", values)

    def _stand(self, position: Position) -> None:
        database = self._transaction()
        database.execute("DELETE FROM position")
        values = (str(self.epoch), position.lsn, position.part_commit_lsn, position.part_seq)
        database.execute("INSERT INTO position VALUES (?, ?, ?, ?)", values)

    def _transaction(self) -> sqlite3.Connection:
        """As a context manager it commits, or rolls back at an error."""
        if self._database is None:
            raise Moved("the sink must be opened first")
        return self._database

    def _required_position(self) -> Position:
        if self.position is None:
            raise Moved("the sink has no position to go on from")
        return self.position


def read_journal(path: Path) -> list[tuple[int, int, str, bytes, bytes | None]]:
    """Commit LSN, number in the transaction, operation, key and row of every change, in the order of writing."""
    database = sqlite3.connect(path)
    try:
        return database.execute("SELECT * FROM journal ORDER BY rowid").fetchall()
    finally:
        database.close()
