"""A row as digests of its values, for comparing states of a table without holding their rows.

A row's digests are one string, each column's at its place, all of the same width; a string may end early, where columns
were added later. Values compare as the archive holds them.
"""

from hashlib import blake2b
from typing import Final

from cdc.change import Relation
from cdc.row import ABSENT, Oid, Row, Value

WIDTH: Final = 8
UNKNOWN: Final = b"\xff" * WIDTH
_NULL: Final = b"\0" * WIDTH


def digest(value: Value) -> bytes:
    """Of one value; UNKNOWN for one that Postgres did not send."""
    if isinstance(value, bytes):
        return blake2b(value, digest_size=WIDTH).digest()
    return UNKNOWN if value is ABSENT else _NULL


def digest_at(digests: bytes, place: int) -> bytes:
    """The digest of the column that has this place; UNKNOWN behind the end."""
    return digests[place * WIDTH : (place + 1) * WIDTH] or UNKNOWN


def as_archived(relation: Relation, row: Row) -> Row:
    """Line breaks of a `json` become spaces in the archive."""
    return [
        value.replace(b"\n", b" ").replace(b"\r", b" ")
        if column.type_oid == Oid.JSON and isinstance(value, bytes)
        else value
        for column, value in zip(relation.columns, row, strict=True)
    ]
