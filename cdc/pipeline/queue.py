"""Holds the transactions that wait for a sink, in commit order and bounded in bytes.

`put` never waits, so the socket's reader decides itself what a full queue means. It may pause reading (`room`), or
`drop` all that waits, because the sink has another source to go back to. After a drop the queue starts again at the
next transaction's first piece, and `since` says from where on it is complete.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from cdc.change import Batch, Transaction
from cdc.position import Position


@dataclass(frozen=True, slots=True)
class Since:
    """The point from which a queue is complete: after `lsn`, and, of transaction `part_commit_lsn`, from `part_seq`."""

    lsn: int
    part_commit_lsn: int = 0
    part_seq: int = 0

    def reached_by(self, position: Position) -> bool:
        """Return True if a sink at `position` can go on with the queue and miss nothing."""
        if not self.part_commit_lsn:
            return position.lsn >= self.lsn
        if position.lsn > self.part_commit_lsn:
            return True
        return position.part_commit_lsn == self.part_commit_lsn and position.part_seq >= self.part_seq


class TransactionQueue:
    """A queue of transactions and their pieces for one reader. All of it belongs to one event loop."""

    def __init__(self, limit_bytes: int, since_lsn: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self.nbytes = 0
        self.since = Since(since_lsn)
        self.closed = False
        self._waiting: deque[Transaction] = deque()
        self._last_end_lsn = since_lsn
        self._mid_transaction = False
        self._skipping = False
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    @property
    def empty(self) -> bool:
        return not self._waiting

    @property
    def full(self) -> bool:
        return self.nbytes >= self.limit_bytes

    def put(self, transactions: Iterable[Transaction]) -> None:
        """Append; never waits and never refuses. After a drop, pieces of the dropped transaction are passed over."""
        for transaction in transactions:
            self._note_boundary(transaction)
            if self._skipping:
                continue
            self._waiting.append(transaction)
            self.nbytes += transaction.nbytes
        if self._waiting:
            self._changed.set()
        if self.full:
            self._room.clear()

    def _note_boundary(self, transaction: Transaction) -> None:
        if self._skipping and transaction.first_seq == 0:
            self._skipping = False
            self.since = Since(self._last_end_lsn)
        self._mid_transaction = not transaction.last
        if transaction.last:
            self._last_end_lsn = transaction.end_lsn

    def drop(self) -> None:
        """Forget all that waits; go on with the first transaction that begins later."""
        self._clear()
        self._skipping = True
        # Inside a transaction no such point is known yet: put() sets `since` when the next transaction begins.
        self.since = Since(1 << 64) if self._mid_transaction else Since(self._last_end_lsn)

    def restart(self, since_lsn: int) -> None:
        """Begin with a new replication connection: what comes now is complete after `since_lsn`."""
        self._clear()
        self.since = Since(since_lsn)
        self._last_end_lsn = since_lsn
        self._mid_transaction = self._skipping = self.closed = False

    def close(self) -> None:
        """Note that nothing more will come. A transaction without its commit will never be complete."""
        self.closed = True
        while self._waiting and not self._waiting[-1].last:
            self.nbytes -= self._waiting.pop().nbytes
        self._changed.set()
        self._room.set()

    def _clear(self) -> None:
        self._waiting.clear()
        self.nbytes = 0
        # The reader must check `since`, which has moved: it may have to go back to another source.
        self._changed.set()
        self._room.set()

    def wake(self) -> None:
        """Wake the reader, though nothing came."""
        self._changed.set()

    async def room(self) -> None:
        """Wait until the queue is below its limit."""
        await self._room.wait()

    async def wait(self) -> None:
        """Wait until something is queued, or the queue was dropped, restarted or closed."""
        await self._changed.wait()

    def pop(self, limit_bytes: int) -> Batch:
        """Take what waits, up to `limit_bytes` (but at least one piece); an empty batch if nothing does."""
        taken: list[Transaction] = []
        taken_bytes = 0
        while self._waiting and (not taken or taken_bytes + self._waiting[0].nbytes <= limit_bytes):
            transaction = self._waiting.popleft()
            taken_bytes += transaction.nbytes
            taken.append(transaction)
        self.nbytes -= taken_bytes
        self._advance_since(taken)
        if not self._waiting and not self.closed:
            self._changed.clear()
        if not self.full:
            self._room.set()
        return Batch(taken)

    def _advance_since(self, taken: list[Transaction]) -> None:
        lsn = next((t.end_lsn for t in reversed(taken) if t.last), self.since.lsn)
        if taken and not taken[-1].last:
            piece = taken[-1]
            self.since = Since(lsn, piece.commit_lsn, piece.first_seq + len(piece.changes))
        elif taken:
            self.since = Since(lsn)

    async def gather(self, limit_bytes: int, not_before: float) -> None:
        """Wait for something, then until `not_before` (monotonic seconds), `limit_bytes`, the limit, or the close."""
        await self.wait()
        while not self.closed and self.nbytes < min(limit_bytes, self.limit_bytes):
            left_s = not_before - time.monotonic()
            if left_s <= 0:
                return
            # Short naps, because a size is not an event: 50 ms are well inside any sensible linger.
            await asyncio.sleep(min(left_s, 0.05))
