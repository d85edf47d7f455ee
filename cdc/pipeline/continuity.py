"""Checks that a stream goes on with the history that the archive tells (pure).

Where a slot has confirmed less than the archive holds, Postgres sends again what lies between, and the archive passes
over it by its LSN alone. That is right for one history and would lose commits of another. A server that was set back to
an older image of its disk is the same cluster, on the same timeline, with its slot of then, and uses the LSNs again.

The two histories would not share the last commit that is archived. If that commit is due again, it must come, at its
very LSN, before anything behind it counts.
"""

from collections.abc import Collection, Sequence

from cdc.change import Transaction
from cdc.lsn import format_lsn
from cdc.position import set_back


class Continuity:
    """Checks one replication connection: a commit must come again at `due_lsn`; 0 if none is due."""

    def __init__(self, due_lsn: int) -> None:
        self._due_lsn = due_lsn

    @property
    def pending(self) -> bool:
        """True while the due commit has not come. What was received may be replays, or another history."""
        return self._due_lsn > 0

    def check(self, transactions: Sequence[Transaction], wal_end: int) -> None:
        """Check what was received next. Raises Diverged.

        `transactions` are in commit order. Up to the LSN `wal_end` there are no others; 0 if that is not known.
        """
        if not self._due_lsn:
            return
        found = next((t.commit_lsn for t in transactions if t.commit_lsn >= self._due_lsn), None)
        if found == self._due_lsn:
            self._due_lsn = 0
        elif found is not None or wal_end > self._due_lsn:
            instead = f"one at {format_lsn(found)}" if found is not None else f"nothing up to {format_lsn(wal_end)}"
            raise set_back(
                f"The archive's last commit is at {format_lsn(self._due_lsn)}. "
                f"The server has none there, but {instead}, on the same timeline."
            )


def is_due(last_commit_lsn: int, confirmed_flush_lsn: int, switch_lsns: Collection[int] = ()) -> bool:
    """Return True if a slot sends the archive's last commit again. Earlier timelines were left at `switch_lsns`.

    A fork that cut off a lost tail leaves the archive at its switch point, where there is no commit.
    """
    return confirmed_flush_lsn <= last_commit_lsn and last_commit_lsn not in switch_lsns
