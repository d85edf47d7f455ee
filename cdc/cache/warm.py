"""Warms the cache: removes all of its keys, and fills it from the rows of a snapshot."""

from collections.abc import AsyncIterator

from cdc.cache.calls import ScriptCalls
from cdc.cache.checkpoint import Checkpoint
from cdc.cache.plan import Plan
from cdc.cache.projection import Projector
from cdc.cache.sweep import Sweep
from cdc.change import READ, Relation, RowChange
from cdc.config import CacheSettings
from cdc.crash import crash_point
from cdc.lsn import format_lsn
from cdc.row import Row


class WarmUp:
    """Fills the cache in script calls, while the checkpoint tells that it is not complete."""

    def __init__(self, settings: CacheSettings, calls: ScriptCalls, sweep: Sweep, projector: Projector) -> None:
        self._batch_rows, self._batch_bytes = settings.batch_rows, settings.batch_bytes
        self._calls = calls
        self._sweep = sweep
        self._projector = projector

    async def run(
        self, rows: AsyncIterator[tuple[Relation, list[Row]]], filling: Checkpoint, lsn: int, snapshot_ms: int
    ) -> None:
        """Fill the cache with the rows of a snapshot at `lsn`, read at `snapshot_ms` (milliseconds since 1970).

        `filling` is a checkpoint without `lsn` that names this warm-up.

        1. A checkpoint without `lsn` says: being filled. A crash from here on means that the cache is warmed again.
        2. Every key of the projections goes.
        3. The rows come, in the order that `warm_queries` asks for.
        4. The checkpoint gets its `lsn`.

        Raises as `ScriptCalls.send_now`, and what reading the rows raises.
        """
        self._projector.forget()
        await self._calls.send_now(Plan(), filling)  # 1
        crash_point("warm_up_begun")
        await self._sweep.unlink_all(None)  # 2
        await self._load(rows, snapshot_ms)  # 3
        await self._calls.send_now(Plan(), filling._replace(lsn=format_lsn(lsn).encode()))  # 4

    async def _load(self, rows: AsyncIterator[tuple[Relation, list[Row]]], snapshot_ms: int) -> None:
        plan = Plan()
        async for relation, chunk in rows:
            bound = self._projector.bound_to(relation)
            for row in chunk:
                if plan.rows >= self._batch_rows or plan.nbytes >= self._batch_bytes:
                    await self._send(plan)
                    plan = Plan()
                change = RowChange(READ, 0, relation, row, None)
                for projection in bound:
                    projection.read(change, snapshot_ms, plan)
                plan.rows += 1
                plan.nbytes += len(change.after or b"")
        await self._send(plan)

    async def _send(self, plan: Plan) -> None:
        await self._calls.send_now(plan, self._calls.next_step())
        crash_point("warm_up_filling")
