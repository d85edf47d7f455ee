"""The rows that a WHERE picks out of a history are those of the replayed table, whatever Postgres leaves out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc.change import CREATE, DELETE, READ, UPDATE, Column, Relation, RowChange
from cdc.errors import DataError
from cdc.restore.selection import Identity, Selection, Where
from cdc.row import ABSENT, Row, Value

_COLUMNS = [Column("id", "int8", 20, -1, True), Column("session", "text", 25, -1, False)]
_COLUMNS += [Column("state", "text", 25, -1, False), Column("content", "text", 25, -1, False)]
NOTES = Relation(1, "public", "notes", "d", _COLUMNS)
WIDER = Relation(1, "public", "notes", "d", [*_COLUMNS, Column("added", "text", 25, -1, False)])
KEYLESS = Relation(2, "public", "bag", "f", [Column(c.name, c.type_name, c.type_oid, -1, True) for c in _COLUMNS])
REKEYED = Relation(
    1, "public", "notes", "d", [Column(c.name, c.type_name, c.type_oid, -1, c.name != "content") for c in _COLUMNS]
)


def find(where: Where, history: list[RowChange], relation: Relation = NOTES) -> tuple[list[Row], int]:
    """As many passes as it takes, and how many."""
    followed: set[Identity] = set()
    for passes in range(1, 100):
        selection = Selection(where, followed)
        for change in history:
            selection.apply(change)
        more = selection.sources() - followed
        if not more:
            return sorted((row for row, _ in selection.rows(relation)), key=repr), passes
        followed |= more
    raise AssertionError("it never ends")


def created(*values: Value) -> RowChange:
    return RowChange(CREATE, 0, NOTES, list(values), None)


def updated(*values: Value, was: bytes | None = None) -> RowChange:
    old: Row | None = None if was is None else [was, ABSENT, ABSENT, ABSENT]
    return RowChange(UPDATE, 0, NOTES, list(values), old)


def deleted(key: bytes) -> RowChange:
    return RowChange(DELETE, 0, NOTES, None, [key, ABSENT, ABSENT, ABSENT])


def test_a_row_that_came_by_an_update_is_there_and_one_that_left_is_not() -> None:
    history = [created(b"1", b"a", b"", b""), created(b"2", b"b", b"", b"")]
    history += [updated(b"1", b"b", b"", b""), updated(b"2", b"a", b"", b"")]
    assert find({"session": b"b"}, history) == ([[b"1", b"b", b"", b""]], 1)


def test_values_that_the_update_into_the_where_did_not_bring_are_found_by_reading_again() -> None:
    history = [created(b"1", b"a", b"", b"long"), updated(b"1", b"b", b"", ABSENT)]
    assert find({"session": b"b"}, history) == ([[b"1", b"b", b"", b"long"]], 2)


def test_a_row_that_had_another_key_when_it_was_complete_takes_one_pass_more() -> None:
    history = [created(b"1", b"a", b"", b"long"), updated(b"2", b"a", b"", ABSENT, was=b"1")]
    history += [updated(b"3", b"b", b"", ABSENT, was=b"2")]
    assert find({"session": b"b"}, history) == ([[b"3", b"b", b"", b"long"]], 3)


def test_a_row_that_left_again_needs_nothing() -> None:
    history = [created(b"1", b"a", b"", b"long"), updated(b"1", b"b", b"", ABSENT), updated(b"1", b"a", b"", ABSENT)]
    assert find({"session": b"b"}, history) == ([], 1)


def test_a_where_on_a_value_that_did_not_come_is_decided_by_the_row() -> None:
    history = [created(b"1", b"a", b"", b"long"), created(b"2", b"a", b"", b"other")]
    history += [updated(b"1", b"b", b"", ABSENT), updated(b"2", b"b", b"", ABSENT)]
    assert find({"content": b"long"}, history) == ([[b"1", b"b", b"", b"long"]], 1)
    assert find({"content": b"long", "session": b"b"}, history) == ([[b"1", b"b", b"", b"long"]], 2)


def test_null_is_not_the_empty_text() -> None:
    history = [created(b"1", None, b"", b""), created(b"2", b"", b"", b"")]
    assert find({"session": None}, history)[0] == [[b"1", None, b"", b""]]
    assert find({"session": b""}, history)[0] == [[b"2", b"", b"", b""]]


def test_equal_rows_without_a_key_are_counted() -> None:
    def change(op: str, new: Row | None, old: Row | None) -> RowChange:
        return RowChange(op, 0, KEYLESS, new, old)

    row: Row = [b"1", b"a", b"", b""]
    history = [change(READ, row, None), change(CREATE, row, None), change(CREATE, row, None)]
    history += [change(DELETE, None, row), change(UPDATE, [b"1", b"b", b"", b""], row)]
    assert find({"session": b"a"}, history, KEYLESS)[0] == [row]


def test_a_key_that_is_declared_later_finds_the_rows_of_before() -> None:
    history = [created(b"1", b"a", b"", b"long"), created(b"2", b"a", b"", b"")]
    history += [RowChange(UPDATE, 0, REKEYED, [b"1", b"a", b"", b"longer"], None)]
    history += [RowChange(DELETE, 0, REKEYED, None, [b"2", b"a", b"", ABSENT])]
    assert find({"session": b"a"}, history)[0] == [[b"1", b"a", b"", b"longer"]]
    history += [RowChange(UPDATE, 0, REKEYED, [b"1", b"b", b"", ABSENT], [b"1", b"a", b"", ABSENT])]
    assert find({"session": b"b"}, history)[0] == [[b"1", b"b", b"", b"longer"]]


def test_a_column_that_was_added_is_unknown_in_rows_of_before() -> None:
    selection = Selection({"session": b"a"})
    selection.apply(created(b"1", b"a", b"", b"long"))
    selection.apply(RowChange(CREATE, 0, WIDER, [b"2", b"a", b"", b"", b"x"], None))
    assert [unknown for _, unknown in selection.rows(WIDER)] == [1, 0]
    assert find({"added": b"x"}, [created(b"1", b"a", b"", b"")], WIDER)[0] == []


def test_an_archive_that_never_had_the_value_is_damaged() -> None:
    with pytest.raises(DataError, match="lacks a value"):
        find({"session": b"b"}, [updated(b"1", b"b", b"", ABSENT)])


_FEW = st.sampled_from([b"x", b"y"])


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[RowChange], dict[bytes, list[Value]]]:
    """Changes as Postgres sends them under the default identity, and the table that they leave."""
    table: dict[bytes, list[Value]] = {}
    history: list[RowChange] = []
    for _ in range(draw(st.integers(0, 25))):
        free = [b"%d" % n for n in range(4) if b"%d" % n not in table]
        kind = draw(st.sampled_from(["insert", "update", "update", "update", "move", "delete"]))
        if kind == "insert" and free:
            key = draw(st.sampled_from(free))
            table[key] = [key, draw(_FEW), draw(_FEW), draw(_FEW)]
            history.append(RowChange(draw(st.sampled_from([CREATE, READ])), 0, NOTES, list(table[key]), None))
        elif kind != "insert" and table:
            key = draw(st.sampled_from(sorted(table)))
            before = table.pop(key)
            old: Row = [key, ABSENT, ABSENT, ABSENT]
            if kind == "delete":
                history.append(RowChange(DELETE, 0, NOTES, None, old))
                continue
            moved = draw(st.sampled_from(free)) if kind == "move" and free else key
            after = [moved, *(draw(st.one_of(st.just(value), _FEW)) for value in before[1:])]
            sent = [v if i == 0 or v != w or draw(st.booleans()) else ABSENT
                    for i, (v, w) in enumerate(zip(after, before, strict=True))]  # fmt: skip
            table[moved] = list(after)
            history.append(RowChange(UPDATE, 0, NOTES, sent, old if moved != key else None))
    return history, table


@settings(max_examples=400, deadline=None)
@given(histories(), st.dictionaries(st.sampled_from(["session", "state", "content"]), _FEW, min_size=1))
def test_any_history_gives_the_rows_of_the_table(
    told: tuple[list[RowChange], dict[bytes, list[Value]]], where: dict[str, bytes]
) -> None:
    history, table = told
    index = NOTES.column_index
    expected = [row for row in table.values() if all(row[index[name]] == value for name, value in where.items())]
    assert find(where, history)[0] == sorted(expected, key=repr)
