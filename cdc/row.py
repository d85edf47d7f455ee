"""Rows as Postgres printed them, and the same rows as JSON: the public contract's value rules, in both directions.

A `Row` is a list with one value for each column of its relation: the bytes of Postgres's text output, None for NULL,
or ABSENT where Postgres sent nothing (an unchanged TOAST value, the rest of a key-only old tuple). Values are stored
without being parsed, so `NaN`, `infinity`, BC dates and 16 kB numerics survive as they are:

- NULL is `null`; booleans are JSON booleans; int2/4/8 and finite floats are JSON numbers, digits unchanged;
- json and jsonb are embedded (line breaks, which JSON allows only as white space, become spaces);
- everything else is the string that Postgres printed;
- `{"$base64": "..."}` is bytes that are not UTF-8, or a `json` value that Postgres accepts and strict parsers do not
  (half a surrogate pair as an escape, thousands of levels): so a parser can read every line;
- a JSON `null`, which is not NULL, and a JSON object that starts with one of our own marks, are `{"$json": ...}`.

`RowCodec.decode` inverts `RowCodec.encode`, but for the white space of `json`.
"""

import base64
import enum
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, TypedDict, cast

import msgspec
import orjson

from cdc.errors import DataError


class Absent(enum.Enum):
    """The type of ABSENT: Postgres did not send this value, which is not the same as NULL."""

    ABSENT = "absent"

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent.ABSENT

Value = bytes | None | Absent
Row = list[Value]


class Oid:
    """Oids of types. Below FIRST_USER they are Postgres's own: the same in every cluster, and never changed.

    Sources: pg_type.dat; transam.h, FirstNormalObjectId.
    """

    BOOL: Final = 16
    INT8: Final = 20
    INT2: Final = 21
    INT4: Final = 23
    TEXT: Final = 25
    OID: Final = 26
    JSON: Final = 114
    FLOAT4: Final = 700
    FLOAT8: Final = 701
    DATE: Final = 1082
    TIMESTAMP: Final = 1114
    TIMESTAMPTZ: Final = 1184
    NUMERIC: Final = 1700
    JSONB: Final = 3802
    FIRST_USER: Final = 16384


INTEGER_OIDS: Final = frozenset({Oid.INT8, Oid.INT2, Oid.INT4})
FLOAT_OIDS: Final = frozenset({Oid.FLOAT4, Oid.FLOAT8})
JSON_OIDS: Final = frozenset({Oid.JSON, Oid.JSONB})

_TEXT, _INTEGER, _FLOAT, _BOOLEAN, _JSON = range(5)

_KIND_OF_TYPE = {
    Oid.BOOL: _BOOLEAN,
    **dict.fromkeys(INTEGER_OIDS, _INTEGER),
    **dict.fromkeys(FLOAT_OIDS, _FLOAT),
    **dict.fromkeys(JSON_OIDS, _JSON),
}

_MARKED = re.compile(r'\s*\{\s*"\$(?:json|base64)"')
_JSON_MARK = b'{"$json":'
_BASE64_MARK = b'{"$base64":'
# Shorter text is not nested deeply enough to trouble a parser: ours stop at about 1000 levels.
_SUSPICIOUSLY_LONG: Final = 1000
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def encode_text(value: bytes) -> bytes:
    """Encode UTF-8 bytes as a JSON string, and any others as `{"$base64": ...}`."""
    try:
        return orjson.dumps(value.decode())
    except UnicodeDecodeError:
        return b'{"$base64":"' + base64.b64encode(value) + b'"}'


def decode_text(value: bytes) -> bytes:
    """Return the bytes that `encode_text` was given."""
    if value.startswith(b"{"):
        return base64.b64decode(orjson.loads(value)["$base64"], validate=True)
    text: str = orjson.loads(value)
    return text.encode()


def _base64_of(value: bytes) -> dict[str, str]:
    return {"$base64": base64.b64encode(value).decode()}


def _text_or_base64(value: bytes) -> object:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return _base64_of(value)


def _boolean(value: bytes) -> object:
    return value == b"t"


def _float(value: bytes) -> object:
    """Embed the digits as a JSON number; `NaN` and the infinities, which JSON lacks, become strings."""
    return orjson.Fragment(value) if value[-1:].isdigit() else value.decode()


def _json(value: bytes) -> object:
    """Embed the document as it is, on one line. Raises UnicodeDecodeError."""
    text = value.decode()
    if "\n" in text or "\r" in text:
        text = text.replace("\n", " ").replace("\r", " ")
    if ("\\u" in text or len(text) > _SUSPICIOUSLY_LONG) and not _is_strict(text):
        return _base64_of(value)
    if text.strip() == "null" or ('"$' in text and _MARKED.match(text)):
        return {"$json": orjson.Fragment(text)}
    return orjson.Fragment(text)


def _is_strict(text: str) -> bool:
    """True if every JSON parser can read the text: `json` may hold half surrogate pairs, and any depth of nesting."""
    if not _HALF_PAIR.search(text) and text.count("[") + text.count("{") < _SUSPICIOUSLY_LONG // 2:
        return True
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _json_or_base64(value: bytes) -> object:
    try:
        return _json(value)
    except UnicodeDecodeError:
        return _base64_of(value)


Encoder = Callable[[bytes], object]

