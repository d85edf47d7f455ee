"""Segments: what is encoded comes back, whatever the values; what is damaged gives DataError and nothing else."""

import base64
import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc.archive.format.header import Base, Chunk, Fork, Gap, Header, Part, Source, Writer, shapes_by_name
from cdc.archive.format.header_line import decode_header, encode_header
from cdc.archive.format.lines import Encoder
from cdc.archive.format.segment import Segment, compress_frame, decode_segment, decode_segment_header, encode_segment
from cdc.change import Change, Column, LogicalMessage, Relation, RowChange, Transaction, Truncate
from cdc.errors import DataError
from cdc.position import Epoch
from cdc.row import ABSENT, Row
from tests.support.transactions import (
    EPOCH,
    OUTBOX,
    SOURCE,
    TURNS,
    WIDER_TURNS,
    created,
    facts,
    facts_of_relation,
    transaction,
    with_changes,
)


def encode(transactions: list[Transaction], first_ordinal: int = 41, seq: int = 7) -> bytes:
    encoder = Encoder()
    lines = [encoder.encode(first_ordinal + at, one, one.changes) for at, one in enumerate(transactions) if one.changes]
    header = Header(
        archive="4be2f8c0",
        seq=seq,
        kind="data",
        prev_sha256="00" * 32,
        writer=Writer("w", 3),
        source=SOURCE,
        first_lsn=transactions[0].commit_lsn,
        last_lsn=transactions[-1].commit_lsn,
        covered_upto=transactions[-1].end_lsn,
        first_ordinal=first_ordinal,
        transactions=len(transactions),
        changes=encoder.lines,
        from_time_us=min(one.commit_time_us for one in transactions),
        to_time_us=max(one.commit_time_us for one in transactions),
        relations=encoder.relations,
        reshaped=tuple(encoder.reshaped),
        body_bytes=sum(map(len, lines)),
        ends=tuple(one.end_lsn - one.commit_lsn for one in transactions),
    )
    return encode_segment(header, lines, 3)


# Values as Postgres prints them, by type. JSON keeps its text, but for line breaks.
json_text = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("$base64"), inner, max_size=3),
    max_leaves=8,
).map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
VALUES: dict[int, st.SearchStrategy[bytes]] = {
    16: st.sampled_from([b"t", b"f"]),
    20: st.integers(-(2**63), 2**63 - 1).map(lambda value: b"%d" % value),
    25: st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace")),
    701: st.sampled_from([b"0", b"-0", b"1e+300", b"1.5e-07", b"NaN", b"Infinity", b"-Infinity", b"12345.678"]),
    1700: st.sampled_from([b"NaN", b"1" * 200, b"0.00000000000000000001"]),
    3802: json_text.filter(lambda text: b"\\ud" not in text),
}
TYPE_NAMES = {16: "bool", 20: "int8", 25: "text", 701: "float8", 1700: "numeric", 3802: "jsonb"}


@st.composite
def relations(draw: st.DrawFn, name: str) -> Relation:
    names = draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5, unique=True))
    oids = [draw(st.sampled_from(sorted(VALUES))) for _ in names]
    keys = [draw(st.booleans()) for _ in names]
    columns = [Column(n, TYPE_NAMES[o], o, -1, k) for n, o, k in zip(names, oids, keys, strict=True)]
    return Relation(draw(st.integers(1, 2**32 - 1)), "public", name, draw(st.sampled_from("dfni")), columns)


def rows(relation: Relation, absent: bool) -> st.SearchStrategy[Row]:
    gone: list[Any] = [st.none()] + ([st.just(ABSENT)] if absent else [])
    return st.tuples(*(st.one_of(VALUES[c.type_oid], *gone) for c in relation.columns)).map(list)


