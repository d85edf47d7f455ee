"""Models the server: a history, a slot, and WAL senders. It crashes and fails over. `sessions.py` has its answers.

It behaves as real servers were measured to:

- a slot is a lock, and sends again every transaction that commits at or after `confirmed_flush_lsn`;
- a crash takes `confirmed_flush_lsn` back to the value that was saved last;
- a WAL sender whose client is silent is ended after a while;
- a commit record may begin where the one before ends, if its changes were written earlier, by a concurrent session;
- a keepalive names a position up to which everything was sent, also in the middle of a transaction;
- a failover to a standby that lagged loses the tail, uses its LSNs again, and begins a new timeline, whose history file
  has the switch points of earlier ones.

A slot can be lost, dropped or advanced. `losses` counts these, because one gap may be recorded for each.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cdc.errors import Unavailable
from cdc.position import Epoch
from tests.simulation.clock import Life
from tests.simulation.history import TIME_US, Change, Committed, History
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.sessions import ModelConnection, ModelStream

SYSTEM = "7300000000000000001"
SENDER_TIMEOUT_S = 15.0


class ModelSlot:
    def __init__(self, consistent_lsn: int, maker: Life | None) -> None:
        self.maker = maker
        self.consistent_lsn = consistent_lsn
        self.confirmed = consistent_lsn
        self.saved = consistent_lsn
        self.lost = False
        self.holder: ModelStream | None = None


class ModelPostgres:
    """The model of the server. It calls `acknowledged` with every position that is reported as flushed."""

    def __init__(self, world: World, acknowledged: Callable[[History, int, int], None]) -> None:
        self.world = world
        self.history = History(Epoch(SYSTEM, 1))
        self.histories = [self.history]
        self.wal_lsn = 0x1000
        self.up = True
        self.generation = 0
        self.slot: ModelSlot | None = None
        self.locked_by: ModelConnection | None = None
        self.connections: list[ModelConnection] = []
        self.streams: list[ModelStream] = []
        self.losses = 0
        self.commits = 0
        self.acknowledged = acknowledged
        self.ended = asyncio.Event()
        self._right_after = False
        self._xid = 700
        self._pid = 100

    # what the application does

    def commit(self, changes: Sequence[Change]) -> None:
        dice = self.world.dice
        self.commits += 1
        self._xid += 1
        between = dice.choice((8, 24, 100))
        right_after = self._right_after and between == 8
        commit_lsn = self.wal_lsn if right_after else self.wal_lsn + len(changes) + between
        self._append(Committed(self._xid, commit_lsn, commit_lsn + dice.choice((16, 48)), self._now_us, tuple(changes)))

    def emit(self, text: str) -> None:
        """Emit a logical message outside of any transaction: a rollback of its session's transaction keeps it."""
        self.commits += 1
        end_lsn = self.wal_lsn + self.world.dice.choice((24, 100))
        self._append(Committed(0, end_lsn - 1, end_lsn, self._now_us, (Change("m", text=text, transactional=False),)))

    @property
    def _now_us(self) -> int:
        return TIME_US + int(self.world.loop.time() * 1e6)

    def _append(self, one: Committed) -> None:
        self.history.append(one)
        self.wal_lsn = one.end_lsn
        self._right_after = True
        ops = "".join(change.op for change in one.changes)
        self.world.tell(f"commit xid={one.xid} lsn={one.commit_lsn:X} end={one.end_lsn:X} changes={ops}")
        self.wake()

    def write_noise(self, nbytes: int) -> None:
        """Write WAL in which nothing is published."""
        self.wal_lsn += nbytes
        self._right_after = False

    def next_pid(self) -> int:
        self._pid += 1
        return self._pid

    def wake(self) -> None:
        for stream in self.streams:
            stream.wake()

    # faults

    def checkpoint(self) -> None:
        if self.slot is not None:
            self.slot.saved = self.slot.confirmed

    def crash(self, down_s: float) -> None:
        self.world.fault("server_crash")
        self.up = self._right_after = False
        self.generation += 1
        for connection in list(self.connections):
            self.close(connection)
        for stream in self.streams:
            stream.break_("the server crashed")
        self.streams.clear()
        if self.slot is not None:
            self.slot.confirmed, self.slot.holder = self.slot.saved, None
        self.ended.set()
        self.ended = asyncio.Event()
        self.wake()
        self.world.later(down_s, self._start)

    def _start(self) -> None:
        self.up = True
        self.world.tell("server up")

    def fail_over(self, lost: int, down_s: float, *, slot_goes: bool = False) -> None:
        """Promote a standby that lacks the last `lost` transactions. As a rule it has the slot, synchronized."""
        self.crash(down_s)
        old, dice = self.history, self.world.dice
        kept = max(0, len(old.transactions) - lost)
        switch_lsn = old.ends[kept - 1] if kept else 0x1000
        if kept == len(old.transactions):
            switch_lsn = self.wal_lsn
        elif dice.random() < 0.5:  # the standby had some of what came before the next commit record
            switch_lsn = dice.randint(switch_lsn, old.transactions[kept].commit_lsn)
        self.history = old.fork(len(self.histories) + 1, switch_lsn)
        self.histories.append(self.history)
        self.wal_lsn = switch_lsn
        self.world.fault("failover", f"lost={len(old.transactions) - kept} ancestors={self.history.ancestors}")
        if self.slot is None:
            return
        if slot_goes or self.slot.consistent_lsn > switch_lsn:
            self.losses += 1
            self.world.fault("failover_without_slot")
            self.slot = None
        else:
            self.slot.confirmed = self.slot.saved = min(self.slot.saved, switch_lsn)

    # faults of the slot

    def _take_slot(self, kind: str) -> ModelSlot | None:
        """Disconnect the slot's reader and return the slot; None if there is no slot, or it is lost already."""
        slot = self.slot
        if slot is None or slot.lost or not self.up:
            return None
        self.losses += 1
        self.world.fault(kind)
        if slot.holder is not None:
            self.drop(slot.holder, "terminating connection due to administrator command")
        return slot

    def drop_slot_by_hand(self) -> None:
        if self._take_slot("slot_dropped") is not None:
            self.slot = None

    def invalidate_slot(self) -> None:
        """Lose the slot, as when `max_slot_wal_keep_size` is exceeded."""
        if (slot := self._take_slot("slot_lost")) is not None:
            slot.lost = True

    def advance_slot(self) -> None:
        if (slot := self._take_slot("slot_advanced")) is not None:
            slot.confirmed = slot.saved = self.wal_lsn

    def reap(self, stream: "ModelStream") -> None:
        """End a WAL sender that has heard nothing from its client for too long."""
        if stream not in self.streams:
            return
        if self.world.loop.time() - stream.heard_at > SENDER_TIMEOUT_S:
            self.world.tell(f"walsender of {stream.life.name} timed out")
            self.drop(stream, "terminating walsender process due to replication timeout")
        else:
            self.world.later(SENDER_TIMEOUT_S / 4, self.reap, stream)

    def drop(self, stream: "ModelStream", reason: str) -> None:
        stream.break_(reason)
        if stream in self.streams:
            self.streams.remove(stream)
        if self.slot is not None and self.slot.holder is stream:
            self.slot.holder = None

    def give_up(self, stream: "ModelStream") -> None:
        """Free the slot, because the server takes the client for dead; the client does not learn of it."""
        stream.muted = True
        if stream in self.streams:
            self.streams.remove(stream)
        if self.slot is not None and self.slot.holder is stream:
            self.slot.holder = None

    def forget(self, life: Life) -> None:
        """Close the connections of a process that died, as its kernel does; the server sees it at once."""
        for stream in [stream for stream in self.streams if stream.life is life]:
            self.drop(stream, "the client is gone")
        for connection in [connection for connection in self.connections if connection.life is life]:
            self.close(connection)

    def close(self, connection: "ModelConnection") -> None:
        """End a session, and release the lock that it held."""
        connection.closed = True
        if connection in self.connections:
            self.connections.remove(connection)
        if self.locked_by is connection:
            self.locked_by = None

    def reach(self) -> None:
        self.world.alive()
        if not self.up:
            raise Unavailable("no connection to Postgres")
