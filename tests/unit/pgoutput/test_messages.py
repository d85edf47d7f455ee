"""One message of pgoutput at a time: what it says, and that anything malformed is a DataError that shows no value."""

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cdc.errors import DataError
from cdc.pgoutput.messages import (
    Begin,
    Commit,
    Delete,
    EmittedMessage,
    Insert,
    Origin,
    RelationMessage,
    TruncateMessage,
    TypeMessage,
    Update,
    decode_message,
)
from cdc.row import ABSENT
from tests.unit.pgoutput import encoder as wire
from tests.unit.pgoutput.encoder import UNCHANGED, WireColumn

YEAR_2000_US = 946_684_800_000_000
ROW = [b"7", None, b"", UNCHANGED, "naïve".encode(), b"\xff"]
DECODED_ROW = [b"7", None, b"", ABSENT, "naïve".encode(), b"\xff"]
COLUMNS = [WireColumn(b"id", 23, -1, True), WireColumn(b"price", 1700, 655366)]

# One of each, for what must hold of all.
SAMPLES = {
    "Begin": wire.begin(0x16_B374D848, 77, 771),
    "Commit": wire.commit(10, 20, 77),
    "Origin": wire.origin(9, b"elsewhere"),
    "Relation": wire.relation(16384, b"public", b"turns", b"d", COLUMNS),
    "Type": wire.type_(16390, b"public", b"mood"),
    "Insert": wire.insert(16384, ROW),
    "Update": wire.update(16384, ROW),
    "Update of the key": wire.update(16384, ROW, key=[b"6", None, None, None, None, None]),
    "Update in full": wire.update(16384, ROW, old=ROW),
    "Delete": wire.delete(16384, key=ROW),
    "Delete in full": wire.delete(16384, old=ROW),
    "Truncate": wire.truncate([1, 2], cascade=True),
    "Message": wire.message(50, b"prefix", b"content", transactional=True),
}


def test_begin_gives_the_position_of_its_commit_the_time_and_the_xid() -> None:
    message = decode_message(SAMPLES["Begin"])
    assert isinstance(message, Begin)
    assert (message.final_lsn, message.commit_time_us, message.xid) == (0x16_B374D848, YEAR_2000_US + 77, 771)


def test_commit_gives_both_positions_and_the_time() -> None:
    message = decode_message(SAMPLES["Commit"])
    assert isinstance(message, Commit)
    assert (message.commit_lsn, message.end_lsn, message.commit_time_us) == (10, 20, YEAR_2000_US + 77)


def test_commit_with_flags_is_refused() -> None:
    with pytest.raises(DataError, match=r"malformed pgoutput message of type Commit: its flags"):
        decode_message(wire.commit(10, 20, 77, flags=1))


def test_origin_gives_its_name() -> None:
    message = decode_message(SAMPLES["Origin"])
    assert isinstance(message, Origin)
    assert (message.commit_lsn, message.name) == (9, "elsewhere")


def test_relation_gives_the_table_its_replica_identity_and_columns() -> None:
    message = decode_message(SAMPLES["Relation"])
    assert isinstance(message, RelationMessage)
    assert (message.oid, message.schema, message.name, message.replica_identity) == (16384, "public", "turns", "d")
    columns = [(c.name, c.type_oid, c.typmod, c.key) for c in message.columns]
    assert columns == [("id", 23, -1, True), ("price", 1700, 655366, False)]


def test_an_empty_schema_is_pg_catalog() -> None:
    message = decode_message(wire.relation(1, b"", b"pg_class", b"n", []))
    assert isinstance(message, RelationMessage)
    assert message.schema == "pg_catalog"


def test_a_name_that_is_not_utf_8_is_spelled_so_that_json_can_hold_it() -> None:
    message = decode_message(wire.relation(1, b"public", b"caf\xe9", b"d", [WireColumn(b"\xff", 25)]))
    assert isinstance(message, RelationMessage)
    assert message.name == r"caf\xe9"
    assert message.columns[0].name == r"\xff"


def test_two_columns_that_would_be_spelled_alike_are_refused() -> None:
    with pytest.raises(DataError, match="two columns have one name"):
        decode_message(wire.relation(1, b"s", b"t", b"d", [WireColumn(b"\xff", 25), WireColumn(rb"\xff", 25)]))


def test_type_gives_its_qualified_name() -> None:
    message = decode_message(SAMPLES["Type"])
    assert isinstance(message, TypeMessage)
    assert (message.oid, message.schema, message.name) == (16390, "public", "mood")


def test_insert_gives_values_nulls_and_empty_strings_as_they_are() -> None:
    message = decode_message(SAMPLES["Insert"])
    assert isinstance(message, Insert)
    assert (message.relation_oid, message.new) == (16384, DECODED_ROW)


