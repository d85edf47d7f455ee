"""The lines of a segment: one change a line, in JSON, as DESIGN's archive contract writes them. Pure, and compiled.

The hot path of the archive. What is the same for a whole transaction or relation is made once, a row's JSON is shared
with the other sinks (`RowChange.after`), and a line is a few appends.
"""

import functools
from collections.abc import Sequence

import orjson

from cdc.archive.header import RelationShape, Reshaped, shape_of
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
from cdc.lsn import format_lsn
from cdc.row import encode_text


class Encoder:
    """Encodes the lines of one object, and remembers what its header must say of them."""

    __slots__ = ("_current", "_pieces", "lines", "relations", "reshaped")

    def __init__(self) -> None:
        self.lines = 0
        self.relations: dict[str, RelationShape] = {}
        self.reshaped: list[Reshaped] = []
        self._current: dict[str, RelationShape] = {}
        self._pieces: dict[Relation, dict[str, bytes]] = {}

    def encode(self, ordinal: int | None, transaction: Transaction, changes: Sequence[Change]) -> bytes:
        """The lines of some changes of a transaction, in order.

        What is the same for the whole transaction or relation is made once; a line is a few appends.
        """
        head, middle = _ends_of_line(ordinal, transaction)
        pieces = self._pieces
        out: list[bytes] = []
        for change in changes:
            if isinstance(change, RowChange):
                by_op = pieces.get(change.relation) or self._introduce(change.relation)
                out += (head, b"%d" % change.seq, middle, by_op[change.op], change.key)
                if (after := change.after) is not None:
                    out += (b',"after":', after)
                if (before := change.before) is not None:
                    out += (b',"before":', before)
                if change.op == UPDATE and (unchanged := change.unchanged):
                    out += (b',"unchanged":', orjson.dumps(unchanged))
            else:
                out += (head, b"%d" % change.seq, middle, self._encode_rare(change))
            out.append(b"}\n")
            self.lines += 1
        return b"".join(out)

    def _encode_rare(self, change: Truncate | LogicalMessage) -> bytes:
        if isinstance(change, Truncate):
            if change.relation not in self._pieces:
                self._introduce(change.relation)
            name = orjson.dumps(change.relation.qualified_name)
            flags = (_boolean(change.cascade), _boolean(change.restart_identity))
            return b't","table":%b,"cascade":%b,"restart_identity":%b' % (name, *flags)
        content, transactional = encode_text(change.content), _boolean(change.transactional)
        return b'm","prefix":%b,"content":%b,"transactional":%b' % (orjson.dumps(change.prefix), content, transactional)

    def _introduce(self, relation: Relation) -> dict[str, bytes]:
        shape, name = shape_of(relation), relation.qualified_name
        known = self._current.get(name)
        if known is None:
            self.relations[name] = shape
        elif known != shape:
            self.reshaped.append(Reshaped(self.lines, name, shape))
            # The shape may change back: whoever comes next under this name must be looked at again.
            for other in [other for other in self._pieces if other.qualified_name == name]:
                del self._pieces[other]
        self._current[name] = shape
        pieces = self._pieces[relation] = _pieces_of(name)
        return pieces


@functools.lru_cache(maxsize=1024)
def _pieces_of(qualified_name: str) -> dict[str, bytes]:
    table = orjson.dumps(qualified_name)
    return {op: b'%b","table":%b,"key":' % (op.encode(), table) for op in "cudr"}


def _ends_of_line(ordinal: int | None, transaction: Transaction) -> tuple[bytes, bytes]:
    number = "null" if ordinal is None else ordinal
    second, us = divmod(transaction.commit_time_us, 1_000_000)
    head = f'{{"ord":{number},"lsn":"{format_lsn(transaction.commit_lsn)}","seq":'
    middle = f',"xid":{transaction.xid},"time":"{_second(second)}{us:06d}Z","op":"'
    return head.encode(), middle.encode()


@functools.lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    """A time as `format_time` prints it, up to the point; many transactions commit within one second."""
    return format_time(seconds * 1_000_000)[:-7]


def _boolean(value: bool) -> bytes:
    return b"true" if value else b"false"