# Two encoders for each kind of value. Almost every row is UTF-8 throughout, so the first one just tries: `bytes.decode`
# called from here costs half of a function of ours around it. The second one is for the row where that fails.
_ENCODERS: dict[int, tuple[Encoder, Encoder]] = {
    _TEXT: (bytes.decode, _text_or_base64),
    _INTEGER: (orjson.Fragment, orjson.Fragment),
    _FLOAT: (_float, _float),
    _BOOLEAN: (_boolean, _boolean),
    _JSON: (_json, _json_or_base64),
}


def _decode_json(value: bytes) -> bytes:
    """Take our mark off. Every mark is ours, because `_json` wraps a value that begins with one by itself."""
    if value.startswith(_JSON_MARK):
        return value[len(_JSON_MARK) : -1]
    return decode_text(value) if value.startswith(_BASE64_MARK) else value


class RowCodec:
    """Encodes and decodes the rows of one relation.

    It is built from the columns' names and type oids, in the relation's order.
    """

    __slots__ = ("_columns", "_columns_of_bytes", "_decoder", "_indexes", "_kinds", "_openings")

    def __init__(self, names: Sequence[str], type_oids: Sequence[int]) -> None:
        self._indexes = range(len(names))
        self._kinds = [(name, _KIND_OF_TYPE.get(oid, _TEXT)) for name, oid in zip(names, type_oids, strict=True)]
        self._decoder: msgspec.json.Decoder[dict[str, Any]] | None = None
        encoders = [_ENCODERS[kind] for _, kind in self._kinds]
        self._openings = [
            b"{" + orjson.dumps(name) + b":" if kind == _INTEGER else b"" for name, kind in self._kinds
        ]  # fmt: skip
        self._columns = [(name, encoder) for name, (encoder, _) in zip(names, encoders, strict=True)]
        self._columns_of_bytes = [(name, encoder) for name, (_, encoder) in zip(names, encoders, strict=True)]

    def encode(self, row: Row, only: Sequence[int] | None = None) -> bytes:
        """Encode the row as one JSON object on one line, without ABSENT columns; `only` picks columns by index."""
        indexes = self._indexes if only is None else only
        try:
            encoded = orjson.dumps(_fields(row, indexes, self._columns))
        except UnicodeDecodeError:
            encoded = orjson.dumps(_fields(row, indexes, self._columns_of_bytes))
        # A copy: what orjson returns sits in its buffer of 4 KiB or more for as long as it lives.
        return b"".join((encoded, b""))

    def encode_key(self, row: Row, indexes: Sequence[int]) -> bytes:
        """Encode the key's columns as `encode` does; faster for the key that nearly every table has, one integer."""
        if len(indexes) == 1:
            index = indexes[0]
            value, opening = row[index], self._openings[index]
            if opening and isinstance(value, bytes):
                return b"".join((opening, value, b"}"))
        return self.encode(row, indexes)

    def decode(self, encoded: bytes) -> Row:
        """Decode the row that gave this JSON object; columns that it does not name are ABSENT.

        Raises DataError for bytes that `encode` cannot have written.
        """
        if self._decoder is None:
            self._decoder = _decoder(self._kinds)
        row: Row = []
        try:
            values = self._decoder.decode(encoded)
            for name, kind in self._kinds:
                value = values.get(name, ABSENT)
                if value is None or value is ABSENT:
                    row.append(value)
                elif kind == _TEXT and isinstance(value, str):
                    row.append(value.encode())
                else:
                    row.append(_decode_value(kind, value))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # msgspec names types and places; other messages may quote the value.
            detail = str(error) if isinstance(error, msgspec.MsgspecError) else type(error).__name__
            raise DataError("a row in the archive is not as this program writes rows", detail=detail) from error
        return row


def _decoder(kinds: list[tuple[str, int]]) -> msgspec.json.Decoder[dict[str, Any]]:
    """Build a decoder that leaves numbers and json as written, so that no digit is lost, and decodes strings.

    msgspec (0.22) silently drops fields of a TypedDict whose names are not ASCII, so there every value stays raw.
    """
    if not all(name.isascii() for name, _ in kinds):
        return msgspec.json.Decoder(dict[str, msgspec.Raw])
    shape = {name: str | dict[str, str] | None if kind == _TEXT else msgspec.Raw for name, kind in kinds}
    return msgspec.json.Decoder(cast(Any, TypedDict)("Row", shape, total=False))


def _decode_value(kind: int, value: Any) -> bytes | None:
    if isinstance(value, dict):
        return base64.b64decode(value["$base64"], validate=True)
    raw = bytes(value)
    if raw == b"null":
        return None
    if kind == _TEXT:
        return decode_text(raw)
    if kind == _BOOLEAN:
        return b"t" if raw == b"true" else b"f"
    if kind == _JSON:
        return _decode_json(raw)
    return raw[1:-1] if raw.startswith(b'"') else raw


def _fields(row: Row, indexes: Sequence[int], columns: list[tuple[str, Encoder]]) -> dict[str, object]:
    fields: dict[str, object] = {}
    for index in indexes:
        value = row[index]
        name, encoder = columns[index]
        if value is None:
            fields[name] = None
        elif value is not ABSENT:
            fields[name] = encoder(value)
    return fields
