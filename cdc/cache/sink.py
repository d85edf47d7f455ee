"""The cache as a sink: batches of changes in, one script call after another out.

The checkpoint is in Redis itself, in the hash `cdc:meta`, and moves in the same script call as the data. So the two
cannot part: not by a crash of ours, not by one of Redis, not by a failover that loses the last second.

Every call is a compare-and-set: it names the checkpoint that it expects and does nothing if another is there. So a
second writer, a zombie's late call or an emptied cache cannot make a key go back; the sink learns of it as `Moved`,
and whoever drives it calls `open()` again and starts from what is there. A call whose answer was lost is settled by
looking: the checkpoint is either where it was or where the call would have moved it.
"""

import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from importlib import resources
from typing import Final, NamedTuple

import structlog

from cdc import metrics
from cdc.cache.checkpoint import FIELDS, META_KEY, Checkpoint
from cdc.cache.connection import Connection, NoScript, pack
from cdc.cache.gathering import Gathering
from cdc.cache.plan import Plan
from cdc.cache.projection import Projector, Template, WarmQuery, find_conflicts, warm_queries
from cdc.cache.server import OLDEST_VERSION, describe
from cdc.change import READ, Batch, Change, Relation, RowChange, Transaction, Truncate, format_time
from cdc.config import CacheSettings, Projection
from cdc.crash import crash_point
from cdc.errors import Invalid, Moved, Unavailable
from cdc.lsn import format_lsn
from cdc.position import Epoch, Position
from cdc.row import Row

log = structlog.get_logger()

_SCRIPT: Final = resources.files(__package__).joinpath("script.lua").read_bytes()
_SHA: Final = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest().encode()
_FIRST_VALUE: Final = 11  # ARGV before it: two checkpoints of four fields, updated_at, the plan

_SCAN_COUNT: Final = b"2000"
_UNLINK_AT_ONCE: Final = 1000


def _now_us() -> int:
    return time.time_ns() // 1000


