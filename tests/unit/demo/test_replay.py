"""The archive replayed: what fits becomes the tables, what does not fit is counted."""

import pytest

from cdc.change import CREATE, DELETE, UPDATE, Change, Column, Relation, RowChange, Transaction, Truncate
from cdc.demo.replay import Replay, compare
from cdc.row import ABSENT, Row

TURNS = Relation(
    1, "public", "turns", "f", [Column("id", "bigint", 20, -1, True), Column("content", "text", 25, -1, False)]
)


def _replay(*changes: tuple[str, Row | None, Row | None]) -> Replay:
    replay = Replay()
    for number, (op, new, old) in enumerate(changes):
        change: Change = RowChange(op, 0, TURNS, new, old)
        replay.apply(Transaction(number, number, 0, [change], end_lsn=number + 1))
    return replay


def _rows(replay: Replay) -> list[Row]:
    return list(replay.tables["public.turns"].values())


def test_rows_are_created_updated_and_deleted() -> None:
    replay = _replay(
        (CREATE, [b"1", b"one"], None),
        (CREATE, [b"2", b"two"], None),
        (UPDATE, [b"1", b"uno"], [b"1", b"one"]),
        (DELETE, None, [b"2", b"two"]),
    )
    assert _rows(replay) == [[b"1", b"uno"]]
    assert replay.transactions == 4
    assert replay.deleted == {"public.turns": [[b"2", b"two"]]}
    assert not replay.duplicates.total()
    assert not replay.missing.total()


def test_a_changed_key_moves_the_row() -> None:
    replay = _replay((CREATE, [b"1", b"one"], None), (UPDATE, [b"9", b"one"], [b"1", ABSENT]))
    assert _rows(replay) == [[b"9", b"one"]]


def test_an_unchanged_toast_value_stays_what_it_was() -> None:
    replay = _replay((CREATE, [b"1", b"large"], None), (UPDATE, [b"9", ABSENT], [b"1", ABSENT]))
    assert _rows(replay) == [[b"9", b"large"]]


def test_a_truncate_empties_the_table() -> None:
    replay = _replay((CREATE, [b"1", b"one"], None))
    truncate = Truncate(0, TURNS, cascade=False, restart_identity=False)
    replay.apply(Transaction(2, 2, 0, [truncate], end_lsn=3))
    assert _rows(replay) == []


def test_a_transaction_counts_with_its_last_piece() -> None:
    replay = Replay()
    replay.apply(Transaction(1, 1, 0, [], last=False))
    assert replay.transactions == 0
    replay.apply(Transaction(1, 1, 0, [], first_seq=1, end_lsn=2))
    assert replay.transactions == 1


def test_a_row_created_twice_is_a_duplicate() -> None:
    replay = _replay((CREATE, [b"1", b"one"], None), (CREATE, [b"1", b"one"], None))
    assert replay.duplicates["public.turns"] == 1


@pytest.mark.parametrize("change", [(UPDATE, [b"1", b"one"], None), (DELETE, None, [b"1", ABSENT])])
def test_a_change_of_a_row_that_is_not_there_is_missed(change: tuple[str, Row | None, Row | None]) -> None:
    assert _replay(change).missing["public.turns"] == 1


def test_a_comparison_counts_lost_extra_and_unequal_rows() -> None:
    postgres: dict[tuple[bytes, ...], Row] = {(b"1",): [b"1", b"a"], (b"2",): [b"2", b"b"], (b"3",): [b"3", None]}
    replayed: dict[tuple[bytes, ...], Row] = {(b"2",): [b"2", b"B"], (b"3",): [b"3", None], (b"4",): [b"4", b"d"]}
    difference = compare(postgres, replayed)  # type: ignore[arg-type]
    assert (difference.lost, difference.extra, difference.unequal) == (1, 1, 1)
    assert compare(postgres, postgres).none  # type: ignore[arg-type]
