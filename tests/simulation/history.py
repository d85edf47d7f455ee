"""The truth: what was committed, in order, and what the one table held after each commit."""

from bisect import bisect_right
from dataclasses import dataclass, field

from cdc.sink import Epoch
from tests.unit.pgoutput_encoder import WireColumn, begin, commit, delete, insert, relation, update, xlog_data

TABLE = "public.turns"
OID = 16390
TIME_US = 1_795_000_000_000_000
_WIRE_EPOCH_US = 946_684_800_000_000

RELATION = xlog_data(
    relation(OID, b"public", b"turns", b"f", [WireColumn(b"id", 20, -1, True), WireColumn(b"content", 25, -1, True)])
)

State = dict[int, str]


@dataclass(frozen=True, slots=True)
class Change:
    """`old` and `new` are a row's content, None where there is none. Every content is written once in a world."""

    id: int
    old: str | None
    new: str | None

    @property
    def op(self) -> str:
        return "c" if self.old is None else "d" if self.new is None else "u"

    @property
    def frame(self) -> bytes:
        key = b"%d" % self.id
        if self.old is None:
            return insert(OID, [key, (self.new or "").encode()])
        old = [key, self.old.encode()]
        return delete(OID, old=old) if self.new is None else update(OID, [key, self.new.encode()], old=old)


@dataclass(frozen=True, slots=True)
class Committed:
    xid: int
    commit_lsn: int
    end_lsn: int
    changes: tuple[Change, ...]

    @property
    def time_us(self) -> int:
        return TIME_US + self.xid * 1000

    def frames(self) -> tuple[bytes, list[bytes], bytes]:
        """Begin, rows, Commit, as the server sends them."""
        time = self.time_us - _WIRE_EPOCH_US
        rows = [
            xlog_data(change.frame, self.commit_lsn - len(self.changes) + n) for n, change in enumerate(self.changes)
        ]
        return (
            xlog_data(begin(self.commit_lsn, time, self.xid), self.commit_lsn - len(self.changes)),
            rows,
            xlog_data(commit(self.commit_lsn, self.end_lsn, time), self.end_lsn),
        )


def applied(state: State, changes: tuple[Change, ...]) -> State:
    after = dict(state)
    for change in changes:
        if change.new is None:
            after.pop(change.id, None)
        else:
            after[change.id] = change.new
    return after


@dataclass
class History:
    """One epoch's. The rows that were there first are `states[0]`; `states[n]` is after n transactions.

    `ancestors` says where each earlier timeline was left, as the timeline's history file does.
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
        """How many transactions end at or before this position."""
        return bisect_right(self.ends, lsn)

    def state_at(self, lsn: int, part_commit_lsn: int = 0, part_seq: int = 0) -> State:
        count = self.count_upto(lsn)
        if not part_commit_lsn:
            return self.states[count]
        open_ = next(t for t in self.transactions[count:] if t.commit_lsn == part_commit_lsn)
        between = self.transactions[count : self.transactions.index(open_)]
        assert not any(t.changes for t in between)
        return applied(self.states[count], open_.changes[:part_seq])

    def fork(self, timeline: int, switch_lsn: int) -> "History":
        """The history of a timeline that left this one there; or an earlier one, if that was before this one began."""
        epoch, count = Epoch(self.epoch.system_identifier, timeline), self.count_upto(switch_lsn)
        ancestors = {**self.ancestors, self.epoch.timeline: switch_lsn}
        left = min(one for one, lsn in ancestors.items() if lsn >= switch_lsn)
        ancestors = {one: lsn for one, lsn in ancestors.items() if one < left} | {left: switch_lsn}
        return History(epoch, ancestors, self.transactions[:count], self.states[: count + 1], self.ends[:count])
