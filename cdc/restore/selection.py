"""Selects the rows of a table that match a WHERE at the end of a run of changes. Pure.

A change says little by itself: a row may come to match by an update, and stop by another. So the state of each row is
followed, and only rows that match, or may, are held. Values are compared as Postgres printed them.

An update that brings a row in may lack values (TOASTed and unchanged) that an earlier line of the archive has. Such a
row remembers the identity under which that line knew it. `sources` names the identities that matter in the end. Then
the run is made again, and these rows are followed from the start, even where they do not match. A row that had other
keys before needs one more run for each key. Then everything is known.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from cdc.change import DELETE, UPDATE, Relation, RowChange
from cdc.errors import DataError
from cdc.row import ABSENT, Row, Value

Where = Mapping[str, bytes | None]
"""Columns and what they must be, all of them; None is NULL."""

Identity = tuple[tuple[str, ...], tuple[Value, ...]]
"""The key's columns and their values."""


@dataclass(slots=True, eq=False)
class _Held:
    """A row that matches, or may. `sources` are the identities of rows that have the values which are ABSENT here."""

    values: dict[str, Value]
    sources: frozenset[Identity] = frozenset()


class Selection:
    """Selects the rows of one table. A column that a row's line lacks was added later, and is equal to nothing."""

    def __init__(self, where: Where, followed: Collection[Identity] = ()) -> None:
        self._where = where
        self._followed = frozenset(followed)
        self._follow: list[tuple[list[int], set[tuple[Value, ...]]]] = []
        self._relation: Relation | None = None
        self._names: tuple[str, ...] = ()
        self._vague = False
        self._indexes: list[int] = []
        self._tests: list[tuple[int, bytes | None]] = []
        self._rows: dict[tuple[Value, ...], list[_Held]] = {}

    def clear(self) -> None:
        self._rows.clear()

    def apply(self, change: RowChange) -> None:
        """Apply the next change of this table."""
        if change.relation is not self._relation:
            self._meet(change.relation)
        before = None
        identity = change.new if change.old is None else change.old
        if change.op in (UPDATE, DELETE) and identity is not None:
            before = self._remove(identity)
        if change.new is not None and identity is not None:
            self._put(change.new, identity, before)

    def rows(self, relation: Relation) -> Iterator[tuple[Row, int]]:
        """Yield each row that matches, in the order of the relation's columns, and how many of its values are unknown.

        Unknown values were never archived. Raises DataError if an archived value is missing.
        """
        for held in self._matching():
            if ABSENT in held.values.values():
                raise DataError(f"a row of {relation.qualified_name} lacks a value", hint="cdc archive verify")
            values = [held.values.get(column.name) for column in relation.columns]
            yield values, sum(column.name not in held.values for column in relation.columns)

    def sources(self) -> set[Identity]:
        """Name the rows that must be followed so that all values of the matching rows are known."""
        return {source for held in self._matching() if ABSENT in held.values.values() for source in held.sources}

    def _matching(self) -> Iterator[_Held]:
        for alike in self._rows.values():
            yield from (held for held in alike if self._may_match(held.values))

    def _may_match(self, values: Mapping[str, Value]) -> bool:
        return all(name in values and values[name] in (wanted, ABSENT) for name, wanted in self._where.items())

    def _meet(self, relation: Relation) -> None:
        """Take the table's description that holds from here on."""
        names = relation.identity or tuple(column.name for column in relation.columns)
        held = [row for alike in self._rows.values() for row in alike] if names != self._names else []
        if held:
            self._rows = {}
        self._relation, self._names = relation, names
        self._indexes = [relation.column_index[name] for name in names]
        index = relation.column_index
        self._tests = [(index[name], wanted) for name, wanted in self._where.items() if name in index]
        self._follow = []
        for key_names in {key_names for key_names, _ in self._followed if index.keys() >= set(key_names)}:
            keys = {values for other, values in self._followed if other == key_names}
            self._follow.append(([index[name] for name in key_names], keys))
        for row in held:
            key = tuple([row.values.get(name, ABSENT) for name in names])
            self._vague = self._vague or ABSENT in key
            self._hold(key, row)

    def _hold(self, key: tuple[Value, ...], row: _Held) -> None:
        self._rows.setdefault(key, []).append(row)

    def _key(self, row: Row) -> tuple[Value, ...]:
        return tuple([row[index] for index in self._indexes])

    def _remove(self, identity: Row) -> _Held | None:
        """Take out the row as it was before; None if it is not held."""
        if not self._rows:
            return None
        key = self._key(identity)
        if self._vague and key not in self._rows:
            key = next((other for other in self._rows if _are_alike(other, key)), key)
        alike = self._rows.get(key)
        if not alike:
            return None
        held = alike.pop()
        if not alike:
            del self._rows[key]
        return held

    def _put(self, new: Row, identity: Row, before: _Held | None) -> None:
        followed = any(tuple([new[index] for index in indexes]) in keys for indexes, keys in self._follow)
        if not followed and not self._is_of_interest(new, before):
            return
        values: dict[str, Value] = {}
        relation = self._relation
        assert relation is not None  # noqa: S101 - apply() has met it
        for column, value in zip(relation.columns, new, strict=True):
            if value is not ABSENT or before is None:
                values[column.name] = value
            elif column.name in before.values:
                values[column.name] = before.values[column.name]
        sources = before.sources if before is not None else frozenset[Identity]()
        if before is None and ABSENT in new:
            sources = frozenset({(self._names, self._key(identity))})
        if followed or self._may_match(values):
            self._hold(self._key(new), _Held(values, sources))

    def _is_of_interest(self, new: Row, before: _Held | None) -> bool:
        """Return True if a row may match.

        It cannot if it did not match before and all values that the WHERE tests are unchanged.
        """
        if len(self._tests) < len(self._where):
            return False
        known = False
        for index, wanted in self._tests:
            value = new[index]
            if value is ABSENT:
                continue
            if value != wanted:
                return False
            known = True
        return known or before is not None


def _are_alike(held: tuple[Value, ...], sought: tuple[Value, ...]) -> bool:
    """Compare two keys as far as both are known. A row from before a column was added lacks that column's value."""
    return all(a == b or a is ABSENT or b is ABSENT for a, b in zip(held, sought, strict=True))
