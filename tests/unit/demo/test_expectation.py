"""What the cache must hold, from the tables alone."""

from cdc.change import Column, Relation
from cdc.config import HistoryProjection, LatestProjection, RowProjection
from cdc.demo.expectation import expectations
from cdc.row import Row

TURNS = Relation(
    1,
    "public",
    "turns",
    "f",
    [
        Column("id", "bigint", 20, -1, True),
        Column("session_hash", "text", 25, -1, False),
        Column("state", "jsonb", 3802, -1, False),
    ],
)
HISTORY = HistoryProjection(table="public.turns", key="session:{session_hash}:turns", order_by="id", limit=2)
ROW = RowProjection(table="public.turns", key="turn:{id}")
LATEST = LatestProjection(table="public.turns", key="session:{session_hash}:state", order_by="id", columns=("state",))

ROWS: list[Row] = [[b"10", b"s", None], [b"9", b"s", b'{"a": 1}'], [b"2", b"s", None]]


def test_a_history_is_the_newest_rows_in_order_of_their_numbers() -> None:
    [history] = expectations([HISTORY], TURNS, ROWS, [])
    assert history.key == "session:s:turns"
    assert [row["id"] for row in history.rows] == [9, 10]


def test_every_row_has_its_key() -> None:
    found = expectations([ROW], TURNS, ROWS, [])
    assert {expected.key for expected in found} == {"turn:10", "turn:9", "turn:2"}
    assert found[1].rows == {"id": 9, "session_hash": "s", "state": {"a": 1}}


def test_the_latest_has_the_chosen_columns_and_the_order_of_the_newest_row() -> None:
    [latest] = expectations([LATEST], TURNS, ROWS, [])
    assert latest.rows == {"id": 10, "state": None}
    assert not latest.may_be_absent


def test_the_latest_may_be_absent_only_if_a_newer_row_was_deleted() -> None:
    [after_newer] = expectations([LATEST], TURNS, ROWS, [[b"11", b"s", None]])
    [after_older] = expectations([LATEST], TURNS, ROWS, [[b"3", b"s", None], [b"99", b"another", None]])
    assert after_newer.may_be_absent
    assert not after_older.may_be_absent


def test_a_row_without_a_key_is_not_expected_anywhere() -> None:
    assert expectations([HISTORY, LATEST], TURNS, [[b"1", None, None]], []) == []


def test_projections_of_other_tables_say_nothing() -> None:
    other = RowProjection(table="public.orders", key="order:{id}")
    assert expectations([other], TURNS, ROWS, []) == []
