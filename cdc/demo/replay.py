"""Replays the archive's transactions in order into empty tables, to see what they should hold. Pure.

A change that does not fit the state before it is a fault of the archive. It is counted, never passed over: the insert
of a row that is there already (a duplicate), or the update or delete of a row that is not (a loss).
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from cdc.change import DELETE, UPDATE, LogicalMessage, Relation, RowChange, Transaction, Truncate
from cdc.row import ABSENT, Row, Value

Key = tuple[Value, ...]


class Replay:
    """The tables by qualified name, as the transactions applied so far leave them."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[Key, Row]] = {}
        self.relations: dict[str, Relation] = {}
        self.deleted: dict[str, list[Row]] = {}
        self.transactions = 0
        self.changes = 0
        self.duplicates: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()

    def begin_with(self, rows: Iterable[RowChange]) -> None:
        """Put in the rows that were there before the first transaction."""
        for row in rows:
            self._apply_row(row)

    def apply(self, transaction: Transaction) -> None:
        """Apply a transaction or a piece of one; it counts with its last piece."""
        for change in transaction.changes:
            self.changes += 1
            match change:
                case RowChange():
                    self._apply_row(change)
                case Truncate():
                    self._table(change.relation).clear()
                case LogicalMessage():
                    pass
        self.transactions += transaction.last

    def _table(self, relation: Relation) -> dict[Key, Row]:
        self.relations[relation.qualified_name] = relation
        return self.tables.setdefault(relation.qualified_name, {})

    def _apply_row(self, change: RowChange) -> None:
        table = self._table(change.relation)
        before = self._take_old(change, table)
        if change.new is None:
            self.deleted.setdefault(change.relation.qualified_name, []).extend([before] if before else [])
            return
        key = key_of(change.relation, change.new)
        self.duplicates[change.relation.qualified_name] += key in table
        table[key] = merge(change.new, before)

    def _take_old(self, change: RowChange, table: dict[Key, Row]) -> Row | None:
        """Remove the row that this change replaces or deletes."""
        if change.op not in (UPDATE, DELETE):
            return None
        identity = change.old if change.old is not None else change.new
        before = None if identity is None else table.pop(key_of(change.relation, identity), None)
        self.missing[change.relation.qualified_name] += before is None
        return before


def key_of(relation: Relation, row: Row) -> Key:
    """The values of the row's key columns."""
    return tuple(row[index] for index in relation.key_indexes)


def merge(new: Row, before: Row | None) -> Row:
    """Return `new` with its unchanged TOAST values taken from the row `before`."""
    if before is None or ABSENT not in new:
        return new
    return [old if value is ABSENT else value for value, old in zip(new, before, strict=True)]


class Difference:
    """The differences between two states of a table: rows only Postgres has, rows only the other has, unequal rows."""

    __slots__ = ("extra", "lost", "unequal")

    def __init__(self, lost: int, extra: int, unequal: int) -> None:
        self.lost = lost
        self.extra = extra
        self.unequal = unequal

    @property
    def none(self) -> bool:
        return not (self.lost or self.extra or self.unequal)


def compare(postgres: Mapping[Key, Row], replayed: Mapping[Key, Row]) -> Difference:
    """Compare row by row and value by value, as Postgres prints them."""
    common = postgres.keys() & replayed.keys()
    return Difference(
        lost=len(postgres) - len(common),
        extra=len(replayed) - len(common),
        unequal=sum(postgres[key] != replayed[key] for key in common),
    )
