"""Cuts a batch into the contents of segments (pure).

Whole transactions go together into `data` segments of bounded size. A transaction that arrives in pieces, or is larger
than a segment, goes out as `part` segments, with a run of its pieces in each. A data segment never holds a fragment.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from cdc.change import Transaction


@dataclass(frozen=True, slots=True)
class DataCut:
    """Whole transactions for one data segment."""

    transactions: tuple[Transaction, ...]


@dataclass(frozen=True, slots=True)
class PartCut:
    """Consecutive pieces of one large transaction, for one part segment."""

    pieces: tuple[Transaction, ...]


Cut = DataCut | PartCut


def cut(transactions: Sequence[Transaction], segment_bytes: int) -> Iterator[Cut]:
    """Cut a run of transactions, in order, into the contents of segments of about `segment_bytes` of memory."""
    gathered: list[Transaction] = []
    nbytes = 0
    for pieces in _by_transaction(transactions):
        whole = _joined(pieces) if isinstance(pieces, list) else pieces
        small = whole is not None and (whole.nbytes <= segment_bytes or len(whole.changes) <= 1)
        if gathered and (whole is None or not small or nbytes + whole.nbytes > segment_bytes):
            yield DataCut(tuple(gathered))
            gathered, nbytes = [], 0
        if whole is not None and small:
            gathered.append(whole)
            nbytes += whole.nbytes
        else:
            yield from _cut_large(pieces if isinstance(pieces, list) else [pieces], segment_bytes)
    if gathered:
        yield DataCut(tuple(gathered))


def _by_transaction(transactions: Sequence[Transaction]) -> Iterator[Transaction | list[Transaction]]:
    """Yield whole transactions as they are, and the pieces of one transaction as one list."""
    pieces: list[Transaction] = []
    for transaction in transactions:
        if pieces and (transaction.first_seq == 0 or transaction.commit_lsn != pieces[0].commit_lsn):
            yield pieces
            pieces = []
        if transaction.last and transaction.first_seq == 0:
            yield transaction
        else:
            pieces.append(transaction)
    if pieces:
        yield pieces


def _nbytes(transactions: Sequence[Transaction]) -> int:
    return sum(transaction.nbytes for transaction in transactions)


def _joined(pieces: list[Transaction]) -> Transaction | None:
    """Join the pieces to one transaction; None if some are not here."""
    if pieces[0].first_seq > 0 or not pieces[-1].last:
        return None
    last = pieces[-1]
    changes = [change for piece in pieces for change in piece.changes]
    return Transaction(
        last.xid, last.commit_lsn, last.commit_time_us, changes, end_lsn=last.end_lsn, nbytes=_nbytes(pieces)
    )


def _cut_large(pieces: list[Transaction], segment_bytes: int) -> Iterator[PartCut]:
    gathered: list[Transaction] = []
    for fragment in chain.from_iterable(_split(piece, segment_bytes) for piece in pieces):
        if gathered and _nbytes(gathered) + fragment.nbytes > segment_bytes:
            yield PartCut(tuple(gathered))
            gathered = []
        gathered.append(fragment)
    yield PartCut(tuple(gathered))


def _split(piece: Transaction, segment_bytes: int) -> Iterator[Transaction]:
    """Split a piece larger than a segment into fragments of equally many changes. A change is never split."""
    fragments = min(-(-piece.nbytes // segment_bytes), len(piece.changes))
    if fragments <= 1:
        yield piece
        return
    size = -(-len(piece.changes) // fragments)
    for at in range(0, len(piece.changes), size):
        last = piece.last and at + size >= len(piece.changes)
        yield Transaction(
            piece.xid,
            piece.commit_lsn,
            piece.commit_time_us,
            piece.changes[at : at + size],
            first_seq=piece.first_seq + at,
            end_lsn=piece.end_lsn if last else 0,
            last=last,
            nbytes=piece.nbytes * size // len(piece.changes),
        )
