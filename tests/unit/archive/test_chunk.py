"""A chunk's rows as COPY reads them: what Postgres's own COPY would write, by the quick way and by the thorough one."""

import dataclasses
from collections.abc import AsyncGenerator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.archive.format.header import Header, Writer
from cdc.archive.format.lines import Encoder
from cdc.archive.format.segment import decode_segment, encode_segment
from cdc.change import READ, Column, Relation, RowChange, Transaction
from cdc.errors import DataError
from cdc.postgres.snapshot import decode_row
from cdc.restore.ahead import ahead
from cdc.restore.chunk import copy_pieces
from cdc.row import Row, Value
from tests.support.transactions import SOURCE

OIDS = {"id": 20, "t": 25, "f": 701, "b": 16, "j": 114, "jb": 3802, "n": 1700, "by": 17}
ODD = Relation(1, "public", "odd", "d", [Column(name, name, oid, -1, name == "id") for name, oid in OIDS.items()])


def chunk_of(rows: Sequence[Row], relation: Relation = ODD) -> bytes:
    changes = [RowChange(READ, seq, relation, list(row), None) for seq, row in enumerate(rows)]
    encoder = Encoder()
    body = encoder.encode(None, Transaction(0, 100, 0, []), changes)
    header = Header(
        archive="a", seq=1, kind="base", prev_sha256=None, writer=Writer("w", 1), source=SOURCE, first_lsn=None,
        last_lsn=0, covered_upto=0, first_ordinal=0, transactions=0, changes=len(rows), from_time_us=None,
        to_time_us=None, relations=encoder.relations, body_bytes=len(body),
    )  # fmt: skip
    return encode_segment(header, [body], 1)


def read_back(body: bytes, wanted: Sequence[str] = tuple(OIDS)) -> list[Row]:
    pieces = list(copy_pieces(body, wanted))
    lines = b"".join(piece.lines for piece in pieces).splitlines(keepends=True)
    assert len(lines) == sum(piece.rows for piece in pieces)
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True] * bool(pieces)
    return [decode_row(line, len(pieces[0].columns)) for line in lines]


def optional(*values: bytes) -> st.SearchStrategy[Value]:
    return st.one_of(st.none(), st.sampled_from(values))


_TEXT = st.one_of(
    st.none(),
    st.binary(max_size=12).filter(lambda value: b"\0" not in value),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12).map(str.encode),
    st.sampled_from([b"", rb"\N", rb"\.", b"null", b'{"$json":1}', b'a\tb\nc\r\\d"', b"\xed\xa0\x80", "é😀".encode()]),
)
_ROWS = st.tuples(
    optional(b"1", b"-9223372036854775808"),
    _TEXT,
    optional(b"NaN", b"-Infinity", b"1e-300", b"-0", b"0.5"),
    optional(b"t", b"f"),
    optional(b'{"a":\t1}', b'"\\u00e9"', b"null", b'"null"', b'{"$json": 1}', b'"\\ud83d"', b'"a\\nb"', b"[1, 2]"),
    optional(b'{"a": "b\\\\c"}', b"null", b'{"$base64": "x"}', b'"NaN"', b"1.50"),
    optional(b"1.50", b"NaN"),
    optional(rb"\x00ff5c", rb"\x"),
).map(list)


@given(st.lists(_ROWS, min_size=1, max_size=5))
def test_any_row_is_the_line_that_copy_would_write(rows: list[Row]) -> None:
    assert read_back(chunk_of(rows)) == rows


def test_a_column_that_the_target_has_not_is_left_out() -> None:
    row: Row = [b"7", b"x\ty", None, b"t", None, b"{}", b"1", None]
    assert read_back(chunk_of([row]), ("by", "t", "id")) == [[b"7", b"x\ty", None]]


@pytest.mark.parametrize("name", ["näme", 'a "b"', "a\\b", "Key col", "class", "1"])
def test_any_column_may_have_any_name(name: str) -> None:
    relation = Relation(1, "public", "odd", "d", [Column(name, "text", 25, -1, True)])
    assert read_back(chunk_of([[b"a\\b"], [b"c"]], relation), (name,)) == [[b"a\\b"], [b"c"]]


def test_large_chunks_come_in_pieces() -> None:
    rows: list[Row] = [[b"%d" % n, b"x" * 1000, None, None, None, None, None, None] for n in range(1000)]
    assert len(list(copy_pieces(chunk_of(rows), tuple(OIDS)))) > 3
    assert read_back(chunk_of(rows)) == rows


def test_a_chunk_without_rows_gives_nothing() -> None:
    assert read_back(chunk_of([])) == []


@pytest.mark.parametrize(
    ("before", "after"), [(b'"op":"r"', b'"op":"c"'), (b'"public.odd"', b'"public.bad"'), (b'"b":true', b'"b":1')]
)
def test_what_is_no_row_of_the_table_is_damage(before: bytes, after: bytes) -> None:
    segment = decode_segment(chunk_of([[b"1", None, None, b"t", None, None, None, None]]))
    lines = [line.replace(before, after) + b"\n" for line in segment.lines]
    damaged = encode_segment(dataclasses.replace(segment.header, body_bytes=sum(map(len, lines))), lines, 1)
    with pytest.raises(DataError, match="holds what is no row"):
        list(copy_pieces(damaged, tuple(OIDS)))


async def test_what_fails_ahead_fails_where_it_is_taken() -> None:
    async def items() -> AsyncGenerator[int]:
        yield 1
        yield 2
        raise DataError("damaged")

    taken: list[int] = []

    async def take() -> None:
        async for item in ahead(items(), 1):
            taken.append(item)  # noqa: PERF401 - those before the failure count

    with pytest.raises(DataError, match="damaged"):
        await take()
    assert taken == [1, 2]
