"""From CopyData to transactions: what is put together, what is refused, and that no split of the input changes it."""

import tracemalloc
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.change import LogicalMessage, RowChange, Transaction, Truncate
from cdc.errors import DataError
from cdc.pgoutput.assembler import Assembler
from cdc.row import ABSENT
from tests.bench.decode import SMALL, TURNS, small, turn
from tests.unit.pgoutput import encoder as wire
from tests.unit.pgoutput.encoder import UNCHANGED, WireColumn, WireValue

YEAR_2000_US = 946_684_800_000_000

TABLE = wire.relation(1, b"public", b"t", b"d", [WireColumn(b"id", 23, -1, True), WireColumn(b"v", 25)])
FULL = wire.relation(2, b"public", b"f", b"f", [WireColumn(b"id", 23, -1, True), WireColumn(b"v", 25, -1, True)])
BEGIN = wire.begin(100, 7, 771)
COMMIT = wire.commit(100, 120, 7)


def feed(*messages: bytes, assembler: Assembler | None = None) -> list[Transaction]:
    assembler = assembler or Assembler({}, {})
    return assembler.feed([wire.xlog_data(message, 5, 9) for message in messages]).transactions


def row_changes(transaction: Transaction) -> list[RowChange]:
    assert all(isinstance(change, RowChange) for change in transaction.changes)
    return [change for change in transaction.changes if isinstance(change, RowChange)]


def test_a_transaction_comes_whole_with_its_positions_time_and_xid() -> None:
    (transaction,) = feed(BEGIN, TABLE, wire.insert(1, [b"1", None]), wire.delete(1, key=[b"1", None]), COMMIT)
    assert (transaction.commit_lsn, transaction.end_lsn, transaction.xid) == (100, 120, 771)
    assert transaction.commit_time_us == YEAR_2000_US + 7
    assert transaction.whole
    assert [(change.op, change.seq) for change in row_changes(transaction)] == [("c", 0), ("d", 1)]


def test_an_empty_transaction_is_only_a_position() -> None:
    assembler = Assembler({}, {})
    received = assembler.feed([wire.xlog_data(BEGIN, 100), wire.xlog_data(COMMIT, 120)])
    assert (received.transactions, received.wal_end, assembler.in_transaction) == ([], 120, False)


def test_the_last_piece_of_a_large_transaction_comes_out_empty_or_not() -> None:
    *_, last = feed(BEGIN, TABLE, wire.insert(1, [b"1", None]), COMMIT, assembler=Assembler({}, {}, piece_bytes=1))
    assert (last.changes, last.first_seq, last.last, last.end_lsn) == ([], 1, True, 120)


def test_an_unfinished_transaction_waits_for_its_commit() -> None:
    assembler = Assembler({}, {})
    assert feed(BEGIN, TABLE, wire.insert(1, [b"1", None]), assembler=assembler) == []
    assert assembler.in_transaction
    (transaction,) = feed(COMMIT, assembler=assembler)
    assert len(transaction.changes) == 1
    assert not assembler.in_transaction


def test_wal_end_is_the_highest_that_any_frame_named_so_far() -> None:
    assembler = Assembler({}, {})
    received = assembler.feed([wire.keepalive(0x1_0000_0000), wire.xlog_data(TABLE, 0), wire.xlog_data(BEGIN, 7)])
    assert (received.wal_end, received.reply_requested) == (0x1_0000_0000, False)
    received = assembler.feed([wire.keepalive(3, reply=True), wire.keepalive(2)])
    assert (received.wal_end, received.reply_requested) == (0x1_0000_0000, True)
    received = assembler.feed([wire.xlog_data(COMMIT, 2**64 - 1)])
    assert (received.wal_end, received.reply_requested) == (2**64 - 1, False)
    assert assembler.feed([]).wal_end == 2**64 - 1


def test_only_key_columns_of_a_key_only_old_row_are_real() -> None:
    updated = wire.update(1, [b"2", b"x"], key=[b"1", None])
    (transaction,) = feed(BEGIN, TABLE, updated, wire.delete(1, key=[b"2", None]), COMMIT)
    update, delete = row_changes(transaction)
    assert (update.old, update.new) == ([b"1", ABSENT], [b"2", b"x"])
    assert (update.before, update.key) == (b'{"id":1}', b'{"id":2}')
    assert (delete.old, delete.new, delete.key) == ([b"2", ABSENT], None, b'{"id":2}')


