"""Digests the values of a row, so that states of a table can be compared without their rows.

A row's digests are one string, with each column's at its place, all of the same width. A string may end early if
columns were added later. Values are compared as the archive holds them.
"""

from hashlib import blake2b
from typing import Final

from cdc.change import Relation
from cdc.row import ABSENT, Oid, Row, Value

WIDTH: Final = 8
UNKNOWN: Final = b"\xff" * WIDTH
_NULL: Final = b"\0" * WIDTH


def digest(value: Value) -> bytes:
    """Digest one value; UNKNOWN for one that Postgres did not send."""
    if isinstance(value, bytes):
        return blake2b(value, digest_size=WIDTH).digest()
    return UNKNOWN if value is ABSENT else _NULL


def digest_at(digests: bytes, place: int) -> bytes:
    """The digest of the column that has this place; UNKNOWN behind the end."""
    return digests[place * WIDTH : (place + 1) * WIDTH] or UNKNOWN


def as_archived(relation: Relation, row: Row) -> Row:
    """The row as the archive holds it: line breaks of a `json` become spaces."""
    return [
        value.replace(b"\n", b" ").replace(b"\r", b" ")
        if column.type_oid == Oid.JSON and isinstance(value, bytes)
        else value
        for column, value in zip(relation.columns, row, strict=True)
    ]
