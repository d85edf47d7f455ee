"""The contract between the pipeline and a destination. This file is all that the author of a new sink must read.

A sink is given every committed transaction in commit order and answers with how far it is durable.

- **Ask the destination.** `open()` returns the position that the destination itself records, or None if it records
  none. There is no checkpoint beside the data that could disagree with it.
- **Durable, not accepted.** `write()` returns only when the batch survives a crash of everything on our side. What it
  returns is an `end_lsn`: every transaction up to it is there.
- **In order, once.** Batches arrive in commit order, one `write` at a time. After a reconnect Postgres sends again what
  was not acknowledged; the sink skips what its own position covers, so a replay has no effect.
- **Whole.** A large transaction arrives in pieces (`Transaction.last`). A sink counts it only with its last piece. When
  a piece with `first_seq == 0` arrives instead of the awaited next one, the earlier pieces were abandoned.
- **Retry on one floor.** A sink raises `Unavailable` when its destination is away, and may then be called again with
  the same batch. Any other error ends the service.

To add a sink: a room of its own, a section in `cdc/config/settings.py`, a line in `cdc/service/service.py`, its
metrics in `metrics.py`.
"""

from dataclasses import dataclass
from typing import Protocol

from cdc.change import Batch


@dataclass(frozen=True, slots=True)
class Epoch:
    """One history of one cluster. LSNs of different epochs must never be compared."""

    system_identifier: str
    timeline: int

    def __str__(self) -> str:
        return f"{self.system_identifier}/{self.timeline}"


@dataclass(frozen=True, slots=True)
class Position:
    """How far a destination is: complete up to `lsn` (an `end_lsn`) in `epoch`.

    If a large transaction was being applied in pieces, `part_commit_lsn` names it and `part_seq` the first of its
    changes that is not there yet.
    """

    epoch: Epoch
    lsn: int
    part_commit_lsn: int = 0
    part_seq: int = 0


class Sink(Protocol):
    """A destination of changes. Every method may raise Unavailable."""

    @property
    def name(self) -> str:
        """One word, for metrics and logs."""
        ...

    async def open(self) -> Position | None:
        """Connect and return the destination's own position, or None if it has none."""
        ...

    async def write(self, batch: Batch) -> int:
        """Make the batch durable; return the `end_lsn` up to which everything is."""
        ...

    async def close(self) -> None:
        """Let go of connections. Nothing durable depends on it."""
        ...
