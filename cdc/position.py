"""How far a destination is: a position in the WAL, and the history that it counts in (pure)."""

from dataclasses import dataclass


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
