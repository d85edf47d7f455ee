"""Holds a table's state by the archive in little memory: a row's key, and a digest of eight bytes for each value."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from cdc.archive.state.digests import UNKNOWN, digest, digest_at
from cdc.change import DELETE, UPDATE, Relation, RowChange
from cdc.errors import Invalid
from cdc.row import ABSENT, Row


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that differs. `kind` is `missing` or `extra` in the archive, or `unequal` in `columns`."""

    table: str
    kind: str
    key: dict[str, str | None]
    columns: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = " ".join(f"{name}={value}" for name, value in self.key.items()) or "a row without a key"
        return f"{self.table} {where}: {self.kind}" + (f" in {', '.join(self.columns)}" if self.columns else "")


class TableState:
    """One table's rows as digests, by key; without a key as a bag of equal rows.

    A column keeps the place that it gets when it is first seen, also if the table's shape changes.
    """

    def __init__(self, relation: Relation) -> None:
        self.unknown_values = 0
        self._name = relation.qualified_name
        self._keys = relation.identity
        self._places: dict[str, int] = {}
        self._rows: dict[bytes, bytes] = {}
        self._bag: Counter[bytes] = Counter()
        self._relation: Relation | None = None

    def clear(self) -> None:
        self._rows.clear()
        self._bag.clear()

    def apply(self, change: RowChange) -> None:
        """Apply the next change of this table. Raises Invalid if the table's key has changed."""
        self._meet(change.relation)
        identity = change.new if change.old is None else change.old
        before = None
        if change.op in (UPDATE, DELETE) and identity is not None:
            before = self._remove(change.relation, identity)
        if change.new is not None:
            self._put(change.relation, change.new, before)

    def take(self, relation: Relation, row: Row) -> Iterator[Difference]:
        """Compare a live row with the archived one, and remove the archived one. Yields the difference, if any.

        Raises Invalid if the table's key has changed.
        """
        self._meet(relation)
        digests = self._digests(relation, row, None)
        if not self._keys:
            if self._bag[digests] <= 0:
                yield Difference(self._name, "missing", {})
            else:
                self._bag[digests] -= 1
            return
        key = self._key(relation, row)
        here = self._rows.pop(key, None)
        if here is None:
            yield Difference(self._name, "missing", self._describe(key))
        elif here != digests and (columns := self._unequal(here, digests)):
            yield Difference(self._name, "unequal", self._describe(key), columns)

    def rest(self) -> Iterator[Difference]:
        """Yield the archived rows that no live row has matched."""
        for key in self._rows:
            yield Difference(self._name, "extra", self._describe(key))
        for _ in self._bag.elements():
            yield Difference(self._name, "extra", {})

    def _meet(self, relation: Relation) -> None:
        if relation is self._relation:
            return
        widened = {column.name for column in relation.columns} != self._places.keys()
        if relation.identity != self._keys or (self._places and widened and not self._keys):
            raise Invalid(
                f"the key of {self._name} has changed within the archive, so its rows cannot be followed",
                detail="Of a table without a key, all columns together are the key.",
                hint=f"cdc restore --table {self._name} ..., and compare the tables",
            )
        for column in relation.columns:
            self._places.setdefault(column.name, len(self._places))
        self._relation = relation

    def _put(self, relation: Relation, row: Row, before: bytes | None) -> None:
        digests = self._digests(relation, row, before)
        if self._keys:
            self._rows[self._key(relation, row)] = digests
        else:
            self._bag[digests] += 1

    def _remove(self, relation: Relation, row: Row) -> bytes | None:
        if self._keys:
            return self._rows.pop(self._key(relation, row), None)
        self._bag[self._digests(relation, row, None)] -= 1
        return None

    def _key(self, relation: Relation, row: Row) -> bytes:
        """Join the key's values with zero bytes, which no value of Postgres's holds."""
        values = [row[relation.column_index[name]] for name in self._keys]
        return b"\0".join([value if isinstance(value, bytes) else b"" for value in values])

    def _describe(self, key: bytes) -> dict[str, str | None]:
        values = key.decode(errors="backslashreplace").split("\0")
        return dict(zip(self._keys, values, strict=True))

    def _digests(self, relation: Relation, row: Row, before: bytes | None) -> bytes:
        digests = [UNKNOWN] * len(self._places)
        for column, value in zip(relation.columns, row, strict=True):
            place = self._places[column.name]
            if value is not ABSENT:
                digests[place] = digest(value)
            elif before is not None:
                digests[place] = digest_at(before, place)
        return b"".join(digests)

    def _unequal(self, here: bytes, live: bytes) -> tuple[str, ...]:
        """The columns of a live row that are known here and differ."""
        columns = []
        for name, place in self._places.items():
            ours = digest_at(here, place)
            theirs = digest_at(live, place)
            if theirs == UNKNOWN:
                continue  # dropped since
            self.unknown_values += ours == UNKNOWN
            if ours not in (UNKNOWN, theirs):
                columns.append(name)
        return tuple(columns)


def state_of(tables: dict[str, TableState], relation: Relation) -> TableState:
    """The table's state in `tables`, by name; a new empty one if there was none."""
    table = tables.get(relation.qualified_name)
    if table is None:
        table = tables[relation.qualified_name] = TableState(relation)
    return table