class CacheSink:
    """See the module's story. One `write`, `advance` or `warm` at a time."""

    def __init__(self, settings: CacheSettings, epoch: Epoch) -> None:
        conflicts = find_conflicts(settings.projections)
        if conflicts:
            raise Invalid("the cache's projections disturb one another", detail="; ".join(conflicts))
        self._settings = settings
        self._epoch = epoch
        self._batch_rows, self._batch_bytes = settings.batch_rows, settings.batch_bytes
        self._connection = Connection(settings)
        self._digest = _digest(settings.projections)
        self._checkpoint = Checkpoint()
        self._writer = uuid.uuid4().hex[:12]
        self._steps = 0
        self._doubt: Checkpoint | None = None
        self._flight: asyncio.Task[None] | None = None
        self._ahead = Checkpoint()
        self._projector = Projector(settings.projections)
        self._unreachable: set[str] = set()
        self._latency = metrics.latency_s.labels("cache")
        self._templates = [(Template(projection.key), projection.table) for projection in settings.projections]

    @property
    def name(self) -> str:
        return "cache"

    # Open -------------------------------------------------------------------------------------------------------------

    async def open(self) -> Position | None:
        """Connect and return the position that Redis holds; None if it must be warmed.

        Raises Unavailable while Redis is away or refuses for now, Invalid if it cannot be used at all.
        """
        await self._connection.close()
        await self._check_server()
        self._checkpoint, self._doubt = await self._look(), None
        return self.position

    def _usable(self, checkpoint: Checkpoint) -> bool:
        ours = checkpoint.generation.startswith(self._digest)
        return bool(checkpoint.lsn) and checkpoint.epoch == str(self._epoch).encode() and ours

    @property
    def _position(self) -> Position:
        return self._checkpoint.position(self._epoch)

    @property
    def epoch(self) -> Epoch:
        return self._epoch

    @property
    def position(self) -> Position | None:
        """Where the cache stood after the last call; None if it must be warmed."""
        return self._position if self._usable(self._checkpoint) else None

    @property
    def warm_queries(self) -> list[WarmQuery]:
        """What a warm-up asks of Postgres."""
        return warm_queries(self._settings.projections)

    async def _check_server(self) -> None:
        server = describe(await self._connection.call(b"INFO"))
        if server.version < OLDEST_VERSION:
            version = ".".join(map(str, server.version))
            raise Invalid(f"Redis {version} is too old", hint="use Redis 6.2 or later, or Valkey")
        if server.cluster:
            raise Invalid(
                "cache.url leads to a cluster",
                hint="use one server (or one primary with replicas): the checkpoint and the keys change together",
            )
        if server.role == "slave":
            raise Unavailable("cache.url leads to a replica", hint="point cache.url to the primary")
        if server.loading:
            raise Unavailable("Redis is loading its data")
        if server.maxmemory_policy.startswith("allkeys"):
            log.warning(
                "cache_eviction_hits_checkpoint",
                policy=server.maxmemory_policy,
                hint="CONFIG SET maxmemory-policy volatile-lru",
            )

    async def _look(self) -> Checkpoint:
        found = await self._connection.call(b"HMGET", META_KEY, *FIELDS)
        return Checkpoint(*(value or b"" for value in found))

    # Write ------------------------------------------------------------------------------------------------------------

    async def write(self, batch: Batch) -> int:
        """Apply what the checkpoint does not cover; return the `end_lsn` up to which the cache is complete.

        Raises Unavailable (call again with the same batch, or open again), Moved (open again) or Invalid.
        """
        await self._settle()
        self._require_checkpoint()
        gathering = Gathering(self._position)
        try:
            applied = await self._write(batch, gathering)
            await self._apply(gathering)
        finally:
            await self._abandon()
        if applied:
            self._observe(applied[0].commit_time_us, applied[-1].commit_time_us)
        return gathering.lsn

    async def _write(self, batch: Batch, gathering: Gathering) -> list[Transaction]:
        """Apply all but the last plan, which stays gathered; return the transactions that were not covered."""
        applied: list[Transaction] = []
        for transaction in batch.transactions:
            if gathering.covers(transaction):
                continue
            if not self._gather(transaction, gathering):
                await self._launch(gathering)
                if not self._gather(transaction, gathering):
                    await self._take(transaction, gathering)
            applied.append(transaction)
        return applied

    async def advance(self, lsn: int) -> int:
        """Move the checkpoint to `lsn`, which the stream passed without changes; return where it is then."""
        await self._settle()
        self._require_checkpoint()
        gathering = Gathering(self._position)
        if not gathering.part_commit_lsn:
            gathering.lsn = max(gathering.lsn, lsn)
            await self._apply(gathering)
        return gathering.lsn

    async def close(self) -> None:
        """Close the connection. Nothing durable depends on it."""
        await self._connection.close()

    def _require_checkpoint(self) -> None:
        if not self._usable(self._checkpoint):
            raise Moved("the cache has no checkpoint to go on from", detail=self._checkpoint.describe())

    def _gather(self, transaction: Transaction, gathering: Gathering) -> bool:
        """What nearly every transaction is: whole, only rows, and there is room. False, and nothing done, otherwise."""
        changes, plan = transaction.changes, gathering.plan
        if plan.rows + len(changes) > self._batch_rows or plan.nbytes + transaction.nbytes > self._batch_bytes:
            return False
        if gathering.part_commit_lsn or transaction.first_seq or not transaction.last:
            return False
        if not self._projector.project_whole(transaction, plan):
            return False
        gathering.lsn = transaction.end_lsn
        return True

    async def _take(self, transaction: Transaction, gathering: Gathering) -> None:
        first_seq = gathering.begin(transaction)
        commit_ms = transaction.commit_time_us // 1000
        for change in transaction.changes:
            if change.seq < first_seq:
                continue
            if isinstance(change, RowChange):
                plan = gathering.plan
                if plan.rows >= self._batch_rows or plan.nbytes >= self._batch_bytes:
                    await self._apply_part(gathering, transaction, change)
                    plan = gathering.plan
                self._projector.project(change, commit_ms, plan)
            elif isinstance(change, Truncate) and self._projector.bound_to(change.relation):
                await self._apply_part(gathering, transaction, change)
                await self._land()
                await self._unlink_all(change.relation.qualified_name)
        gathering.finish(transaction)

    async def _apply_part(self, gathering: Gathering, transaction: Transaction, upto: Change) -> None:
        """Apply what is gathered, in the middle of a transaction: everything before the change `upto`."""
        gathering.part_commit_lsn, gathering.part_seq = transaction.commit_lsn, upto.seq
        await self._launch(gathering)
        crash_point("cache_part_sent")

    async def _apply(self, gathering: Gathering) -> None:
        """Apply what is gathered."""
        await self._land()
        target = self._target(gathering, self._checkpoint)
        if target != self._checkpoint:
            await self._call(gathering.plan, target)
        gathering.plan = Plan()

    async def _launch(self, gathering: Gathering) -> None:
        """Apply what is gathered, and return while Redis is still at work, so that the next plan can be made meanwhile.

        One call is in flight at a time, and the next one is ready to go when it lands: each compares the checkpoint
        that the one before it leaves.
        """
        expected = self._checkpoint if self._flight is None else self._ahead
        target = self._target(gathering, expected)
        call = self._prepare(gathering.plan, expected, target) if target != expected else None
        gathering.plan = Plan()
        await self._land()
        if call is not None:
            self._ahead = target
            self._flight = asyncio.create_task(self._send(call), name="cache call")
            await asyncio.sleep(0)  # until it is sent

    @staticmethod
    def _target(gathering: Gathering, expected: Checkpoint) -> Checkpoint:
        target = expected._replace(lsn=format_lsn(gathering.lsn).encode(), part=gathering.part)
        # A TRUNCATE that was interrupted begins again, and its steps stay counted: no two may be taken for one another.
        stepped = target.lsn == expected.lsn and bool(target.part) and expected.part.startswith(target.part + b":")
        return expected if stepped else target

    async def _land(self) -> None:
        """Wait for the call in flight. Raises what it raises."""
        flight, self._flight = self._flight, None
        if flight is not None:
            await flight

    async def _abandon(self) -> None:
        """After an error, or cancelled: nobody waits for the call in flight any more. `_settle` finds out about it."""
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.cancel()
            await asyncio.gather(flight, return_exceptions=True)

    def _observe(self, oldest_us: int, newest_us: int) -> None:
        """Of many transactions that became visible together, the two that say most."""
        now_us = _now_us()
        self._latency.observe(max(0, now_us - oldest_us) / 1e6)
        if newest_us != oldest_us:
            self._latency.observe(max(0, now_us - newest_us) / 1e6)

    # The call ---------------------------------------------------------------------------------------------------------

    async def _call(self, plan: Plan, target: Checkpoint) -> None:
        """One script call: from the checkpoint that we know to `target`. Raises Moved if another is there."""
        await self._send(self._prepare(plan, self._checkpoint, target))

    def _prepare(self, plan: Plan, expected: Checkpoint, target: Checkpoint) -> "_Call":
        self._name_unreachable(plan)
        keys, numbers, values = plan.flatten(_FIRST_VALUE)
        updated_at = format_time(_now_us()).encode()
        count = b"%d" % (len(keys) + 1)
        arguments = [count, META_KEY, *keys, *expected, *target, updated_at, numbers, *values]
        return _Call(arguments, pack([b"EVALSHA", _SHA, *arguments]), target)

    async def _send(self, call: "_Call") -> None:
        self._doubt = call.target
        crash_point("script_unsent")
        try:
            answer = await self._connection.send(call.packed)
        except NoScript:
            answer = await self._connection.send(pack([b"EVAL", _SCRIPT, *call.arguments]))
        crash_point("script_answered")
        self._doubt = None
        found = Checkpoint(*answer) if isinstance(answer, list) else call.target
        if found != call.target:
            raise self._moved(found)
        self._checkpoint = call.target

    async def _settle(self) -> None:
        """Find out what became of a call whose answer did not come."""
        if self._doubt is None:
            return
        found, target = await self._look(), self._doubt
        if found not in (target, self._checkpoint):
            raise self._moved(found)
        self._checkpoint, self._doubt = found, None

    def _moved(self, found: Checkpoint) -> Moved:
        return Moved(
            "the cache is not where we left it",
            detail=f"left at {self._checkpoint.describe()}, found {found.describe()}",
        )

    def _name_unreachable(self, plan: Plan) -> None:
        for table in plan.unreachable - self._unreachable:
            log.warning(
                "cache_keys_unreachable", table=table, hint=f"ALTER TABLE {table} REPLICA IDENTITY FULL",
            )  # fmt: skip
        self._unreachable |= plan.unreachable

    # Many keys at once ------------------------------------------------------------------------------------------------

    async def _unlink_all(self, table: str | None) -> None:
        """Remove every key of a table's projections, or of all (None). The checkpoint stays where it is."""
        for template, owner in self._templates:
            if table is None or owner == table:
                await self._unlink_matching(template.pattern, table)

    async def _unlink_matching(self, pattern: bytes, table: str | None) -> None:
        cursor = b"0"
        while True:
            cursor, keys = await self._connection.call(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _SCAN_COUNT)
            mine = [key for key in keys if table is None or self._owner(key) == table]
            for first in range(0, len(mine), _UNLINK_AT_ONCE):
                plan = Plan()
                plan.unlinked = mine[first : first + _UNLINK_AT_ONCE]
                await self._call(plan, self._next_step())
            if cursor == b"0":
                return

    def _next_step(self) -> Checkpoint:
        """One that no call before had as its target, ours or another's: a late call must not pass for this one."""
        self._steps += 1
        return self._checkpoint.stepped(f"{self._writer}.{self._steps}")

    def _owner(self, key: bytes) -> str | None:
        """The table that a key belongs to: of `user:{id}` and `user:{id}:turns`, the one that says more about it."""
        fitting = [(template.weight, table) for template, table in self._templates if template.regex.fullmatch(key)]
        return max(fitting)[1] if fitting else None

    # Warm-up ----------------------------------------------------------------------------------------------------------

    async def warm(
        self, rows: AsyncIterator[tuple[Relation, list[Row]]], position: Position, snapshot_time_us: int
    ) -> None:
        """Fill the cache from a snapshot that shows the database at `position`. Call `open()` first.

        1. A checkpoint without `lsn` says: being filled. A crash from here on means that the cache is warmed again.
        2. Every key of the projections goes.
        3. The rows come, in the order that `warm_queries` asks for.
        4. The checkpoint gets its `lsn`.
        """
        await self._settle()
        self._projector.forget()
        filling = Checkpoint(b"", str(self._epoch).encode(), self._digest + uuid.uuid4().hex.encode())
        await self._call(Plan(), filling)  # 1
        crash_point("warm_up_begun")
        await self._unlink_all(None)  # 2
        await self._load(rows, snapshot_time_us // 1000)  # 3
        await self._call(Plan(), filling._replace(lsn=format_lsn(position.lsn).encode()))  # 4

    async def _load(self, rows: AsyncIterator[tuple[Relation, list[Row]]], snapshot_ms: int) -> None:
        plan = Plan()
        async for relation, chunk in rows:
            bound = self._projector.bound_to(relation)
            for row in chunk:
                if plan.rows >= self._batch_rows or plan.nbytes >= self._batch_bytes:
                    await self._call(plan, self._next_step())
                    crash_point("warm_up_filling")
                    plan = Plan()
                change = RowChange(READ, 0, relation, row, None)
                for projection in bound:
                    projection.read(change, snapshot_ms, plan)
                plan.rows += 1
                plan.nbytes += len(change.after or b"")
        await self._call(plan, self._next_step())
        crash_point("warm_up_filling")


class _Call(NamedTuple):
    """A script call that is ready to go: its arguments from the number of keys on, all of it packed."""

    arguments: list[bytes]
    packed: bytes
    target: Checkpoint


def _digest(projections: Sequence[Projection]) -> bytes:
    """Names a set of projections: with other ones, what is in the cache has another shape and must be warmed again."""
    text = "".join(projection.model_dump_json() for projection in projections)
    return hashlib.sha256(text.encode()).hexdigest()[:8].encode() + b"-"