def test_an_unchanged_value_is_merged_from_a_full_old_row() -> None:
    updated = wire.update(2, [b"1", UNCHANGED], old=[b"1", b"long"])
    (transaction,) = feed(BEGIN, FULL, updated, COMMIT)
    (change,) = row_changes(transaction)
    assert (change.new, change.unchanged) == ([b"1", b"long"], [])


def test_an_unchanged_value_without_an_old_row_is_absent_and_named() -> None:
    key_changed = wire.update(1, [b"2", UNCHANGED], key=[b"1", None])
    (transaction,) = feed(BEGIN, TABLE, wire.update(1, [b"1", UNCHANGED]), key_changed, COMMIT)
    for change in row_changes(transaction):
        assert change.new is not None
        assert change.new[1] is ABSENT
        assert change.unchanged == ["v"]
        assert b'"v"' not in (change.after or b"")


@pytest.mark.parametrize(
    ("primary_keys", "key"),
    [({}, b'{"id":1,"v":"x"}'), ({"public.f": ("id",)}, b'{"id":1}'), ({"public.f": ("gone",)}, b'{"id":1,"v":"x"}')],
    ids=["unknown", "known", "stale"],
)
def test_under_replica_identity_full_the_primary_key_is_the_key(
    primary_keys: dict[str, Sequence[str]], key: bytes
) -> None:
    (transaction,) = feed(BEGIN, FULL, wire.delete(2, old=[b"1", b"x"]), COMMIT, assembler=Assembler({}, primary_keys))
    assert row_changes(transaction)[0].key == key


def test_a_table_described_again_is_another_relation_from_there_on() -> None:
    wider = wire.relation(1, b"public", b"t", b"d", [WireColumn(b"id", 23, -1, True)])
    (transaction,) = feed(BEGIN, TABLE, wire.insert(1, [b"1", b"x"]), wider, wire.insert(1, [b"2"]), COMMIT)
    assert [change.after for change in row_changes(transaction)] == [b'{"id":1,"v":"x"}', b'{"id":2}']


def test_a_type_is_named_by_the_mapping_then_by_the_stream_then_by_its_oid() -> None:
    columns = [WireColumn(name, oid) for name, oid in ((b"a", 23), (b"b", 16390), (b"c", 16391))]
    (transaction,) = feed(
        BEGIN,
        wire.type_(23, b"other", b"name"),
        wire.type_(16390, b"public", b"mood"),
        wire.relation(1, b"public", b"t", b"n", columns),
        wire.insert(1, [None, None, None]),
        COMMIT,
        assembler=Assembler({23: "integer"}, {}),
    )
    relation = row_changes(transaction)[0].relation
    assert [column.type_name for column in relation.columns] == ["integer", "public.mood", "16391"]


def test_a_truncate_of_several_tables_is_a_change_for_each() -> None:
    inserted = wire.insert(1, [b"1", None])
    (transaction,) = feed(BEGIN, TABLE, FULL, inserted, wire.truncate([2, 1], cascade=True), inserted, COMMIT)
    _, first, second, _ = transaction.changes
    assert isinstance(first, Truncate)
    assert isinstance(second, Truncate)
    assert (first.relation.name, second.relation.name) == ("f", "t")
    assert (first.cascade, first.restart_identity) == (True, False)
    assert [change.seq for change in transaction.changes] == [0, 1, 2, 3]


def test_an_origin_is_accepted() -> None:
    assert len(feed(BEGIN, wire.origin(1, b"elsewhere"), TABLE, wire.insert(1, [b"1", None]), COMMIT)) == 1


def test_a_message_in_a_transaction_is_one_of_its_changes() -> None:
    (transaction,) = feed(BEGIN, wire.message(60, b"p", b"c", transactional=True), COMMIT)
    (change,) = transaction.changes
    assert isinstance(change, LogicalMessage)
    assert (change.prefix, change.content, change.transactional, change.seq) == ("p", b"c", True, 0)


def test_a_message_outside_any_transaction_is_one_of_its_own() -> None:
    (transaction,) = feed(wire.message(60, b"p", b"c", transactional=False))
    assert (transaction.xid, transaction.end_lsn, transaction.whole) == (0, 60, True)
    assert transaction.commit_time_us == YEAR_2000_US + 9
    # Not 60: a commit record may begin there.
    assert transaction.commit_lsn == 59
    (change,) = transaction.changes
    assert isinstance(change, LogicalMessage)
    assert not change.transactional


