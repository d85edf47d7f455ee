"""Cutting a batch into segments: nothing lost, nothing moved, never a fragment among whole transactions."""

from hypothesis import given
from hypothesis import strategies as st

from cdc.archive.format.cut import DataCut, PartCut, cut
from cdc.change import Transaction
from tests.support.transactions import pieces, transaction

SEGMENT_BYTES = 10_000


@st.composite
def batches(draw: st.DrawFn) -> list[Transaction]:
    """Whole transactions, between the end of a large one and the beginning of another."""
    numbers = range(2, 2 + draw(st.integers(0, 6)))
    whole = [transaction(n, draw(st.integers(0, 5)), nbytes=draw(st.sampled_from([10, 3000, 20_000]))) for n in numbers]
    some = [piece for one in whole for piece in (_in_pieces(one) if draw(st.booleans()) else [one])]
    tail = pieces(1, 9, of=2)[draw(st.integers(0, 4)) :] if draw(st.booleans()) else []
    head = pieces(90, 9, of=2)[: draw(st.integers(1, 4))] if draw(st.booleans()) else []
    return [*tail, *some, *head]


def _in_pieces(one: Transaction) -> list[Transaction]:
    rows = len(one.changes)
    return pieces(one.xid, rows, of=2, nbytes=one.nbytes // rows) if rows > 2 else [one]


@given(batches())
def test_every_change_is_in_one_segment_in_order(batch: list[Transaction]) -> None:
    cuts = list(cut(batch, SEGMENT_BYTES))
    found = [
        (one.commit_lsn, change.seq)
        for made in cuts
        for one in (made.transactions if isinstance(made, DataCut) else made.pieces)
        for change in one.changes
    ]
    assert found == [(one.commit_lsn, change.seq) for one in batch for change in one.changes]


@given(batches())
def test_data_is_whole_and_parts_are_of_one_transaction(batch: list[Transaction]) -> None:
    for made in cut(batch, SEGMENT_BYTES):
        match made:
            case DataCut(transactions):
                assert all(one.whole for one in transactions)
                small = [one for one in transactions if len(one.changes) > 1]
                assert sum(one.nbytes for one in transactions) <= SEGMENT_BYTES or (
                    len(transactions) == 1 and not small
                )
            case PartCut(cut_pieces):
                assert len({one.commit_lsn for one in cut_pieces}) == 1
                nbytes = sum(one.nbytes for one in cut_pieces)
                assert nbytes <= SEGMENT_BYTES or sum(len(one.changes) for one in cut_pieces) <= 1


@given(batches())
def test_the_last_part_and_only_it_carries_the_commit(batch: list[Transaction]) -> None:
    ends = {one.commit_lsn: one.end_lsn for one in batch if one.last}
    found: dict[int, int] = {}
    for made in cut(batch, SEGMENT_BYTES):
        for one in made.transactions if isinstance(made, DataCut) else made.pieces:
            assert one.commit_lsn not in found
            if one.last:
                found[one.commit_lsn] = one.end_lsn
            else:
                assert one.end_lsn == 0
    assert found == ends


def test_a_series_that_begins_again_is_not_taken_for_one() -> None:
    first, second, third = pieces(1, 6, of=2)
    cuts = list(cut([first, first, second, third], SEGMENT_BYTES))
    assert [type(made).__name__ for made in cuts] == ["PartCut", "DataCut"]
