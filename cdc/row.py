"""A row as Postgres printed it, and the same row as JSON: the public contract's value rules, in both directions.

A `Row` is a list with one value for each column of its relation: the bytes of Postgres's text output, None for NULL,
or ABSENT where Postgres sent nothing (an unchanged TOAST value, the rest of a key-only old tuple). No value is ever
parsed in order to store it, so `NaN`, `infinity`, BC dates and 16 kB numerics survive as they are:

- NULL is `null`; booleans are JSON booleans; int2/4/8 and finite floats are JSON numbers, digits unchanged;
- json and jsonb are embedded (line breaks, which JSON allows only as white space, become spaces);
- everything else is the string that Postgres printed, or `{"$base64": "..."}` if its bytes are not UTF-8;
- a JSON `null`, which is not NULL, and a JSON object that starts with one of our own marks, are `{"$json": ...}`.

`RowCodec.encode` and `RowCodec.decode` are inverse to one another (but for the white space of `json`).
"""

import base64
import enum
import re
from collections.abc import Sequence
from typing import Final

import msgspec
import orjson

from cdc.errors import DataError


class Absent(enum.Enum):
    """The type of ABSENT: this value was not sent, which is not NULL."""

    ABSENT = "absent"

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent.ABSENT

Value = bytes | None | Absent
Row = list[Value]

_TEXT, _INTEGER, _FLOAT, _BOOLEAN, _JSON = range(5)

# Type oids are Postgres's own and never change (pg_type.dat).
_KIND_OF_TYPE = {
    16: _BOOLEAN,
    20: _INTEGER,
    21: _INTEGER,
    23: _INTEGER,
    700: _FLOAT,
    701: _FLOAT,
    114: _JSON,
    3802: _JSON,
}

_MARKED = re.compile(rb'\s*\{\s*"\$(?:json|base64)"')
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


def encode_text(value: bytes) -> bytes:
    """A JSON string of UTF-8 bytes, or `{"$base64": ...}` of any others."""
    try:
        return orjson.dumps(value.decode())
    except UnicodeDecodeError:
        return b'{"$base64":"' + base64.b64encode(value) + b'"}'


def decode_text(value: bytes) -> bytes:
    """The bytes that `encode_text` was given."""
    if value.startswith(b"{"):
        return base64.b64decode(orjson.loads(value)["$base64"], validate=True)
    text: str = orjson.loads(value)
    return text.encode()


def _encode_json(value: bytes) -> bytes:
    if b"\n" in value or b"\r" in value:
        value = value.replace(b"\n", b" ").replace(b"\r", b" ")
    if value.strip() == b"null" or (b'"$' in value and _MARKED.match(value)):
        value = b'{"$json":' + value + b"}"
    try:
        value.decode()
    except UnicodeDecodeError:
        return encode_text(value)
    return value


def _decode_json(value: bytes) -> bytes:
    if not value.startswith(b'{"$'):
        return value
    marked = _OBJECT.decode(value)
    if "$json" in marked:
        return bytes(marked["$json"])
    return decode_text(value) if "$base64" in marked else value


class RowCodec:
    """Encodes and decodes the rows of one relation.

    Built from the columns' names and type oids, in the relation's order.
    """

    __slots__ = ("_columns", "_kinds", "_names", "_width")

    def __init__(self, names: Sequence[str], type_oids: Sequence[int]) -> None:
        self._width = len(names)
        self._names = list(names)
        self._kinds = [_KIND_OF_TYPE.get(oid, _TEXT) for oid in type_oids]
        self._columns = [
            (b"," + orjson.dumps(name) + b":", kind) for name, kind in zip(self._names, self._kinds, strict=True)
        ]

    def encode(self, row: Row, only: Sequence[int] | None = None) -> bytes:
        """The row as one JSON object on one line, ABSENT columns left out; `only` picks columns by index."""
        parts: list[bytes] = []
        columns = self._columns
        for index in range(self._width) if only is None else only:
            value = row[index]
            if isinstance(value, Absent):
                continue
            name, kind = columns[index]
            parts.append(name)
            if value is None:
                parts.append(b"null")
            elif kind == _TEXT:
                parts.append(encode_text(value))
            elif kind == _INTEGER:
                parts.append(value)
            elif kind == _BOOLEAN:
                parts.append(b"true" if value == b"t" else b"false")
            elif kind == _FLOAT:
                parts.append(value if value[-1:].isdigit() else b'"' + value + b'"')
            else:
                parts.append(_encode_json(value))
        if not parts:
            return b"{}"
        return b"{" + b"".join(parts)[1:] + b"}"

    def decode(self, encoded: bytes) -> Row:
        """The row that gave this JSON object; columns it does not name are ABSENT.

        Raises DataError for bytes that `encode` cannot have written.
        """
        try:
            values = _OBJECT.decode(encoded)
            return [
                self._decode_value(kind, bytes(values[name])) if name in values else ABSENT
                for name, kind in zip(self._names, self._kinds, strict=True)
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError("a row in the archive is not as this program writes rows", detail=str(error)) from error

    def _decode_value(self, kind: int, value: bytes) -> bytes | None:
        if value == b"null":
            return None
        if kind == _TEXT:
            return decode_text(value)
        if kind == _BOOLEAN:
            return b"t" if value == b"true" else b"f"
        if kind == _JSON:
            return _decode_json(value)
        return value[1:-1] if value.startswith(b'"') else value