@st.composite
def changes(draw: st.DrawFn, seq: int, known: list[Relation]) -> Change:
    relation, op = draw(st.sampled_from(known)), draw(st.sampled_from("ccuudtm"))
    if op == "t":
        return Truncate(seq, relation, cascade=draw(st.booleans()), restart_identity=draw(st.booleans()))
    if op == "m":
        prefix, content = draw(st.text(max_size=8)), draw(st.binary(max_size=30))
        return LogicalMessage(seq, prefix, content, transactional=draw(st.booleans()))
    new = None if op == "d" else draw(rows(relation, absent=op == "u"))
    old = draw(rows(relation, absent=True)) if op == "d" or (op == "u" and draw(st.booleans())) else None
    return RowChange(op, seq, relation, new, old)


@st.composite
def histories(draw: st.DrawFn) -> list[Transaction]:
    # Two of one name: the table was altered in between.
    known = [draw(relations("a")), draw(relations("b")), draw(relations("b"))]
    history, lsn = [], 0
    for xid in range(1, draw(st.integers(1, 5)) + 1):
        lsn += draw(st.integers(1, 2**40))
        end_lsn = lsn + draw(st.integers(0, 1000))
        made = [draw(changes(seq, known)) for seq in range(draw(st.integers(1, 4)))]
        time_us = draw(st.integers(0, 4 * 10**15))
        history.append(Transaction(xid, lsn, time_us, made, end_lsn=end_lsn))
        lsn = end_lsn
    return history


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(histories())
def test_what_is_encoded_comes_back(history: list[Transaction]) -> None:
    assert facts(decode_segment(encode(history)).transactions()) == facts(history)


@settings(deadline=None)
@given(st.data())
def test_a_damaged_byte_gives_data_error_or_no_difference(data: st.DataObject) -> None:
    body = DAMAGED
    at = data.draw(st.integers(0, len(body) - 1))
    byte = data.draw(st.integers(0, 255))
    damaged = body[:at] + bytes([byte]) + body[at + 1 :]
    assert_data_error_or_same(damaged)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_cut_or_doubled_object_gives_data_error(at: int, to: int) -> None:
    at, to = at % len(DAMAGED), to % len(DAMAGED)
    assert_data_error_or_same(DAMAGED[:at] + DAMAGED[max(at, to) + 1 :])
    assert_data_error_or_same(DAMAGED[:at] + DAMAGED[min(at, to) :])


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_give_data_error(body: bytes) -> None:
    for damaged in (body, compress_frame(body, 3), DAMAGED[:40] + body, compress_frame(body + b"\n", 3)):
        with pytest.raises(DataError):
            decode_segment(damaged)


@settings(deadline=None)
@given(st.data())
def test_a_damaged_line_gives_data_error_or_another_value(data: st.DataObject) -> None:
    """Behind a right checksum: what a wrong program, not a wrong disk, may write."""
    segment = decode_segment(DAMAGED)
    number = data.draw(st.integers(0, len(segment.lines) - 1))
    line = bytearray(segment.lines[number])
    for _ in range(data.draw(st.integers(1, 3))):
        line[data.draw(st.integers(0, len(line) - 1))] = data.draw(st.integers(0, 255).filter(lambda byte: byte != 10))
    lines = [*segment.lines[:number], bytes(line), *segment.lines[number + 1 :]]
    with contextlib.suppress(DataError):
        Segment(segment.header, lines).transactions()


