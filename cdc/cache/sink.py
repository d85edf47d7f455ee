"""The cache's sink turns batches of changes into script calls, one after another.

The checkpoint is in Redis itself, in the hash `cdc:meta`, and moves in the same script call as the data. So the two
always agree: after a crash of ours, after one of Redis, and after a failover that loses the last second.

Every call is a compare-and-set (`calls.py`). So a second writer, a late call of a dead process or an emptied cache
cannot make a key go back. The sink raises `Moved`; its caller calls `open()` again and starts from what is there.

`write` gathers transactions in a plan until it is full, sends it ahead, and gathers the next one while Redis works.
`sweep.py` removes the keys of a truncated table, `warm.py` fills the cache from a snapshot.
"""

import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Sequence

from cdc import metrics
from cdc.cache.calls import ScriptCalls
from cdc.cache.checkpoint import Checkpoint
from cdc.cache.connection import Connection
from cdc.cache.gathering import Gathering
from cdc.cache.plan import Plan
from cdc.cache.projection import Projector, WarmQuery, find_conflicts, warm_queries
from cdc.cache.server import check_server, describe
from cdc.cache.sweep import Sweep
from cdc.cache.warm import WarmUp
from cdc.change import Batch, Change, Relation, RowChange, Transaction, Truncate
from cdc.config import CacheSettings, Projection
from cdc.crash import crash_point
from cdc.errors import Invalid, Moved
from cdc.position import Epoch, Position
from cdc.row import Row


