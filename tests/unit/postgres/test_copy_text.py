"""COPY text: what Postgres escaped comes back byte for byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.postgres.snapshot import decode_row

_ESCAPES = {8: b"\\b", 12: b"\\f", 10: b"\\n", 13: b"\\r", 9: b"\\t", 11: b"\\v", 92: b"\\\\"}


def _copy_line(row: list[bytes | None]) -> bytes:
    """As CopyAttributeOutText in copyto.c writes it."""
    fields = [rb"\N" if value is None else b"".join(_ESCAPES.get(b, bytes([b])) for b in value) for value in row]
    return b"\t".join(fields) + b"\n"


@given(st.lists(st.none() | st.binary(max_size=60).filter(lambda value: b"\0" not in value), min_size=1, max_size=8))
def test_any_row_comes_back_as_it_was(row: list[bytes | None]) -> None:
    assert decode_row(_copy_line(row), len(row)) == row


@pytest.mark.parametrize(
    ("line", "row"),
    [
        (b"\\N\t\\\\N\t\n", [None, b"\\N", b""]),
        (b"a\\tb\\nc\\\\d\n", [b"a\tb\nc\\d"]),
        (b"\\\\x6869\n", [b"\\x6869"]),
        (b"\n", [b""]),
        (b"\xff\xfe\t1\n", [b"\xff\xfe", b"1"]),
    ],
)
def test_null_backslash_n_and_the_empty_string_are_three_things(line: bytes, row: list[bytes | None]) -> None:
    assert decode_row(line, len(row)) == row


def test_a_table_without_columns_has_rows_without_values() -> None:
    assert decode_row(b"\n", 0) == []