@settings(deadline=None)
@given(st.data())
def test_a_damaged_header_gives_data_error_or_another_header(data: st.DataObject) -> None:
    line = bytearray(encode_header(decode_segment_header(DAMAGED)))
    for _ in range(data.draw(st.integers(1, 3))):
        line[data.draw(st.integers(0, len(line) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DataError):
        decode_header(bytes(line))


def assert_data_error_or_same(damaged: bytes) -> None:
    try:
        found = facts(decode_segment(damaged).transactions())
    except DataError:
        return
    assert found == facts(SOME)


SOME = [
    transaction(1, 3),
    with_changes(
        2,
        [
            RowChange("u", 0, TURNS, [b"1", ABSENT, None, b"null", b"f"], [b"2", ABSENT, ABSENT, ABSENT, ABSENT]),
            RowChange("d", 1, OUTBOX, None, [b"9"]),
            Truncate(2, OUTBOX, cascade=True, restart_identity=False),
            LogicalMessage(3, "cdc.ddl", b"\xff\x00", transactional=True),
            RowChange("c", 4, WIDER_TURNS, [b"1", b"x", b"1", b"{}", b"t", b"note"], None),
        ],
    ),
]
DAMAGED = encode(SOME)


def lines_of(body: bytes) -> list[dict[str, Any]]:
    text = zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True).read()
    return [json.loads(line) for line in text.splitlines()]


def test_an_object_is_lines_of_json_across_its_frames() -> None:
    one = transaction(1, 2)
    one.commit_time_us = 1_795_000_000_000_001
    header, *lines = lines_of(encode([one]))
    assert list(header)[:4] == ["cdc", "archive", "seq", "kind"]
    assert header["cdc"] == 1
    assert header["source"]["system_identifier"] == EPOCH.system_identifier
    assert header["first_lsn"] == "0/64"
    assert lines[0] == {
        "ord": 41,
        "lsn": "0/64",
        "seq": 0,
        "xid": 1,
        "time": "2026-11-18T11:06:40.000001Z",
        "op": "c",
        "table": "public.turns",
        "key": {"id": 1000},
        "after": {"id": 1000, "content": "hello", "confidence": 0.5, "metadata": {"a": 1}, "final": True},
    }


def test_lines_say_what_the_design_says() -> None:
    _, *lines = lines_of(DAMAGED)
    update, delete, truncate, message = lines[3:7]
    assert update["unchanged"] == ["content"]
    assert update["before"] == {"id": 2}
    assert update["after"] == {"id": 1, "confidence": None, "metadata": {"$json": None}, "final": False}
    assert "after" not in delete
    assert delete["key"] == delete["before"] == {"id": 9}
    assert (truncate["op"], truncate["table"]) == ("t", "public.outbox")
    assert (truncate["cascade"], truncate["restart_identity"]) == (True, False)
    assert (message["op"], message["prefix"], message["transactional"]) == ("m", "cdc.ddl", True)
    assert message["content"] == {"$base64": base64.b64encode(b"\xff\x00").decode()}


def test_a_table_altered_within_a_segment_keeps_both_shapes() -> None:
    wider = RowChange("c", 0, WIDER_TURNS, [b"1", b"x", b"1", b"{}", b"t", b"note"], None)
    history = [transaction(1), with_changes(2, [wider]), transaction(3)]
    segment = decode_segment(encode(history))
    assert [(change.line, change.table) for change in segment.header.reshaped] == [
        (1, "public.turns"),
        (2, "public.turns"),
    ]
    assert facts(segment.transactions()) == facts(history)


def test_a_relation_described_again_alike_is_no_other_shape() -> None:
    again = Relation(TURNS.oid, TURNS.schema, TURNS.name, TURNS.replica_identity, TURNS.columns)
    history = [transaction(1), with_changes(2, [RowChange("c", 0, again, [b"1", b"", b"1", b"1", b"t"], None)])]
    assert decode_segment_header(encode(history)).reshaped == ()


def test_archived_rows_come_back_with_their_very_bytes() -> None:
    spaced = RowChange("c", 0, TURNS, [b"1", b"x", b"1.50", b'{"b":  [1, 2]}', b"t"], None)
    change = decode_segment(encode([with_changes(1, [spaced])])).transactions()[0].changes[0]
    assert isinstance(change, RowChange)
    assert change.after == spaced.after


def test_a_jsonb_value_may_be_nested_deeply() -> None:
    deep = b"[" * 5000 + b"]" * 5000
    history = [with_changes(1, [RowChange("c", 0, TURNS, [b"1", b"x", b"1", deep, b"t"], None)])]
    assert facts(decode_segment(encode(history)).transactions()) == facts(history)


def test_a_large_value_takes_several_frames() -> None:
    history = [with_changes(1, [created(0, 1, b"x" * 5_000_000), created(1, 2, b"y")])]
    body = encode(history)
    assert body.count(zstandard.FRAME_HEADER) == 6
    assert facts(decode_segment(body).transactions()) == facts(history)


def test_an_object_that_would_grow_beyond_its_blocks_is_refused_before_it_does() -> None:
    frame = bytearray(compress_frame(b"x" * 1000, 3))
    parameters = zstandard.get_frame_parameters(bytes(frame))
    assert parameters.content_size == 1000
    huge = zstandard.FRAME_HEADER + bytes([0b11100100]) + (1 << 60).to_bytes(8, "little") + bytes(frame[7:])
    with pytest.raises(DataError):
        decode_segment_header(huge)


def test_a_header_comes_back() -> None:
    header = Header(
        archive="4be2f8c0",
        seq=2,
        kind="snapshot",
        prev_sha256=None,
        writer=Writer("w", 1),
        source=Source(epoch=Epoch("1", 2), database="d"),
        first_lsn=None,
        last_lsn=0xFFFFFFFFFFFFFFFF,
        covered_upto=1,
        relations=shapes_by_name([TURNS, OUTBOX]),
        part=Part(5, 1, False, 10, 771),
        base=Base(2, 17, (Chunk("base/2/public.turns/0", "public.turns", 3, 80, "00"),)),
        gap=Gap(18, "slot lost"),
        fork=Fork(Epoch("1", 1), 19, "promoted"),
    )
    assert decode_header(encode_header(header)) == header
    assert json.loads(encode_header(header))["gap"] == {"from": "0/12", "reason": "slot lost"}


def test_a_header_of_a_later_version_is_refused() -> None:
    line = encode_header(decode_segment_header(DAMAGED)).replace(b'{"cdc":1,', b'{"cdc":2,')
    with pytest.raises(DataError, match="header"):
        decode_header(line)


def test_a_header_with_fields_of_a_later_version_is_read() -> None:
    line = encode_header(decode_segment_header(DAMAGED))
    assert decode_header(line[:-1] + b',"later":{}}') == decode_segment_header(DAMAGED)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"ord":42', b'"ord":43'),
        (b'"ord":42', b'"ord":41'),
        (b'"lsn":"0/C8"', b'"lsn":"nowhere"'),
        (b'"table":"public.turns"', b'"table":"public.unknown"'),
        (b'"op":"d"', b'"op":"c"'),
        (b'"op":"c"', b'"op":"r"'),
        (b'"op":"c"', b'"op":"x"'),
        (b'"time":"2026', b'"time":"20x6'),
        (b'Z"', b'"'),
        (b'{"$base64":"', b'{"$base46":"'),
        (b'{"$base64":"', b'{"$base64":"*'),
    ],
)
def test_a_line_that_does_not_fit_gives_data_error(old: bytes, new: bytes) -> None:
    segment = decode_segment(DAMAGED)
    lines = [line.replace(old, new) for line in segment.lines]
    assert lines != segment.lines
    with pytest.raises(DataError):
        Segment(segment.header, lines).transactions()


def test_lines_that_the_header_does_not_count_give_data_error() -> None:
    segment = decode_segment(DAMAGED)
    body = [line + b"\n" for line in segment.lines]
    for header in (
        replace(segment.header, changes=segment.header.changes + 1),
        replace(segment.header, body_bytes=segment.header.body_bytes - 1),
    ):
        with pytest.raises(DataError):
            decode_segment(encode_segment(header, body, 3))
    with pytest.raises(DataError):
        decode_segment(encode_segment(segment.header, body[:-1], 3))


def test_relations_with_equal_shapes_are_one_object() -> None:
    first, second = (decode_segment(encode([transaction(n)])).transactions()[0].changes[0] for n in (1, 2))
    assert isinstance(first, RowChange)
    assert isinstance(second, RowChange)
    assert first.relation is second.relation
    assert facts_of_relation(first.relation) == facts_of_relation(TURNS)
