"""The contract between the pipeline and a destination.

The author of a new sink must read this file, `Transaction` and `Batch` in `cdc/change.py`, and `cdc/position.py`.

A sink is given every committed transaction in commit order, and answers with the position up to which it is durable.
There are two kinds. The **gate** (the archive) decides what Postgres may forget: nothing is acknowledged before the
gate has it. A **follower** (the cache) may be away for hours, catches up from the archive, and never holds the slot.

Both promise:

- **Ask the destination.** `open()` returns the position that the destination itself records, or None if it records
  none; a follower answers None for another epoch's, too. No checkpoint beside the data could disagree with it.
- **Durable, not accepted.** `write()` returns only when the batch survives a crash of everything on our side. It
  returns an `end_lsn`: every transaction that ends at or before it is there, and the sink says the same when it is
  opened again.
- **In order, once.** Batches arrive in commit order, one call at a time. After a reconnect Postgres sends again what
  was not acknowledged. The sink skips what its position covers: a replay has no effect, and no position goes back.
  Covered is a transaction with `commit_lsn < position.lsn`. One with `commit_lsn == position.lsn` is new: under
  concurrent writers about half of all commit records begin where the one before ends.
- **Whole.** A large transaction arrives in pieces: the first has `first_seq == 0`, the last one `last`. A sink counts
  it only with its last piece. It may apply pieces before that if its position says how far (`Position.part_seq`); else
  it keeps them aside. A piece with `first_seq == 0` instead of the awaited next one begins the transaction again.
  `end_lsn` is 0 in every piece but the last.
- **Retry on one floor.** A sink raises `Unavailable` when its destination is away, `Moved` when the destination is not
  where it was left. A follower's feed then opens the sink again. Any other error is for a person to see.

A follower without a position (never filled, or another epoch's) invents none: `write()` and `advance()` raise `Moved`
until its service has filled it from a snapshot.

To add a follower: a room of its own, a section in `cdc/config`, and a feed beside the cache's in `cdc/service`. The
suite `tests/contract/test_sinks.py` checks these promises. It needs an adapter that reads the destination past the sink
(`Followed` in `tests/contract/destinations.py`), and a factory of that in its list `FOLLOWERS`.
`tests/contract/sqlite_sink.py` is an example of a sink.
"""

from typing import Protocol

from cdc.change import Batch
from cdc.position import Epoch, Position


class Sink(Protocol):
    """The methods that gate and follower have in common. Every method may raise Unavailable."""

    @property
    def name(self) -> str:
        """The sink's name in metrics: one word."""
        ...

    async def open(self) -> Position | None:
        """Connect and return the destination's own position, or None if it has none. May be called again."""
        ...

    async def write(self, batch: Batch) -> int:
        """Make the batch durable; return the `end_lsn` up to which everything is durable."""
        ...

    async def close(self) -> None:
        """Close connections. Nothing durable depends on it."""
        ...


class Gate(Sink, Protocol):
    """The archive. While it is away, `write` waits and tries again itself, and `struggling` says so."""

    @property
    def struggling(self) -> bool:
        """True while a write has failed and is being tried again, or takes suspiciously long."""
        ...

    async def write_coverage(self, lsn: int) -> int:
        """Record that no published change lies between the last transaction and `lsn`; return the LSN covered."""
        ...


class Follower(Sink, Protocol):
    """The cache, or another destination that is derived from the archive."""

    @property
    def epoch(self) -> Epoch:
        """The history that the sink was made for."""
        ...

    @property
    def position(self) -> Position | None:
        """The destination's position after the last call; None if it must be filled from a snapshot."""
        ...

    async def advance(self, lsn: int) -> int:
        """Move the position to `lsn`, up to which there are no changes; return where it is then.

        It never goes back, and does not move while a large transaction is there only in part.
        """
        ...
