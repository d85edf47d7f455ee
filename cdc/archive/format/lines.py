"""Encodes the lines of a segment: one change a line, in JSON, as docs/archive-format.md defines. Pure, and compiled.

This is the hot path of the archive. Parts that a transaction or a relation repeats are made once, a row's JSON is
shared with the other sinks (`RowChange.after`), and a line is a few appends.
"""

import functools
from collections.abc import Sequence
from typing import Final

import orjson

from cdc.archive.format.header import RelationShape, Reshaped, shape_of
from cdc.change import (
    UPDATE,
    Change,
    LogicalMessage,
    Relation,
    RowChange,
    Transaction,
    Truncate,
    format_time,
)
from cdc.row import encode_text

# Most transactions have fewer changes than this.
_FEW: Final = 256
_NUMBERS: Final = [b"%d" % number for number in range(_FEW)]


class Encoder:
    """Encodes the lines of one object, and keeps the counts and shapes that its header needs."""

    __slots__ = ("_current", "_pieces", "lines", "relations", "reshaped")

    def __init__(self) -> None:
        self.lines = 0
        self.relations: dict[str, RelationShape] = {}
        self.reshaped: list[Reshaped] = []
        self._current: dict[str, RelationShape] = {}
        self._pieces: dict[Relation, dict[str, bytes]] = {}

    def encode(self, ordinal: int | None, transaction: Transaction, changes: Sequence[Change]) -> bytes:
        """Encode some changes of a transaction, in order. `ordinal` is None for lines without one.

        Parts that a transaction or a relation repeats are made once; a line is a few appends.
        """
        head, middle = _ends_of_line(ordinal, transaction)
        lines: list[bytes] = []
        for change in changes:
            seq = change.seq
            number = _NUMBERS[seq] if seq < _FEW else b"%d" % seq
            if not isinstance(change, RowChange):
                lines.append(
                    b"".join((head, number, middle, self._encode_rare(change, self.lines + len(lines)), b"}\n"))
                )
                continue
            by_op = self._pieces.get(change.relation) or self._introduce(change.relation, self.lines + len(lines))
            start, after, before = by_op[change.op], change.after, change.before
            if before is None and after is not None and change.op != UPDATE:
                lines.append(b"".join((head, number, middle, start, change.key, b',"after":', after, b"}\n")))
            else:
                lines.append(b"".join((head, number, middle, start, change.key, _rows(change, after, before))))
        self.lines += len(lines)
        return b"".join(lines)

    def encode_slice(
        self, first_ordinal: int, transactions: Sequence[Transaction], start: int, rows: int, nbytes: int
    ) -> tuple[bytes, int]:
        """Encode transactions from index `start` on, up to about `rows` rows or `nbytes` bytes.

        Returns the lines, and the index to go on from. `first_ordinal` is the ordinal of transaction 0. Stops before a
        transaction that has more than `rows` changes by itself.
        """
        lines: list[bytes] = []
        at, rows_left, bytes_left = start, rows, nbytes
        while at < len(transactions) and rows_left > 0 and bytes_left > 0:
            transaction = transactions[at]
            count = len(transaction.changes)
            if count > rows:
                break
            encoded = self.encode(first_ordinal + at, transaction, transaction.changes)
            lines.append(encoded)
            rows_left -= count
            bytes_left -= len(encoded)
            at += 1
        return b"".join(lines), at

    def _encode_rare(self, change: Truncate | LogicalMessage, line: int) -> bytes:
        if isinstance(change, Truncate):
            if change.relation not in self._pieces:
                self._introduce(change.relation, line)
            name = orjson.dumps(change.relation.qualified_name)
            flags = (_boolean(change.cascade), _boolean(change.restart_identity))
            return b't","table":%b,"cascade":%b,"restart_identity":%b' % (name, *flags)
        content, transactional = encode_text(change.content), _boolean(change.transactional)
        return b'm","prefix":%b,"content":%b,"transactional":%b' % (orjson.dumps(change.prefix), content, transactional)

    def _introduce(self, relation: Relation, line: int) -> dict[str, bytes]:
        shape, name = shape_of(relation), relation.qualified_name
        known = self._current.get(name)
        if known is None:
            self.relations[name] = shape
        elif known != shape:
            self.reshaped.append(Reshaped(line, name, shape))
            # The shape may change back, so the next relation of this name is described again.
            for other in [other for other in self._pieces if other.qualified_name == name]:
                del self._pieces[other]
        self._current[name] = shape
        pieces = self._pieces[relation] = _pieces_of(name)
        return pieces


def _rows(change: RowChange, after: bytes | None, before: bytes | None) -> bytes:
    """The end of a line: everything after its key."""
    parts: list[bytes] = []
    if after is not None:
        parts += [b',"after":', after]
    if before is not None:
        parts += [b',"before":', before]
    if change.op == UPDATE and (unchanged := change.unchanged):
        parts += [b',"unchanged":', orjson.dumps(unchanged)]
    parts.append(b"}\n")
    return b"".join(parts)


@functools.lru_cache(maxsize=1024)
def _pieces_of(qualified_name: str) -> dict[str, bytes]:
    table = orjson.dumps(qualified_name)
    return {op: b'%b","table":%b,"key":' % (op.encode(), table) for op in "cudr"}


def _ends_of_line(ordinal: int | None, transaction: Transaction) -> tuple[bytes, bytes]:
    """The two texts that all lines of a transaction share. Each is one format: formatting costs by the call."""
    lsn, time_us = transaction.commit_lsn, transaction.commit_time_us
    number = b"null" if ordinal is None else b"%d" % ordinal
    second = time_us // 1_000_000
    head = b'{"ord":%b,"lsn":"%X/%X","seq":' % (number, lsn >> 32, lsn & 0xFFFFFFFF)
    middle = b',"xid":%d,"time":"%b%06dZ","op":"' % (transaction.xid, _second(second), time_us - second * 1_000_000)
    return head, middle


@functools.lru_cache(maxsize=16)
def _second(seconds: int) -> bytes:
    """A time as `format_time` prints it, up to the point. It is cached: many transactions commit within one second."""
    return format_time(seconds * 1_000_000)[:-7].encode()


def _boolean(value: bool) -> bytes:
    return b"true" if value else b"false"
