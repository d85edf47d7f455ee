"""What the decoder and the row codec cost, in microseconds of CPU: `python -m tests.bench.decode`.

Two streams as our figures mean them: rows of `turns` (12 columns, three a transaction) and small rows (3 columns,
two a transaction). The best of several rounds, because whatever else runs on the machine can only add to a round.
"""

import gc
import sys
import time
from collections.abc import Callable, Iterator

import cdc.row
from cdc.change import RowChange, Transaction
from cdc.pgoutput.assembler import Assembler
from tests.unit.pgoutput import encoder as wire
from tests.unit.pgoutput.encoder import WireColumn, WireValue

_TRANSACTIONS = 2000
_ROUNDS = 15
_FEED = 100  # CopyData in one feed: what a socket's buffer holds

TURNS = [
    WireColumn(b"id", 20, -1, True),
    WireColumn(b"turn_id", 2950),
    WireColumn(b"domain", 25),
    WireColumn(b"channel", 25),
    WireColumn(b"session_hash", 25),
    WireColumn(b"role", 25),
    WireColumn(b"content", 25),
    WireColumn(b"confidence", 701),
    WireColumn(b"state", 3802),
    WireColumn(b"metadata", 3802),
    WireColumn(b"redaction_version", 23),
    WireColumn(b"created_at", 1184),
]
SMALL = [WireColumn(b"id", 20, -1, True), WireColumn(b"amount", 23), WireColumn(b"label", 25)]


def turn(number: int) -> list[WireValue]:
    return [
        b"%d" % number,
        b"6f1c7a52-90f3-4a34-a3d0-%012d" % number,
        b"support",
        b"web",
        b"session-%d" % (number % 20000),
        b"assistant",
        b"turn %d says %s" % (number, b"some words of a chat, " * (2 + number % 3)),
        b"0.87" if number % 2 else None,
        b'{"step": 3, "intent": "refund"}' if number % 3 else None,
        b"{}",
        b"0",
        b"2026-11-22 18:07:13.802498+00",
    ]


def small(number: int) -> list[WireValue]:
    return [b"%d" % number, b"%d" % (number % 1000), b"label of row %d" % number]


def stream(columns: list[WireColumn], row: Callable[[int], list[WireValue]], rows_each: int) -> list[bytes]:
    """CopyData of `_TRANSACTIONS` transactions."""
    copy_data = [wire.xlog_data(wire.relation(16384, b"public", b"turns", b"d", columns))]
    for number in range(_TRANSACTIONS):
        lsn = 0x1_0000_0000 + number * 1000
        copy_data.append(wire.xlog_data(wire.begin(lsn + 900, number, 700 + number), lsn))
        for index in range(rows_each):
            inserted = wire.insert(16384, row(number * rows_each + index))
            copy_data.append(wire.xlog_data(inserted, lsn + 100 * index))
        copy_data.append(wire.xlog_data(wire.commit(lsn + 900, lsn + 950, number), lsn + 950))
    return copy_data


def best_us(work: Callable[[], object], rows: int) -> float:
    """Microseconds of CPU a row, in the best round."""
    best = float("inf")
    for _ in range(_ROUNDS):
        gc.collect()
        began = time.process_time_ns()
        work()
        best = min(best, time.process_time_ns() - began)
    return best / rows / 1000


def feed(copy_data: list[bytes]) -> Iterator[Transaction]:
    assembler = Assembler({}, {})
    for begin in range(0, len(copy_data), _FEED):
        yield from assembler.feed(copy_data[begin : begin + _FEED]).transactions


def decode(copy_data: list[bytes]) -> None:
    """Nothing is kept, so that what lives on does not burden the garbage collector with more than in the service."""
    for _ in feed(copy_data):
        pass


def encode(changes: list[RowChange]) -> None:
    for change in changes:
        change.relation.codec.encode(change.new or [])


def words_of_the_archive(changes: list[RowChange]) -> None:
    for change in changes:
        _ = change.key, change.before, change.unchanged


def main() -> None:
    compiled = "interpreted" if cdc.row.__file__.endswith(".py") else "compiled"
    print(f"Python {sys.version.split()[0]}, {compiled}; microseconds of CPU a row, best of {_ROUNDS} rounds")
    for name, columns, row, rows_each in (("turns", TURNS, turn, 3), ("small", SMALL, small, 2)):
        copy_data = stream(columns, row, rows_each)
        changes = [c for transaction in feed(copy_data) for c in transaction.changes if isinstance(c, RowChange)]
        count = len(changes)
        encoded = [change.relation.codec.encode(change.new or []) for change in changes]
        codec = changes[0].relation.codec
        figures = {
            "feed": best_us(lambda data=copy_data: decode(data), count),  # type: ignore[misc]
            "encode": best_us(lambda rows=changes: encode(rows), count),  # type: ignore[misc]
            "key, before, unchanged": best_us(lambda rows=changes: words_of_the_archive(rows), count),  # type: ignore[misc]
            "decode from JSON": best_us(lambda rows=encoded, c=codec: [c.decode(r) for r in rows], count),  # type: ignore[misc]
        }
        print(f"{name:6} {count} rows  " + "  ".join(f"{what} {cost:.2f}" for what, cost in figures.items()))


if __name__ == "__main__":
    main()
