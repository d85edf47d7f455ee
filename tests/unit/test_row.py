"""Rows as JSON: the value rules of docs/archive-format.md, and that decoding undoes encoding."""

import base64
import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cdc.change import UPDATE, Column, Relation, RowChange
from cdc.errors import DataError
from cdc.row import ABSENT, Row, RowCodec, Value, decode_text, encode_text

BOOLEAN, INT8, TEXT, JSON, FLOAT8, NUMERIC, JSONB = 16, 20, 25, 114, 701, 1700, 3802


def encode_one(type_oid: int, value: Value) -> bytes:
    encoded = RowCodec(["v"], [type_oid]).encode([value])
    assert encoded.startswith(b'{"v":')
    return encoded[5:-1]


@pytest.mark.parametrize(
    ("type_oid", "value", "encoded"),
    [
        (TEXT, None, b"null"),
        (TEXT, b"", b'""'),
        (TEXT, b"null", b'"null"'),
        (
            TEXT,
            'a "b" \\ \n \t \x01 \x7f é 😀 \u2028'.encode(),
            '"a \\"b\\" \\\\ \\n \\t \\u0001 \x7f é 😀 \u2028"'.encode(),
        ),
        (TEXT, b"\xff\x00", b'{"$base64":"/wA="}'),
        (TEXT, b"\xed\xa0\x80", b'{"$base64":"7aCA"}'),
        (BOOLEAN, b"t", b"true"),
        (BOOLEAN, b"f", b"false"),
        (INT8, b"-9223372036854775808", b"-9223372036854775808"),
        (FLOAT8, b"1e+300", b"1e+300"),
        (FLOAT8, b"-0", b"-0"),
        (FLOAT8, b"NaN", b'"NaN"'),
        (FLOAT8, b"-Infinity", b'"-Infinity"'),
        (NUMERIC, b"1.50", b'"1.50"'),
        (JSONB, b'{"a": [1, null]}', b'{"a": [1, null]}'),
        (JSON, b'{"a":\r\n1}', b'{"a":  1}'),
        (JSON, b"null", b'{"$json":null}'),
        (JSON, b" null\n", b'{"$json": null }'),
        (JSONB, b'{"$json": 1}', b'{"$json":{"$json": 1}}'),
        (JSON, b' { "$base64" : 1}', b'{"$json": { "$base64" : 1}}'),
        (JSONB, b'{"other": 1, "$base64": 2}', b'{"other": 1, "$base64": 2}'),
        (JSON, b'"\xff"', b'{"$base64":"Iv8i"}'),
        (JSON, rb'"\ud83d\ude00"', rb'"\ud83d\ude00"'),
        (JSON, rb'"\ud83d"', b'{"$base64":"Ilx1ZDgzZCI="}'),
        (JSON, b"1e400", b"1e400"),
    ],
)
def test_a_value_is_written_as_the_contract_says(type_oid: int, value: Value, encoded: bytes) -> None:
    assert encode_one(type_oid, value) == encoded


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "\\ud800", "b": "\\u0000", "a": 2}',
        "[" * 800 + "]" * 800,
        "[" * 200_000 + "]" * 200_000,
        "[" + "[1, 2], " * 1000 + '{"\\ud83d\\ude00": "\\u00e9"}]',
        '{"$json": {"$json": null}}',
        '{"$other": 1, "$json": 2}',
        '{"\\u0024json": 1}',
        "123456789012345678901234567890.10",
    ],
    ids=["escapes", "deep", "too deep", "wide", "marks in marks", "a mark second", "an escaped mark", "digits"],
)
def test_json_that_postgres_accepts_survives_whatever_parsers_think_of_it(text: str) -> None:
    codec = RowCodec(["id", "v"], [INT8, JSON])
    row: Row = [b"1", text.encode()]
    encoded = codec.encode(row)
    assert codec.decode(encoded) == row
    assert orjson.loads(encoded)["id"] == 1


def test_absent_columns_are_left_out_and_come_back_absent() -> None:
    codec = RowCodec(["a", "b"], [INT8, TEXT])
    assert codec.encode([ABSENT, None]) == b'{"b":null}'
    assert codec.encode([ABSENT, ABSENT]) == b"{}"
    assert codec.decode(b'{"b":null}') == [ABSENT, None]


def test_columns_are_picked_by_index_in_the_order_asked_for() -> None:
    codec = RowCodec(["a", "b", "c"], [INT8, TEXT, TEXT])
    row: Row = [b"1", b"\xff", b"z"]
    assert codec.encode(row, [2, 0]) == b'{"c":"z","a":1}'
    assert codec.encode(row, [1]) == b'{"b":{"$base64":"/w=="}}'
    assert codec.encode(row, []) == b"{}"


def test_a_relation_without_columns_has_empty_rows() -> None:
    codec = RowCodec([], [])
    assert codec.encode([]) == b"{}"
    assert codec.decode(b"{}") == []


@pytest.mark.parametrize(
    "encoded", [b"", b"[]", b"{", b'{"v":1}', b'{"v":{"$base64":"!"}}', b'{"v":{"x":"aa"}}', b"\xff"]
)
def test_what_no_encoder_wrote_is_a_data_error(encoded: bytes) -> None:
    with pytest.raises(DataError):
        RowCodec(["v"], [TEXT]).decode(encoded)


