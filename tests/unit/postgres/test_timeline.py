"""A timeline history file, as Postgres writes it."""

import pytest

from cdc.errors import DataError
from cdc.postgres.timeline import parse_history


def test_each_line_says_where_a_timeline_was_left() -> None:
    content = (
        b"1\t0/3000148\tno recovery target specified\n\n# a comment\n2\t16/B374D848\tbefore 2026-11-22 18:07:13+00\n"
    )
    assert parse_history(content) == {1: 0x3000148, 2: 0x16_B374D848}


def test_the_first_timeline_has_no_ancestors() -> None:
    assert parse_history(b"") == {}


@pytest.mark.parametrize("line", [b"one\t0/1\n", b"1\n", b"1\tnowhere\treason\n"])
def test_anything_else_is_not_guessed_at(line: bytes) -> None:
    with pytest.raises(DataError, match="timeline history"):
        parse_history(line)
