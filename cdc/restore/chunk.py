"""Makes the lines that COPY reads of a chunk of a snapshot's rows. Pure, and as fast as Python goes.

Every value of a row is one field of a line, as Postgres printed it. The quick way decodes a line of JSON into a struct
made for its table and joins the values. If the line has no backslash and no tab, no value holds anything that COPY's
text format escapes (manual, COPY, "Text Format"). In JSON all such characters come with a backslash, but for a tab
between the tokens of a `json`. A line with one of our marks (`cdc/row.py`) is decoded as any change of the log.
"""

import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from cdc.archive.format.encryption import NO_KEYS, Keys
from cdc.archive.format.header import RelationShape, relation_of
from cdc.archive.format.segment import decode_segment
from cdc.change import READ, Relation
from cdc.errors import DataError
from cdc.postgres.target.statement import copy_field
from cdc.row import FLOAT_OIDS, INTEGER_OIDS, JSON_OIDS, Oid

# The types that the archive writes without quotes (`cdc/row.py`). They are taken as written, to lose no digit.
_BARE: Final = frozenset({Oid.BOOL}) | INTEGER_OIDS | FLOAT_OIDS | JSON_OIDS

# Enough to keep a socket busy, little enough to decode in a few milliseconds.
_PIECE_BYTES: Final = 256 * 1024

_NULL: Final = r"\N"
_BOOLEANS: Final = {"true": "t", "false": "f"}


@dataclass(frozen=True, slots=True)
class CopyPiece:
    """Lines of COPY's text format, one for each of `rows` rows, with these `columns`. `last`: it ends its chunk."""

    columns: tuple[str, ...]
    rows: int
    lines: bytes
    last: bool


def copy_pieces(body: bytes, wanted: Collection[str], keys: Keys = NO_KEYS) -> Iterator[CopyPiece]:
    """Make pieces of a chunk's rows, in those of their columns that are wanted; none if it has no rows.

    Raises DataError.
    """
    segment = decode_segment(body, keys)
    if not segment.lines:
        return
    if len(segment.header.relations) != 1 or segment.header.reshaped:
        raise DataError("a snapshot's chunk holds rows of several tables", hint="cdc archive verify")
    (shape,) = segment.header.relations.values()
    columns = tuple(column.name for column in shape.columns if column.name in wanted)
    encode = _LineEncoder(shape, columns)
    rows, at = 0, 0
    while at < len(segment.lines):
        text, rows = encode.piece(segment.lines, at)
        at += rows
        yield CopyPiece(columns, rows, text, at == len(segment.lines))


class _Line(msgspec.Struct):
    op: str
    table: str
    after: msgspec.Raw


_LINE = msgspec.json.Decoder(_Line)


class _LineEncoder:
    """Turns a line of the archive, a row of one table, into one of COPY. Bytes that are no text become surrogates."""

    def __init__(self, shape: RelationShape, columns: tuple[str, ...]) -> None:
        self._relation = relation_of(shape)
        self._indexes = [self._relation.column_index[name] for name in columns]
        self._quick = _quick_decoder(self._relation, columns)
        oids = [self._relation.columns[index].type_oid for index in self._indexes]
        self._bare = [(place, _print_bare(oid)) for place, oid in enumerate(oids) if oid in _BARE]

    def piece(self, lines: list[bytes], first: int) -> tuple[bytes, int]:
        """Encode lines from `first` on, up to about `_PIECE_BYTES`; return the text and the number of lines."""
        encoded: list[str] = []
        nbytes, at = 0, first
        try:
            while at < len(lines) and nbytes < _PIECE_BYTES:
                encoded.append(self._encode(lines[at]))
                nbytes += len(lines[at])
                at += 1
        except (msgspec.MsgspecError, ValueError, KeyError, TypeError, RecursionError) as error:
            detail = f"line {at}: {type(error).__name__}: {error}"
            raise DataError(
                "a snapshot's chunk holds what is no row", detail=detail, hint="cdc archive verify"
            ) from error
        return "".join(encoded).encode(errors="surrogateescape"), at - first

    def _encode(self, line: bytes) -> str:
        if self._quick is None or b'{"$' in line:
            return self._encode_thoroughly(line)
        row = self._quick.decode(line)
        self._check(row.op, row.table)
        values: list[str | None] = list(msgspec.structs.astuple(row.after))
        for place, to_text in self._bare:
            values[place] = to_text(values[place])
        if b"\\" in line or b"\t" in line:
            return _escape(values)
        return "\t".join([_NULL if value is None else value for value in values]) + "\n"

    def _encode_thoroughly(self, line: bytes) -> str:
        read = _LINE.decode(line)
        self._check(read.op, read.table)
        row = self._relation.codec.decode(bytes(read.after))
        fields = b"\t".join([copy_field(row[index]) for index in self._indexes])
        return fields.decode(errors="surrogateescape") + "\n"

    def _check(self, op: str, table: str) -> None:
        if op != READ or table != self._relation.qualified_name:
            raise ValueError(f"op {op} of {table}")


def _escape(values: list[str | None]) -> str:
    """Escape all values at once. A zero stands for each tab between them, and a surrogate for each NULL.

    No value of Postgres's holds a zero, and no UTF-8 a surrogate.
    """
    row = "\0".join(["\ud800" if value is None else value for value in values])
    row = row.replace("\\", r"\\").replace("\t", r"\t").replace("\n", r"\n").replace("\r", r"\r")
    return row.replace("\0", "\t").replace("\ud800", _NULL) + "\n"


def _print_bare(type_oid: int) -> Callable[[Any], str | None]:
    if type_oid == Oid.BOOL:
        return _print_boolean
    return _print_float if type_oid in FLOAT_OIDS else _print_raw


def _print_raw(value: msgspec.Raw) -> str | None:
    text = str(value, "utf-8")
    return None if text == "null" else text


def _print_boolean(value: msgspec.Raw) -> str | None:
    text = _print_raw(value)
    return None if text is None else _BOOLEANS[text]


def _print_float(value: msgspec.Raw) -> str | None:
    """Print a float. `NaN` and the infinities stand in quotes in the archive, and lose them here."""
    text = _print_raw(value)
    return text.strip('"') if text is not None else None


@functools.lru_cache(maxsize=64)
def _quick_decoder_of(columns: tuple[tuple[str, bool], ...]) -> "msgspec.json.Decoder[Any]":
    fields = [(f"f{number}", msgspec.Raw if bare else str | None) for number, (_, bare) in enumerate(columns)]
    names = {f"f{number}": name for number, (name, _) in enumerate(columns)}
    row = msgspec.defstruct("Row", fields, rename=names)
    line = msgspec.defstruct("Line", [("op", str), ("table", str), ("after", row)])
    return msgspec.json.Decoder(line)


def _quick_decoder(relation: Relation, columns: tuple[str, ...]) -> "msgspec.json.Decoder[Any] | None":
    """Make the decoder of the quick way.

    None for a table without columns, and for names that JSON escapes or msgspec (0.22) does not find.
    """
    if not columns or not all(
        name.isascii() and name.isprintable() and not {'"', "\\"} & set(name) for name in columns
    ):
        return None
    oids = [relation.columns[relation.column_index[name]].type_oid for name in columns]
    return _quick_decoder_of(tuple((name, oid in _BARE) for name, oid in zip(columns, oids, strict=True)))
