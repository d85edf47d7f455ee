"""Whether a stream goes on with the history that the archive tells (pure).

Where a slot has confirmed less than the archive holds, Postgres sends again what lies between, and the archive passes
over it by its LSN alone. That is right for one history and would lose commits of another: a server that was set back to
an older image of its disk is the same cluster, on the same timeline, with its slot of then, and uses the LSNs again.

The last commit that is archived is what the two would not share. If it is due again it must come, at its very LSN,
before anything behind it counts.
"""

from collections.abc import Collection, Sequence

from cdc.change import Transaction
from cdc.lsn import format_lsn
from cdc.position import set_back


class Continuity:
    """What one replication connection has yet to show: a commit that must come again at `due_lsn`; 0 for none."""

    def __init__(self, due_lsn: int) -> None:
        self._due_lsn = due_lsn

    @property
    def pending(self) -> bool:
        """Whether all that was received is from before the archive's last commit: perhaps replays, perhaps not."""
        return self._due_lsn > 0

    def check(self, transactions: Sequence[Transaction], wal_end: int) -> None:
        """Look at what was received next: transactions in commit order, and how far it is known that there are no more
        (0: that is not known). Raises Diverged.
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
    """Whether a slot sends the archive's last commit again. `switch_lsns` are where earlier timelines were left.

    A fork that cut a lost tail off leaves the archive at its switch point, where there is no commit.
    """
    return confirmed_flush_lsn <= last_commit_lsn and last_commit_lsn not in switch_lsns
