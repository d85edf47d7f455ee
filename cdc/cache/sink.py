"""The cache as a sink: batches of changes in, one script call after another out.

The checkpoint is in Redis itself, in the hash `cdc:meta`, and moves in the same script call as the data. So the two
cannot part: not by a crash of ours, not by one of Redis, not by a failover that loses the last second.

Every call is a compare-and-set: it names the checkpoint that it expects and does nothing if another is there. So a
second writer, a zombie's late call or an emptied cache cannot make a key go back; the sink learns of it as `Moved`,
and whoever drives it calls `open()` again and starts from what is there. A call whose answer was lost is settled by
looking: the checkpoint is either where it was or where the call would have moved it.

`cdc:meta` holds `lsn` (complete up to here; absent while a warm-up runs), `epoch`, `generation` (which filling of the
cache this is, and of which projections), `updated_at`, and `part` (`commit_lsn:seq`, the first change that is not
applied yet) while a large transaction is half applied. Many calls that stay at one position, as of a warm-up or a
TRUNCATE, count themselves behind it (`commit_lsn:seq:step-writer.call`).
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
from cdc.cache.connection import Connection, NoScript, pack
from cdc.cache.plan import Plan
from cdc.cache.projection import META_KEY, Projector, Template, WarmQuery, find_conflicts, warm_queries
from cdc.change import READ, Batch, Change, Relation, RowChange, Transaction, Truncate, format_time
from cdc.config import CacheSettings, Projection
from cdc.crash import crash_point
from cdc.errors import Invalid, Moved, Unavailable
from cdc.lsn import format_lsn, parse_lsn
from cdc.row import Row
from cdc.sink import Epoch, Position

log = structlog.get_logger()

_SCRIPT: Final = resources.files(__package__).joinpath("script.lua").read_bytes()
_SHA: Final = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest().encode()
_FIELDS: Final = (b"lsn", b"epoch", b"generation", b"part")
_FIRST_VALUE: Final = 11  # ARGV before it: two checkpoints of four fields, updated_at, the plan

_OLDEST_SERVER: Final = (6, 2)
_SCAN_COUNT: Final = b"2000"
_UNLINK_AT_ONCE: Final = 1000


class Checkpoint(NamedTuple):
    """`cdc:meta` as it stands in Redis; a field that is absent is empty."""

    lsn: bytes = b""
    epoch: bytes = b""
    generation: bytes = b""
    part: bytes = b""

    def position(self, epoch: Epoch) -> Position:
        lsn = parse_lsn(self.lsn.decode())
        if not self.part:
            return Position(epoch, lsn)
        commit_lsn, seq = self.part.decode().split(":")[:2]
        return Position(epoch, lsn, parse_lsn(commit_lsn), int(seq))

    def stepped(self, signature: str) -> "Checkpoint":
        """The same position, and yet another checkpoint: no two states of the data may share one.

        Else a failover of Redis between two calls that lost what the first one did would not be seen by the second; nor
        would that another call has taken as many steps, through other keys: so each has a signature of its own.
        """
        commit_lsn, seq, step = (*self.part.decode().split(":"), "0")[:3] if self.part else ("0/0", "0", "0")
        number = int(step.partition("-")[0]) + 1
        return self._replace(part=f"{commit_lsn}:{seq}:{number}-{signature}".encode())

    def describe(self) -> str:
        text = " ".join(f"{name.decode()}={value.decode(errors='replace')}" for name, value in
                        zip(_FIELDS, self, strict=True) if value)  # fmt: skip
        return text or "no checkpoint"


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
        self._durable = metrics.durable_lsn.labels("cache")
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
        if not self._usable(self._checkpoint):
            return None
        self._durable.set(self._position.lsn)
        return self._position

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
        facts = _parse_info(await self._connection.call(b"INFO"))
        version = tuple(int(part) for part in facts.get("redis_version", "0").split(".")[:2])
        if version < _OLDEST_SERVER:
            raise Invalid(f"Redis {facts.get('redis_version')} is too old", hint="use Redis 6.2 or later, or Valkey")
        if facts.get("cluster_enabled") == "1":
            raise Invalid(
                "cache.url leads to a cluster",
                hint="use one server (or one primary with replicas): the checkpoint and the keys change together",
            )
        if facts.get("role") == "slave":
            raise Unavailable("cache.url leads to a replica", hint="point cache.url to the primary")
        if facts.get("loading") == "1":
            raise Unavailable("Redis is loading its data")
        policy = facts.get("maxmemory_policy", "")
        if policy.startswith("allkeys"):
            log.warning(
                "cache_eviction_hits_checkpoint", policy=policy, hint="CONFIG SET maxmemory-policy volatile-lru"
            )

    async def _look(self) -> Checkpoint:
        found = await self._connection.call(b"HMGET", META_KEY, *_FIELDS)
        return Checkpoint(*(value or b"" for value in found))

    # Write ------------------------------------------------------------------------------------------------------------

    async def write(self, batch: Batch) -> int:
        """Apply what the checkpoint does not cover; return the `end_lsn` up to which the cache is complete.

        Raises Unavailable (call again with the same batch, or open again), Moved (open again) or Invalid.
        """
        await self._settle()
        self._require_checkpoint()
        gathering = _Gathering(self._position)
        try:
            applied = await self._write(batch, gathering)
            await self._apply(gathering)
        finally:
            await self._abandon()
        if applied:
            self._observe(applied[0].commit_time_us, applied[-1].commit_time_us)
        return gathering.lsn

    async def _write(self, batch: Batch, gathering: "_Gathering") -> list[Transaction]:
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
        gathering = _Gathering(self._position)
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

    def _gather(self, transaction: Transaction, gathering: "_Gathering") -> bool:
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

    async def _take(self, transaction: Transaction, gathering: "_Gathering") -> None:
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

    async def _apply_part(self, gathering: "_Gathering", transaction: Transaction, upto: Change) -> None:
        """Apply what is gathered, in the middle of a transaction: everything before the change `upto`."""
        gathering.part_commit_lsn, gathering.part_seq = transaction.commit_lsn, upto.seq
        await self._launch(gathering)
        crash_point("cache_part_sent")

    async def _apply(self, gathering: "_Gathering") -> None:
        """Apply what is gathered."""
        await self._land()
        target = self._target(gathering, self._checkpoint)
        if target != self._checkpoint:
            await self._call(gathering.plan, target)
        gathering.plan = Plan()

    async def _launch(self, gathering: "_Gathering") -> None:
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
    def _target(gathering: "_Gathering", expected: Checkpoint) -> Checkpoint:
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
        if call.target.lsn:
            self._durable.set(self._position.lsn)

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


class _Gathering:
    """A plan, and how far the cache is once it is applied."""

    __slots__ = ("lsn", "part_commit_lsn", "part_seq", "plan")

    def __init__(self, position: Position) -> None:
        self.plan = Plan()
        self.lsn = position.lsn
        self.part_commit_lsn = position.part_commit_lsn
        self.part_seq = position.part_seq

    @property
    def part(self) -> bytes:
        return f"{format_lsn(self.part_commit_lsn)}:{self.part_seq}".encode() if self.part_commit_lsn else b""

    def covers(self, transaction: Transaction) -> bool:
        if transaction.last and transaction.end_lsn <= self.lsn:
            return True
        return transaction.commit_lsn < max(self.lsn, self.part_commit_lsn)

    def begin(self, transaction: Transaction) -> int:
        """The first change of this piece that is not applied yet. Raises Moved if some before it are missing."""
        half_applied = self.part_commit_lsn not in (0, transaction.commit_lsn)
        awaited_seq = self.part_seq if self.part_commit_lsn else 0
        if half_applied or transaction.first_seq > awaited_seq:
            raise Moved(
                "the stream passed over changes that the cache needs",
                detail=f"awaited {self.part.decode() or format_lsn(self.lsn)}, "
                f"got {format_lsn(transaction.commit_lsn)}:{transaction.first_seq}",
            )
        return awaited_seq

    def finish(self, transaction: Transaction) -> None:
        if transaction.last:
            self.lsn, self.part_commit_lsn, self.part_seq = transaction.end_lsn, 0, 0
        elif transaction.changes:
            self.part_commit_lsn = transaction.commit_lsn
            self.part_seq = max(self.part_seq, transaction.changes[-1].seq + 1)


def _parse_info(answer: bytes) -> dict[str, str]:
    """INFO's lines `name:value`; headings and empty lines have no colon."""
    return dict(line.split(":", 1) for line in answer.decode(errors="replace").splitlines() if ":" in line)


def _digest(projections: Sequence[Projection]) -> bytes:
    """Names a set of projections: with other ones, what is in the cache has another shape and must be warmed again."""
    text = "".join(projection.model_dump_json() for projection in projections)
    return hashlib.sha256(text.encode()).hexdigest()[:8].encode() + b"-"
