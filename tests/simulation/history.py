"""Keeps the truth: what was committed, in order, and what the one table held after each commit."""

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

from cdc.position import Epoch
from tests.support.cache_model import TURNS, Turn
from tests.unit.pgoutput.encoder import (
    UNCHANGED,
    WireColumn,
    WireValue,
    begin,
    commit,
    delete,
    insert,
    message,
    relation,
    truncate,
    update,
    xlog_data,
)

TABLE = TURNS.qualified_name
OID = TURNS.oid
TIME_US = 1_795_000_000_000_000
_WIRE_EPOCH_US = 946_684_800_000_000

RELATION = xlog_data(
    relation(
        OID, b"public", b"turns", b"f", [WireColumn(one.name.encode(), one.type_oid, -1, True) for one in TURNS.columns]
    )
)

State = dict[int, Turn]


@dataclass(frozen=True, slots=True)
class Change:
    """One change; `op` is as in the archive: c, u, d, t, m. Each content is written by one change of a world."""

    op: str
    old: Turn | None = None
    new: Turn | None = None
    text: str = ""
    transactional: bool = True
    toasted: bool = False

    def frame(self, lsn: int) -> bytes:
        old, new = wire_row(self.old), wire_row(self.new)
        if self.op == "c":
            return insert(OID, new)
        if self.op == "u":
            return update(OID, [UNCHANGED if self.toasted and n == 4 else one for n, one in enumerate(new)], old=old)
        if self.op == "d":
            return delete(OID, old=old)
        if self.op == "t":
            return truncate([OID])
        return message(lsn, b"story", self.text.encode(), transactional=self.transactional)

    def is_line(self, line: Any) -> bool:
        """True if this line of the archive says the same."""
        if line["op"] != self.op:
            return False
        if self.op == "m":
            said = line["prefix"], line["content"], line["transactional"]
            return bool(said == ("story", self.text, self.transactional))
        if line["table"] != TABLE or line.get("unchanged"):
            return False
        row = self.new or self.old
        key = None if row is None else {"id": row["id"]}
        return (line.get("before"), line.get("after"), line.get("key")) == (self.old, self.new, key)


def wire_row(turn: Turn | None) -> list[WireValue]:
    return [] if turn is None else [None if value is None else str(value).encode() for value in turn.values()]


@dataclass(frozen=True, slots=True)
class Committed:
    """A transaction, or with xid 0 a message that was emitted outside of any."""

    xid: int
    commit_lsn: int
    end_lsn: int
    time_us: int
    changes: tuple[Change, ...]

    def frames(self) -> list[bytes]:
        """Encode Begin, changes and Commit as the server sends them."""
        time = self.time_us - _WIRE_EPOCH_US
        if not self.xid:
            return [xlog_data(self.changes[0].frame(self.end_lsn), self.end_lsn, time)]
        first = self.commit_lsn - len(self.changes)
        return [
            xlog_data(begin(self.commit_lsn, time, self.xid), first),
            *(xlog_data(change.frame(first + n), first + n) for n, change in enumerate(self.changes)),
            xlog_data(commit(self.commit_lsn, self.end_lsn, time), self.end_lsn),
        ]

    @property
    def touches_rows(self) -> bool:
        return any(change.op != "m" for change in self.changes)


def applied(state: State, changes: tuple[Change, ...]) -> State:
    after = dict(state)
    for change in changes:
        if change.op == "t":
            after.clear()
        if change.old is not None:
            after.pop(change.old["id"], None)
        if change.new is not None:
            after[change.new["id"]] = change.new
    return after


@dataclass
class History:
    """The history of one epoch. `states[0]` are the first rows; `states[n]` is the state after n transactions.

    `ancestors` has the switch point of each earlier timeline, as the timeline's history file does.
    """

    epoch: Epoch
    ancestors: dict[int, int] = field(default_factory=dict)
    transactions: list[Committed] = field(default_factory=list)
    states: list[State] = field(default_factory=lambda: [{}])
    ends: list[int] = field(default_factory=list)

    def append(self, transaction: Committed) -> None:
        self.transactions.append(transaction)
        self.states.append(applied(self.states[-1], transaction.changes))
        self.ends.append(transaction.end_lsn)

    def count_upto(self, lsn: int) -> int:
        """Count the transactions that end at or before this position."""
        return bisect_right(self.ends, lsn)

    def state_at(self, lsn: int) -> State:
        return self.states[self.count_upto(lsn)]

    def fork(self, timeline: int, switch_lsn: int) -> "History":
        """Return the history of a timeline that leaves this one at `switch_lsn`.

        It leaves an earlier one if `switch_lsn` lies before the beginning of this one.
        """
        epoch, count = Epoch(self.epoch.system_identifier, timeline), self.count_upto(switch_lsn)
        ancestors = {**self.ancestors, self.epoch.timeline: switch_lsn}
        left = min(one for one, lsn in ancestors.items() if lsn >= switch_lsn)
        ancestors = {one: lsn for one, lsn in ancestors.items() if one < left} | {left: switch_lsn}
        return History(epoch, ancestors, self.transactions[:count], self.states[: count + 1], self.ends[:count])
