"""What the cache must hold, worked out from the tables alone, by docs/cache.md and by none of the cache's code. Pure.

An `Expectation` is a key and the JSON that must be there. `may_be_absent` marks what the cache is free not to hold: a
`latest` whose newest row was deleted (nobody who reads only changes can know which row is the newest then), and what
has reached the end of its time.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from cdc.change import Relation
from cdc.config import HistoryProjection, LatestProjection, Projection, RowProjection
from cdc.row import Row

_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True, slots=True)
class Expectation:
    """`rows` is a list for a history (oldest first), one object for the others."""

    key: str
    rows: Any
    is_history: bool
    may_be_absent: bool = False


def expectations(
    projections: Iterable[Projection], relation: Relation, rows: Sequence[Row], deleted: Sequence[Row]
) -> list[Expectation]:
    """Every key that the rows of one table must have in the cache. Rows that were `deleted` explain absences."""
    expected: list[Expectation] = []
    for projection in projections:
        if projection.table == relation.qualified_name:
            expected += _of_projection(projection, relation, rows, deleted)
    return expected


def _of_projection(
    projection: Projection, relation: Relation, rows: Sequence[Row], deleted: Sequence[Row]
) -> list[Expectation]:
    groups = _by_key(projection.key, relation, rows)
    match projection:
        case RowProjection():
            return [Expectation(key, _json(relation, group[0]), False) for key, group in groups.items()]
        case HistoryProjection():
            return [_history(projection, relation, key, group) for key, group in groups.items()]
        case LatestProjection():
            gone = _by_key(projection.key, relation, deleted)
            return [_latest(projection, relation, key, group, gone.get(key, ())) for key, group in groups.items()]


def _history(projection: HistoryProjection, relation: Relation, key: str, rows: Sequence[Row]) -> Expectation:
    newest = _in_order(relation, rows, projection.order_by)[-projection.limit :]
    return Expectation(key, [_json(relation, row) for row in newest], True)


def _latest(
    projection: LatestProjection, relation: Relation, key: str, rows: Sequence[Row], deleted: Sequence[Row]
) -> Expectation:
    newest = _in_order(relation, rows, projection.order_by)[-1]
    newest_ever = _in_order(relation, [*rows, *deleted], projection.order_by)[-1]
    names = {*projection.columns, projection.order_by}
    value = {name: value for name, value in _json(relation, newest).items() if name in names}
    return Expectation(key, value, False, may_be_absent=newest_ever is not newest)


def _by_key(template: str, relation: Relation, rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        values = {name: row[relation.column_index[name]] for name in _PLACEHOLDER.findall(template)}
        if all(isinstance(value, bytes) for value in values.values()):
            texts = {name: value.decode() for name, value in values.items() if isinstance(value, bytes)}
            groups[_PLACEHOLDER.sub(lambda match, texts=texts: texts[match[1]], template)].append(row)  # type: ignore[misc]
    return groups


def _in_order(relation: Relation, rows: Sequence[Row], order_by: str) -> list[Row]:
    """By a whole number, which is what the demo's projections are ordered by."""
    index = relation.column_index[order_by]
    return sorted(rows, key=lambda row: int(row[index]))  # type: ignore[arg-type]


def _json(relation: Relation, row: Row) -> dict[str, Any]:
    value: dict[str, Any] = orjson.loads(relation.codec.encode(row))
    return value