def test_a_large_transaction_comes_in_pieces_as_it_arrives() -> None:
    assembler = Assembler({}, {}, piece_bytes=1500)
    received = feed(BEGIN, TABLE, *[wire.insert(1, [b"%d" % n, b"x" * 300]) for n in range(5)], assembler=assembler)
    assert [(piece.first_seq, len(piece.changes)) for piece in received] == [(0, 2), (2, 2)]
    assert assembler.in_transaction
    received += feed(COMMIT, assembler=assembler)
    assert [piece.last for piece in received] == [False, False, True]
    assert [piece.end_lsn for piece in received] == [0, 0, 120]
    assert [change.seq for piece in received for change in piece.changes] == [0, 1, 2, 3, 4]
    assert {(piece.xid, piece.commit_lsn, piece.commit_time_us) for piece in received} == {(771, 100, YEAR_2000_US + 7)}
    assert all(piece.nbytes > 1500 for piece in received[:-1])
    (following,) = feed(
        wire.begin(200, 0, 1), wire.insert(1, [b"9", None]), wire.commit(200, 220, 0), assembler=assembler
    )
    assert (following.first_seq, following.changes[0].seq) == (0, 0)


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([TABLE, wire.insert(1, [b"1", None])], "outside BEGIN and COMMIT"),
        ([BEGIN, TABLE, COMMIT, wire.delete(1, key=[b"1", None])], "outside BEGIN and COMMIT"),
        ([TABLE, wire.truncate([1])], "outside BEGIN and COMMIT"),
        ([wire.message(5, b"p", b"c", transactional=True)], "outside BEGIN and COMMIT"),
        ([BEGIN, wire.insert(1, [b"1", None])], "has not described"),
        ([BEGIN, wire.update(1, [b"1", None])], "has not described"),
        ([BEGIN, wire.delete(1, key=[b"1", None])], "has not described"),
        ([BEGIN, wire.truncate([1])], "has not described"),
        ([BEGIN, TABLE, wire.insert(1, [b"1"])], "not as many values"),
        ([BEGIN, TABLE, wire.update(1, [b"1", None], key=[b"1"])], "not as many values"),
        ([BEGIN, TABLE, wire.update(1, [b"1", UNCHANGED, None], old=[b"1", None])], "not as many values"),
        ([BEGIN, TABLE, wire.delete(1, old=[])], "not as many values"),
        ([BEGIN, BEGIN], "began inside another"),
        ([COMMIT], "not that of the Begin"),
        ([BEGIN, wire.commit(101, 120, 7)], "not that of the Begin"),
        ([BEGIN, COMMIT, COMMIT], "not that of the Begin"),
        ([BEGIN, wire.commit(100, 99, 7)], "ends before its commit"),
        ([wire.begin(100, 2**62, 771)], "not of this age"),
        ([wire.begin(100, -YEAR_2000_US - 1, 771)], "not of this age"),
    ],
)
def test_a_stream_that_contradicts_itself_is_a_data_error(messages: list[bytes], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        feed(*messages)


def test_two_connections_do_not_share_what_they_know_of_tables() -> None:
    feed(BEGIN, TABLE, COMMIT)
    with pytest.raises(DataError, match="has not described"):
        feed(BEGIN, wire.insert(1, [b"1", None]))


@pytest.mark.parametrize(
    ("columns", "row"),
    [(TURNS, turn), (SMALL, small), (TURNS, lambda number: [b"%d" % number, *[b"a long value " * 40] * 11])],
    ids=["turns", "small", "long values"],
)
def test_nbytes_is_near_the_memory_that_rows_hold_with_their_json(
    columns: list[WireColumn], row: Callable[[int], list[WireValue]]
) -> None:
    assembler = Assembler({}, {}, piece_bytes=2**30)
    feed(wire.relation(16384, b"public", b"turns", b"d", columns), BEGIN, assembler=assembler)
    copy_data = [wire.xlog_data(wire.insert(16384, row(number))) for number in range(1000, 1500)]
    tracemalloc.start()
    try:
        (transaction,) = assembler.feed([*copy_data, wire.xlog_data(COMMIT)]).transactions
        for change in row_changes(transaction):
            _ = change.after
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.7 < transaction.nbytes / held < 1.3


# What follows builds random schemas and transactions, encodes them as Postgres would, and expects them back.

_names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
_values: st.SearchStrategy[WireValue] = st.none() | st.binary(max_size=30) | st.just(UNCHANGED)


@st.composite
def _tables(draw: st.DrawFn) -> list[tuple[int, list[WireColumn], bytes]]:
    tables = []
    for oid in range(1, draw(st.integers(1, 3)) + 1):
        names = draw(st.lists(_names, min_size=0, max_size=6, unique=True))
        columns = [WireColumn(name.encode(), 25, -1, draw(st.booleans())) for name in names]
        tables.append((oid, columns, wire.relation(oid, b"s", b"t%d" % oid, b"d", columns)))
    return tables


@st.composite
def _streams(draw: st.DrawFn) -> tuple[list[bytes], list[list[tuple[object, ...]]]]:
    """CopyData, and for each transaction its changes as (op, oid, new, old)."""
    tables = draw(_tables())
    copy_data = [wire.xlog_data(described) for _, _, described in tables]
    expected: list[list[tuple[object, ...]]] = []
    for number in range(1, draw(st.integers(0, 4)) + 1):
        changes: list[tuple[object, ...]] = []
        copy_data.append(wire.xlog_data(wire.begin(number * 100, number, number), number))
        for _ in range(draw(st.integers(0, 6))):
            oid, columns, _ = draw(st.sampled_from(tables))
            row = st.lists(_values, min_size=len(columns), max_size=len(columns))
            new, old = draw(row), draw(row)
            match draw(st.sampled_from("cukfd")):
                case "c":
                    message, change = wire.insert(oid, new), ("c", oid, _plain(new), None)
                case "u":
                    message, change = wire.update(oid, new), ("u", oid, _plain(new), None)
                case "k":
                    message = wire.update(oid, new, key=old)
                    change = ("u", oid, _plain(new), _key_only(old, columns))  # type: ignore[assignment]
                case "f":
                    merged = [before if after == UNCHANGED else after for before, after in zip(old, new, strict=True)]
                    message = wire.update(oid, new, old=old)
                    change = ("u", oid, _plain(merged), _plain(old))  # type: ignore[assignment]
                case _:
                    message = wire.delete(oid, key=old)
                    change = ("d", oid, None, _key_only(old, columns))  # type: ignore[assignment]
            copy_data.append(wire.xlog_data(message, number))
            changes.append(change)
        copy_data.append(wire.xlog_data(wire.commit(number * 100, number * 100 + 50, number), number))
        if draw(st.booleans()):
            copy_data.append(wire.keepalive(number))
        expected.append(changes)
    return copy_data, expected


def _plain(row: list[WireValue]) -> list[object]:
    return [ABSENT if value == UNCHANGED else value for value in row]


def _key_only(row: list[WireValue], columns: list[WireColumn]) -> list[object]:
    return [value if column.key else ABSENT for value, column in zip(_plain(row), columns, strict=True)]


@given(_streams(), st.integers(1, 10), st.sampled_from([1, 400, 1000, 2**20]))
def test_what_was_encoded_comes_back_however_it_is_split(
    stream: tuple[list[bytes], list[list[tuple[object, ...]]]], step: int, piece_bytes: int
) -> None:
    copy_data, expected = stream
    assembler = Assembler({}, {}, piece_bytes)
    pieces = [
        piece
        for begin in range(0, len(copy_data), step)
        for piece in assembler.feed(copy_data[begin : begin + step]).transactions
    ]
    transactions: list[list[tuple[object, ...]]] = [[]]
    numbers = [number for number, changes in enumerate(expected, 1) if changes]
    for piece in pieces:
        assert piece.first_seq == len(transactions[-1])
        assert piece.commit_lsn == numbers[len(transactions) - 1] * 100
        assert piece.end_lsn == (piece.commit_lsn + 50 if piece.last else 0)
        assert [change.seq for change in piece.changes] == list(
            range(piece.first_seq, piece.first_seq + len(piece.changes))
        )
        transactions[-1] += [(c.op, c.relation.oid, c.new, c.old) for c in row_changes(piece)]
        if piece.last:
            transactions.append([])
    assert transactions == [*filter(None, expected), []]
    assert not assembler.in_transaction


@given(_streams(), st.data())
def test_a_damaged_stream_gives_transactions_or_a_data_error(
    stream: tuple[list[bytes], list[list[tuple[object, ...]]]], data: st.DataObject
) -> None:
    copy_data, _ = stream
    at = data.draw(st.integers(0, len(copy_data) - 1))
    damaged = bytearray(copy_data[at])
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    copy_data[at] = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        Assembler({}, {}).feed(copy_data)
    except DataError as error:
        assert error.message  # noqa: PT017