class CacheSink:
    """Keeps the cache up to date; `cdc.pipeline.sinks.Follower` is the contract. One call at a time.

    Raises Invalid if the configured projections disturb one another, or if `cache.url` is not one.
    """

    def __init__(self, settings: CacheSettings, epoch: Epoch) -> None:
        conflicts = find_conflicts(settings.projections)
        if conflicts:
            raise Invalid("the cache's projections disturb one another", detail="; ".join(conflicts))
        self._settings = settings
        self._epoch = epoch
        self._batch_rows, self._batch_bytes = settings.batch_rows, settings.batch_bytes
        self._digest = _digest(settings.projections)
        self._connection = Connection(settings)
        self._calls = ScriptCalls(self._connection, uuid.uuid4().hex[:12])
        self._projector = Projector(settings.projections)
        self._sweep = Sweep(settings.projections, self._connection, self._calls)
        self._warm_up = WarmUp(settings, self._calls, self._sweep, self._projector)
        self._latency = metrics.latency_s.labels("cache")

    @property
    def name(self) -> str:
        return "cache"

    @property
    def epoch(self) -> Epoch:
        return self._epoch

    @property
    def position(self) -> Position | None:
        """The cache's position after the last call; None if it must be warmed."""
        checkpoint = self._calls.checkpoint
        ours = checkpoint.generation.startswith(self._digest)
        usable = bool(checkpoint.lsn) and checkpoint.epoch == str(self._epoch).encode() and ours
        return checkpoint.position(self._epoch) if usable else None

    @property
    def warm_queries(self) -> list[WarmQuery]:
        """The queries that read a warm-up's rows from Postgres."""
        return warm_queries(self._settings.projections)

    async def open(self) -> Position | None:
        """Connect and return the position that Redis holds; None if it must be warmed.

        Raises Unavailable while Redis is away or refuses for now, Invalid if it cannot be used at all.
        """
        await self._connection.close()
        check_server(describe(await self._connection.call(b"INFO")))
        await self._calls.begin()
        return self.position

    async def write(self, batch: Batch) -> int:
        """Apply what the checkpoint does not cover; return the `end_lsn` up to which the cache is complete.

        Raises Unavailable (call again with the same batch, or open again), Moved (open again) or Invalid.
        """
        gathering = await self._begin()
        try:
            applied = await self._write(batch, gathering)
            await self._send_now(gathering)
        finally:
            await self._calls.abandon()
        if applied:
            self._observe(applied[0].commit_time_us, applied[-1].commit_time_us)
        return gathering.lsn

    async def advance(self, lsn: int) -> int:
        """Move the checkpoint to `lsn`, which the stream passed without changes; return its LSN afterwards.

        Raises as `write` does.
        """
        gathering = await self._begin()
        if not gathering.part_commit_lsn:
            gathering.lsn = max(gathering.lsn, lsn)
            await self._send_now(gathering)
        return gathering.lsn

    async def warm(
        self, rows: AsyncIterator[tuple[Relation, list[Row]]], position: Position, snapshot_time_us: int
    ) -> None:
        """Fill the cache from a snapshot that shows the database at `position`. Call `open()` first.

        Raises Unavailable or Invalid, Moved if another writer is at work, and what reading the rows raises.
        """
        await self._calls.settle()
        filling = Checkpoint(b"", str(self._epoch).encode(), self._digest + uuid.uuid4().hex.encode())
        await self._warm_up.run(rows, filling, position.lsn, snapshot_time_us // 1000)

    async def close(self) -> None:
        """Close the connection. Nothing durable depends on it."""
        await self._connection.close()

    async def _begin(self) -> Gathering:
        """Begin a plan at the cache's position. Raises Moved if it must be warmed."""
        await self._calls.settle()
        position = self.position
        if position is None:
            raise Moved("the cache has no checkpoint to go on from", detail=self._calls.checkpoint.describe())
        return Gathering(position)

    async def _write(self, batch: Batch, gathering: Gathering) -> list[Transaction]:
        """Apply all but the last plan, which stays gathered; return the transactions that were not covered."""
        applied: list[Transaction] = []
        for transaction in batch.transactions:
            if gathering.covers(transaction):
                continue
            if not self._project_whole(transaction, gathering):
                await self._send_ahead(gathering)
                if not self._project_whole(transaction, gathering):
                    await self._project_piecewise(transaction, gathering)
            applied.append(transaction)
        return applied

    def _project_whole(self, transaction: Transaction, gathering: Gathering) -> bool:
        """Gather a transaction that is whole, has only rows and finds room, as nearly all do.

        False for any other, which is then not gathered.
        """
        changes, plan = transaction.changes, gathering.plan
        if plan.rows + len(changes) > self._batch_rows or plan.nbytes + transaction.nbytes > self._batch_bytes:
            return False
        if gathering.part_commit_lsn or transaction.first_seq or not transaction.last:
            return False
        if not self._projector.project_whole(transaction, plan):
            return False
        gathering.lsn = transaction.end_lsn
        return True

    async def _project_piecewise(self, transaction: Transaction, gathering: Gathering) -> None:
        """Gather a transaction change by change, and send a plan ahead whenever it is full, or at a TRUNCATE."""
        first_seq = gathering.begin(transaction)
        commit_ms = transaction.commit_time_us // 1000
        for change in transaction.changes:
            if change.seq < first_seq:
                continue
            if isinstance(change, RowChange):
                plan = gathering.plan
                if plan.rows >= self._batch_rows or plan.nbytes >= self._batch_bytes:
                    await self._send_part(gathering, transaction, change)
                    plan = gathering.plan
                self._projector.project(change, commit_ms, plan)
            elif isinstance(change, Truncate) and self._projector.bound_to(change.relation):
                await self._send_part(gathering, transaction, change)
                await self._calls.await_sent()
                await self._sweep.unlink_all(change.relation.qualified_name)
        gathering.finish(transaction)

    async def _send_part(self, gathering: Gathering, transaction: Transaction, upto: Change) -> None:
        """Send what is gathered in the middle of a transaction: everything before the change `upto`."""
        gathering.part_commit_lsn, gathering.part_seq = transaction.commit_lsn, upto.seq
        await self._send_ahead(gathering)
        crash_point("cache_part_sent")

    async def _send_ahead(self, gathering: Gathering) -> None:
        """Send what is gathered, and return while Redis is at work, so that the next plan can be made meanwhile."""
        plan, gathering.plan = gathering.plan, Plan()
        await self._calls.send_ahead(plan, gathering.target(self._calls.expected))

    async def _send_now(self, gathering: Gathering) -> None:
        """Send what is gathered, and wait until it is applied."""
        await self._calls.await_sent()
        target = gathering.target(self._calls.checkpoint)
        if target != self._calls.checkpoint:
            await self._calls.send_now(gathering.plan, target)
        gathering.plan = Plan()

    def _observe(self, oldest_us: int, newest_us: int) -> None:
        """Record the latency of the oldest and of the newest of the transactions that became visible together."""
        now_us = time.time_ns() // 1000
        self._latency.observe(max(0, now_us - oldest_us) / 1e6)
        if newest_us != oldest_us:
            self._latency.observe(max(0, now_us - newest_us) / 1e6)


def _digest(projections: Sequence[Projection]) -> bytes:
    """The name of a set of projections. A cache with another name has other shapes, and must be warmed again."""
    text = "".join(projection.model_dump_json() for projection in projections)
    return hashlib.sha256(text.encode()).hexdigest()[:8].encode() + b"-"
