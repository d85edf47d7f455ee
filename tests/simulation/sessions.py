"""Models the server's answers: to SQL, snapshots, the stream, and the sentinel's session."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from cdc.errors import SlotLost, Unavailable
from cdc.postgres.publication import Publication, PublishedTable
from cdc.postgres.refusal import SlotActive
from cdc.postgres.server import Server
from cdc.postgres.slot import ExportedSnapshot, Slot, SlotExists
from cdc.postgres.stream.replication import Identity
from cdc.row import Row
from tests.simulation.clock import LIFE
from tests.simulation.history import OID, RELATION, History
from tests.simulation.postgres import SENDER_TIMEOUT_S, ModelPostgres, ModelSlot
from tests.support.cache_model import TURNS, row_of
from tests.unit.pgoutput.encoder import keepalive

_DELAY_S = 0.01

PUBLICATION = Publication(
    "cdc",
    (
        PublishedTable(
            "public",
            "turns",
            OID,
            tuple(TURNS.columns),
            "f",
            tuple(one.name for one in TURNS.columns),
            ("id",),
            None,
            False,
            (),
        ),
    ),
    ("insert", "update", "delete", "truncate"),
    False,
)


class ModelConnection:
    """An SQL session, which works until its server goes down."""

    def __init__(self, server: ModelPostgres) -> None:
        self.server = server
        self.generation = server.generation
        self.life = LIFE.get()
        self.closed = False
        server.connections.append(self)

    async def ask(self) -> ModelPostgres:
        await self.server.world.travel(_DELAY_S)
        self.server.reach()
        if self.closed or self.generation != self.server.generation:
            raise Unavailable("the session was ended by the server")
        return self.server

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close(self)

    # the functions of cdc.postgres that take a connection

    async def read_server(self) -> Server:
        server = await self.ask()
        return Server(server.history.epoch, "chat", 18, "18.0", "UTF8", "logical", False, SENDER_TIMEOUT_S, {}, {})

    async def read_slot(self) -> Slot | None:
        server = await self.ask()
        if server.slot is None:
            return None
        holder = None if server.slot.holder is None else server.slot.holder.backend_pid
        lsn, status = server.slot.confirmed, "lost" if server.slot.lost else "reserved"
        return Slot(
            "cdc", "pgoutput", "chat", False, holder, lsn, lsn, status, None, False, False, None, None, False, False
        )

    async def wal_insert_lsn(self) -> int:
        return (await self.ask()).wal_lsn

    async def read_switch_points(self, timeline: int) -> dict[int, int]:
        server = await self.ask()
        return dict(server.histories[timeline - 1].ancestors)

    async def try_lock(self) -> bool:
        server = await self.ask()
        if server.locked_by not in (None, self):
            return False
        server.locked_by = self
        return True

    async def drop_slot(self) -> None:
        server = await self.ask()
        if server.slot is not None and server.slot.holder is not None:
            raise SlotActive("the slot is active")
        server.slot = None

    @asynccontextmanager
    async def create_slot(self, *, temporary: bool) -> AsyncIterator[ExportedSnapshot]:
        server = await self.ask()
        consistent_lsn = server.wal_lsn
        if not temporary:
            if server.slot is not None:
                raise SlotExists("replication slot cdc exists already")
            server.slot = ModelSlot(consistent_lsn, self.life)
        server.world.tell(f"slot created temporary={temporary} at={consistent_lsn:X}")
        yield ExportedSnapshot("cdc", consistent_lsn, f"{len(server.history.transactions)}")


class ModelSnapshot:
    def __init__(self, connection: ModelConnection, exported: ExportedSnapshot) -> None:
        self._connection = connection
        self._state = connection.server.history.states[int(exported.snapshot_name)]

    async def time_us(self) -> int:
        return time.time_ns() // 1000

    async def rows(
        self, _table: PublishedTable, *, order_by: Sequence[str] = (), **_: object
    ) -> AsyncIterator[list[Row]]:
        names = (*order_by, "id")
        turns = sorted(self._state.values(), key=lambda turn: [(turn[name] is None, turn[name] or 0) for name in names])
        for first in range(0, len(turns), 4):
            await self._connection.ask()
            yield [row_of(turn) for turn in turns[first : first + 4]]


class ModelStream:
    """A replication connection, with the methods of `cdc.postgres.stream.replication.ReplicationStream`."""

    def __init__(self, connection: ModelConnection) -> None:
        life = LIFE.get()
        assert life is not None
        self.life = life
        self.backend_pid = connection.server.next_pid()
        self.broken = ""
        self.muted = False
        self.heard_at = 0.0
        self._connection = connection
        self._server = connection.server
        self._history: History = connection.server.history
        self._pending: deque[bytes] = deque()
        self._next = 0
        self._described = False
        self._told_lsn = 0
        self._flushed = 0
        self._keepalive_due = False
        self._woken = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def identify(self) -> Identity:
        server = await self._connection.ask()
        return Identity(server.history.epoch, server.wal_lsn, "chat")

    async def start(self, _slot: str, _publication: str) -> None:
        server = await self._connection.ask()
        if server.slot is None:
            raise SlotLost("the slot does not exist")
        if server.slot.lost:
            raise SlotLost("can no longer get changes from the slot")
        if server.slot.holder is not None:
            raise SlotActive("the slot is active", detail=f"for PID {server.slot.holder.backend_pid}")
        server.slot.holder = self
        server.streams.append(self)
        self._flushed = server.slot.confirmed
        transactions = server.history.transactions
        self._next = next(
            (n for n, one in enumerate(transactions) if one.commit_lsn >= server.slot.confirmed), len(transactions)
        )
        self.heard_at = server.world.loop.time()
        server.world.later(SENDER_TIMEOUT_S / 4, server.reap, self)
        server.world.later(0.3, self._send_keepalive)
        server.world.tell(f"stream started at={server.slot.confirmed:X} next={self._next}")

    def break_(self, reason: str) -> None:
        self.broken = reason
        self.wake()

    def wake(self) -> None:
        self._woken.set()

    def _send_keepalive(self) -> None:
        if not self.broken:
            self._keepalive_due = True
            self._woken.set()
            self._server.world.later(self._server.world.moment(2.0), self._send_keepalive)

    async def receive(self) -> list[bytes]:
        world = self._server.world
        while True:
            world.alive()
            if self.broken:
                raise Unavailable(self.broken)
            if not self.muted:
                self._fill()
            if self._pending and not self.muted:
                count = min(len(self._pending), world.dice.choice((1, 3, 20, 200)))
                messages = [self._pending.popleft() for _ in range(count)]
                await asyncio.sleep(0)
                return messages
            self._woken.clear()
            await self._woken.wait()

    def _fill(self) -> None:
        dice, transactions = self._server.world.dice, self._history.transactions
        while len(self._pending) < 50 and self._next < len(transactions):
            transaction = transactions[self._next]
            self._next += 1
            frames = transaction.frames()
            if transaction.xid and dice.random() < 0.2:
                frames.insert(-1, keepalive(transaction.commit_lsn))
            if not self._described and transaction.touches_rows:
                frames.insert(1, RELATION)
                self._described = True
            self._pending.extend(frames)
            if dice.random() < 0.2:
                self._pending.append(keepalive(transaction.end_lsn, reply=dice.random() < 0.3))
        if self._next == len(transactions) and self._keepalive_due:
            self._keepalive_due = False
            self._pending.append(keepalive(self._server.wal_lsn, reply=dice.random() < 0.3))

    def send_status(self, _written: int, flushed: int, _applied: int, *, reply_requested: bool = False) -> None:
        world = self._server.world
        if self.life.dead or self.broken or self._server.slot is None or self._server.slot.holder is not self:
            return
        if flushed < self._flushed:
            raise world.fail(f"the acknowledged position went back from {self._flushed:X} to {flushed:X}")
        if flushed != self._flushed:
            world.tell(f"status flushed={flushed:X}")
        self._flushed = flushed
        self._server.acknowledged(self._history, self._server.slot.consistent_lsn, flushed)
        if self.muted:
            return
        self.heard_at = world.loop.time()
        self._server.slot.confirmed = max(self._server.slot.confirmed, flushed)
        if reply_requested:
            self._keepalive_due = True
            self._woken.set()

    async def close(self) -> None:
        if not self.life.dead and not self.muted:
            self._server.drop(self, "closed")
        self.broken = self.broken or "closed"
        await asyncio.sleep(0)


class ModelSentinel:
    """A session with the methods of `cdc.postgres.stream.sentinel.Sentinel`."""

    def __init__(self, server: ModelPostgres) -> None:
        self._server = server
        self._ended = server.ended

    async def __aenter__(self) -> Self:
        await self._server.world.travel(_DELAY_S)
        self._server.reach()
        if self._server.world.chance(0.1):
            raise Unavailable("no session to be had for a sentinel")
        self._ended = self._server.ended
        return self

    async def __aexit__(self, *_: Any) -> None:
        pass

    async def wait_ended(self) -> str:
        await self._ended.wait()
        return "terminating connection"
