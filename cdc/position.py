"""Positions of destinations: an LSN, and the history of the cluster that it belongs to (pure)."""

from dataclasses import dataclass

from cdc.errors import Diverged
from cdc.lsn import format_lsn


@dataclass(frozen=True, slots=True)
class Epoch:
    """One history of one cluster. LSNs of different epochs must never be compared."""

    system_identifier: str
    timeline: int

    def __str__(self) -> str:
        return f"{self.system_identifier}/{self.timeline}"


@dataclass(frozen=True, slots=True)
class Position:
    """A destination's position: it is complete up to `lsn` (an `end_lsn`) in `epoch`.

    If a large transaction was being applied in pieces, `part_commit_lsn` names it and `part_seq` the first of its
    changes that is not there yet.
    """

    epoch: Epoch
    lsn: int
    part_commit_lsn: int = 0
    part_seq: int = 0


def check_wal_end(wal_lsn: int, covered_upto: int) -> None:
    """Check that the server's WAL goes as far as the archive. Raises Diverged if it ends earlier.

    `wal_lsn` must be read after the archive's tail, whose `covered_upto` it is compared with.
    """
    if wal_lsn < covered_upto:
        raise set_back(
            f"The archive covers everything up to {format_lsn(covered_upto)}; the server's WAL ends at "
            f"{format_lsn(wal_lsn)}, on the same timeline."
        )


def set_back(detail: str) -> Diverged:
    """The error for a server that was set back to an older image of itself.

    Cluster and timeline are the same, and LSNs are used again.
    """
    return Diverged(
        "the server was set back: it no longer has commits that the archive holds",
        detail=detail,
        hint="cdc teardown --cache --yes   # then set archive.url to an empty prefix, and start cdc run again",
    )