_whole_numbers = st.integers(-(2**63), 2**63 - 1).map(lambda n: b"%d" % n)
_json_texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["$json", "$base64", "$", "a"]) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
).map(lambda value: json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass"))
_values: dict[int, st.SearchStrategy[bytes]] = {
    TEXT: st.binary() | st.text().map(lambda text: text.encode(errors="surrogatepass")),
    NUMERIC: st.sampled_from([b"NaN", b"Infinity", b"1" * 16000, b"-0.00"]),
    INT8: _whole_numbers,
    FLOAT8: st.floats().map(lambda number: repr(number).replace("inf", "Infinity").replace("nan", "NaN").encode()),
    BOOLEAN: st.sampled_from([b"t", b"f"]),
    JSON: _json_texts,
    JSONB: _json_texts,
}
_ascii = st.characters(codec="ascii", exclude_characters="\0")
_ascii_names = st.text(_ascii, min_size=1, max_size=9)
_names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


@st.composite
def _rows(draw: st.DrawFn) -> tuple[list[str], list[int], Row]:
    # A table whose names are all ASCII is decoded by another way, so half of the tables are made so.
    names = draw(st.lists(draw(st.sampled_from([_names, _ascii_names])), max_size=8, unique=True))
    types = [draw(st.sampled_from(list(_values))) for _ in names]
    row: Row = [draw(st.none() | st.just(ABSENT) | _values[type_oid]) for type_oid in types]
    return names, types, row


@pytest.mark.parametrize(
    "name", ["plain", "0\x80", "na\u00efve \U0001f600", 'a "quoted" \\ name', "\t\x01\x7f", "$base64", "/", " "]
)
@pytest.mark.parametrize("type_oid", [TEXT, INT8, JSON])
def test_a_column_may_have_any_name(name: str, type_oid: int) -> None:
    codec = RowCodec(["first", name, name * 2], [TEXT, type_oid, type_oid])
    rows: list[Row] = [[b"x", b"1", b"2"], [b"x", b"1", None], [ABSENT, ABSENT, b"3"]]
    for row in rows:
        assert codec.decode(codec.encode(row)) == row


@given(_rows())
@example((["$json"], [JSONB], [b'{"$json": null}']))
@example((["a", "b"], [TEXT, JSON], [b"\xff", b" null "]))
def test_a_row_becomes_one_line_of_json_and_back(table: tuple[list[str], list[int], Row]) -> None:
    names, types, row = table
    codec = RowCodec(names, types)
    line = codec.encode(row)
    assert b"\n" not in line
    assert b"\r" not in line
    assert codec.decode(line) == row
    loaded = json.loads(line)
    assert list(loaded) == [name for name, value in zip(names, row, strict=True) if value is not ABSENT]
    for name, type_oid, value in zip(names, types, row, strict=True):
        if value is not ABSENT:
            assert_contract(type_oid, value, loaded[name])


def assert_contract(type_oid: int, value: Value, loaded: Any) -> None:
    """The contract's rule, told again in other words."""
    if value is None:
        assert loaded is None
        return
    assert isinstance(value, bytes)
    try:
        text = value.decode()
    except UnicodeDecodeError:
        assert loaded == {"$base64": base64.b64encode(value).decode()}
        return
    if type_oid in (INT8, BOOLEAN):
        assert loaded == {"t": True, "f": False}.get(text, loaded)
        assert isinstance(loaded, bool) or loaded == int(text)
    elif type_oid == FLOAT8:
        assert loaded == (text if text.strip("-").isalpha() else float(text))
    elif type_oid in (JSON, JSONB):
        meant = json.loads(text)
        assert loaded in (meant, {"$json": meant})
        assert loaded is not None
    else:
        assert loaded == text


@given(st.binary() | st.text().map(lambda text: text.encode(errors="surrogatepass")))
def test_any_bytes_survive_as_text(value: bytes) -> None:
    assert decode_text(encode_text(value)) == value
    assert b"\n" not in encode_text(value)


@given(st.binary(max_size=80), st.sampled_from(list(_values)))
def test_a_damaged_row_gives_a_row_or_a_data_error(encoded: bytes, type_oid: int) -> None:
    for damaged in (encoded, b'{"v":' + encoded + b"}"):
        try:
            RowCodec(["v"], [type_oid]).decode(damaged)
        except DataError as error:
            assert error.message  # noqa: PT017


def test_a_change_offers_its_key_both_rows_and_what_is_unchanged() -> None:
    columns = [Column("id", "bigint", INT8, -1, True), Column("v", "text", TEXT, -1, False)]
    relation = Relation(1, "public", "t", "d", columns)
    change = RowChange(UPDATE, 0, relation, [b"2", ABSENT], [b"1", ABSENT])
    assert (change.key, change.before, change.after) == (b'{"id":2}', b'{"id":1}', b'{"id":2}')
    assert change.unchanged == ["v"]
    assert change.after is change.after
    plain = RowChange(UPDATE, 0, relation, [b"2", None], None)
    assert (plain.before, plain.after, plain.unchanged) == (None, b'{"id":2,"v":null}', [])


def test_an_encoded_row_does_not_hold_a_buffer_larger_than_itself() -> None:
    import tracemalloc

    codec = RowCodec(["v"], [TEXT])
    tracemalloc.start()
    try:
        kept = [codec.encode([b"value"]) for _ in range(100)]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 200 * len(kept)