def test_update_has_no_old_row_a_key_or_a_full_one() -> None:
    plain, key, full = (decode_message(SAMPLES[name]) for name in ("Update", "Update of the key", "Update in full"))
    assert isinstance(plain, Update)
    assert isinstance(key, Update)
    assert isinstance(full, Update)
    assert (plain.old, plain.old_is_key) == (None, False)
    assert (key.old, key.old_is_key) == ([b"6", None, None, None, None, None], True)
    assert (full.old, full.old_is_key) == (DECODED_ROW, False)
    assert plain.new == key.new == full.new == DECODED_ROW


def test_delete_has_a_key_or_a_full_old_row() -> None:
    key, full = decode_message(SAMPLES["Delete"]), decode_message(SAMPLES["Delete in full"])
    assert isinstance(key, Delete)
    assert isinstance(full, Delete)
    assert (key.old, key.old_is_key, full.old_is_key) == (DECODED_ROW, True, False)


@pytest.mark.parametrize("cascade", [False, True])
@pytest.mark.parametrize("restart", [False, True])
def test_truncate_names_its_tables_and_options(cascade: bool, restart: bool) -> None:
    message = decode_message(wire.truncate([5, 3], cascade=cascade, restart_identity=restart))
    assert isinstance(message, TruncateMessage)
    assert (message.relation_oids, message.cascade, message.restart_identity) == ([5, 3], cascade, restart)


@pytest.mark.parametrize("transactional", [False, True])
def test_an_emitted_message_has_a_prefix_and_any_bytes(transactional: bool) -> None:
    message = decode_message(wire.message(50, b"pre\xff", b"\0\xff\n", transactional=transactional))
    assert isinstance(message, EmittedMessage)
    assert (message.lsn, message.prefix, message.content) == (50, r"pre\xff", b"\0\xff\n")
    assert message.transactional is transactional


def test_a_value_of_a_hundred_megabytes_is_one_value() -> None:
    message = decode_message(wire.insert(1, [b"x" * 100_000_000]))
    assert isinstance(message, Insert)
    assert message.new == [b"x" * 100_000_000]


def test_binary_values_are_refused_because_we_ask_for_text() -> None:
    with pytest.raises(DataError, match="binary format") as error:
        decode_message(b"I" + struct.pack(">I", 1) + b"N" + struct.pack(">H", 1) + b"b" + struct.pack(">I", 1) + b"x")
    assert error.value.detail == "byte 8 of 14"


@pytest.mark.parametrize("kind", [b"S", b"E", b"c", b"A"])
def test_messages_of_streamed_transactions_are_refused(kind: bytes) -> None:
    with pytest.raises(DataError, match="protocol version 1"):
        decode_message(kind + bytes(20))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_message_cut_anywhere_is_a_data_error_that_names_its_type_and_no_value(name: str) -> None:
    data = SAMPLES[name]
    for end in range(1, len(data)):
        with pytest.raises(DataError) as error:
            decode_message(data[:end])
        assert f"of type {name.split()[0]}" in error.value.message
        assert "naïve" not in error.value.explain()
        assert f" of {end}" in error.value.detail


@pytest.mark.parametrize("name", SAMPLES)
def test_a_message_with_bytes_left_over_is_a_data_error(name: str) -> None:
    with pytest.raises(DataError):
        decode_message(SAMPLES[name] + b"\0")


@pytest.mark.parametrize("name", SAMPLES)
def test_any_byte_of_a_message_may_be_wrong(name: str) -> None:
    data = bytearray(SAMPLES[name])
    for at, right in enumerate(data):
        for wrong in (0, 1, 0x7F, 0x80, 0xFF, right ^ 1, right ^ 0x80):
            data[at] = wrong
            decode_or_data_error(bytes(data))
        data[at] = right


@given(st.sampled_from(b"BCORYIUDTMSEcA"), st.binary(max_size=200))
@example(kind=0x54, rest=b"\xff\xff\xff\xff\0")
@example(kind=0x52, rest=b"\0\0\0\0\0\0d\xff\xff")
@example(kind=0x49, rest=b"\0\0\0\1N\0\1t\xff\xff\xff\xff")
def test_random_bytes_give_a_message_or_a_data_error(kind: int, rest: bytes) -> None:
    decode_or_data_error(bytes([kind]) + rest)


@given(st.binary(max_size=60), st.integers(0, 80))
def test_a_message_may_begin_anywhere_even_past_the_end(data: bytes, start: int) -> None:
    decode_or_data_error(data, start)


def decode_or_data_error(data: bytes, start: int = 0) -> None:
    try:
        decode_message(data, start)
    except DataError as error:
        assert "malformed pgoutput message" in error.message  # noqa: PT017
