"""Gathers the plan of the next script call: changes of whole transactions, or of a part of one."""

from cdc.cache.checkpoint import Checkpoint
from cdc.cache.plan import Plan
from cdc.change import Transaction
from cdc.errors import Moved
from cdc.lsn import format_lsn
from cdc.position import Position


class Gathering:
    """A plan that grows, and the position of the cache after it is applied."""

    __slots__ = ("lsn", "part_commit_lsn", "part_seq", "plan")

    def __init__(self, position: Position) -> None:
        self.plan = Plan()
        self.lsn = position.lsn
        self.part_commit_lsn = position.part_commit_lsn
        self.part_seq = position.part_seq

    @property
    def part(self) -> bytes:
        return f"{format_lsn(self.part_commit_lsn)}:{self.part_seq}".encode() if self.part_commit_lsn else b""

    def target(self, expected: Checkpoint) -> Checkpoint:
        """The checkpoint after the plan is applied to a cache at `expected`; `expected` itself without progress.

        A TRUNCATE that was interrupted begins again. Its steps stay counted, so that no two states share a checkpoint.
        """
        target = expected._replace(lsn=format_lsn(self.lsn).encode(), part=self.part)
        stepped = target.lsn == expected.lsn and bool(target.part) and expected.part.startswith(target.part + b":")
        return expected if stepped else target

    def covers(self, transaction: Transaction) -> bool:
        if transaction.last and transaction.end_lsn <= self.lsn:
            return True
        return transaction.commit_lsn < max(self.lsn, self.part_commit_lsn)

    def begin(self, transaction: Transaction) -> int:
        """The `seq` of the first change that is not applied yet. Raises Moved if changes before it are missing."""
        half_applied = self.part_commit_lsn not in (0, transaction.commit_lsn)
        awaited_seq = self.part_seq if self.part_commit_lsn else 0
        if half_applied or transaction.first_seq > awaited_seq:
            raise Moved(
                "the stream passed over changes that the cache needs",
                detail=f"awaited {self.part.decode() or format_lsn(self.lsn)}, "
                f"got {format_lsn(transaction.commit_lsn)}:{transaction.first_seq}",
            )
        return awaited_seq

    def finish(self, transaction: Transaction) -> None:
        if transaction.last:
            self.lsn, self.part_commit_lsn, self.part_seq = transaction.end_lsn, 0, 0
        elif transaction.changes:
            self.part_commit_lsn = transaction.commit_lsn
            self.part_seq = max(self.part_seq, transaction.changes[-1].seq + 1)
