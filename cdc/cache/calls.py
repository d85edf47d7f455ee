"""Script calls move the data and the checkpoint together, or neither.

A call is a compare-and-set. It names the checkpoint that it expects and the target that it leaves, and does nothing if
another checkpoint is there (`script.lua`). One call is under way at a time. While Redis works on it, the next one is
prepared: it expects the target of the call before it.

    prepare ── send now ────────────────┐         ┌─ answered: the checkpoint is the target
       │                                ├─ send ──┼─ answered with another checkpoint: Moved
       └────── send ahead ── await sent ┘         └─ no answer: `settle` reads which of the two is there
                    └─ abandon: after an error nothing waits for the call any more, `settle` finds its outcome
"""

import asyncio
import hashlib
import time
from importlib import resources
from typing import Final, NamedTuple

import structlog

from cdc.cache.checkpoint import FIELDS, META_KEY, Checkpoint
from cdc.cache.connection import Connection, NoScript, pack
from cdc.cache.plan import Plan
from cdc.change import format_time
from cdc.crash import crash_point
from cdc.errors import Moved

log = structlog.get_logger()

_SCRIPT: Final = resources.files(__package__).joinpath("script.lua").read_bytes()
_SHA: Final = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest().encode()
_FIRST_VALUE: Final = 11  # ARGV before it: two checkpoints of four fields, updated_at, the plan


class _Call(NamedTuple):
    """A script call that is ready to be sent: its arguments from the number of keys on, and the packed command."""

    arguments: list[bytes]
    packed: bytes
    target: Checkpoint


class ScriptCalls:
    """The calls of one writer, over one connection. `checkpoint` is where the last answered call left the cache.

    `writer` is a name that no other writer has.
    """

    def __init__(self, connection: Connection, writer: str) -> None:
        self._connection = connection
        self._writer = writer
        self._steps = 0
        self.checkpoint = Checkpoint()
        self._unanswered: Checkpoint | None = None
        """The target of a call that was sent and not answered."""
        self._sent: asyncio.Task[None] | None = None
        self._sent_target = Checkpoint()
        self._unreachable: set[str] = set()

    async def begin(self) -> None:
        """Adopt the checkpoint that is in Redis, and forget any call without an answer.

        Raises Unavailable if no answer came, Invalid if Redis refuses the call.
        """
        self.checkpoint, self._unanswered = await self._look(), None

    async def _look(self) -> Checkpoint:
        found = await self._connection.call(b"HMGET", META_KEY, *FIELDS)
        return Checkpoint(*(value or b"" for value in found))

    @property
    def expected(self) -> Checkpoint:
        """The checkpoint that the next call expects: the target of a call that was sent ahead, or the cache's own."""
        return self.checkpoint if self._sent is None else self._sent_target

    def next_step(self) -> Checkpoint:
        """A target at the same position that no earlier call had, ours or another writer's.

        So a late call is never mistaken for this one.
        """
        self._steps += 1
        return self.checkpoint.stepped(f"{self._writer}.{self._steps}")

    async def send_now(self, plan: Plan, target: Checkpoint) -> None:
        """Apply a plan, from the checkpoint that we know to `target`, and wait for the answer.

        Raises Moved if another checkpoint is there, Unavailable if no answer came, Invalid if Redis refuses the call.
        """
        await self._send(self._prepare(plan, self.checkpoint, target))

    async def send_ahead(self, plan: Plan, target: Checkpoint) -> None:
        """Apply a plan and return while Redis is at work, once the call before it is answered.

        The call is prepared meanwhile. Nothing is sent if `target` is the expected checkpoint already. Raises what the
        call before raises.
        """
        call = self._prepare(plan, self.expected, target) if target != self.expected else None
        await self.await_sent()
        if call is not None:
            self._sent_target = target
            self._sent = asyncio.create_task(self._send(call), name="cache call")
            await asyncio.sleep(0)  # until it is sent

    async def await_sent(self) -> None:
        """Wait for the call that was sent ahead, if there is one. Raises as `send_now` does."""
        sent, self._sent = self._sent, None
        if sent is not None:
            await sent

    async def abandon(self) -> None:
        """Cancel the call that was sent ahead, after an error or a cancellation. `settle` finds its outcome."""
        sent, self._sent = self._sent, None
        if sent is not None:
            sent.cancel()
            await asyncio.gather(sent, return_exceptions=True)

    async def settle(self) -> None:
        """Find the outcome of a call without an answer.

        Raises Moved if neither of its checkpoints is there, Unavailable if no answer came, Invalid if Redis refuses.
        """
        if self._unanswered is None:
            return
        found, target = await self._look(), self._unanswered
        if found not in (target, self.checkpoint):
            raise self._moved(found)
        self.checkpoint, self._unanswered = found, None

    def _prepare(self, plan: Plan, expected: Checkpoint, target: Checkpoint) -> _Call:
        self._name_unreachable(plan)
        keys, numbers, values = plan.flatten(_FIRST_VALUE)
        updated_at = format_time(time.time_ns() // 1000).encode()
        count = b"%d" % (len(keys) + 1)
        arguments = [count, META_KEY, *keys, *expected, *target, updated_at, numbers, *values]
        return _Call(arguments, pack([b"EVALSHA", _SHA, *arguments]), target)

    async def _send(self, call: _Call) -> None:
        self._unanswered = call.target
        crash_point("script_unsent")
        try:
            answer = await self._connection.send(call.packed)
        except NoScript:
            answer = await self._connection.send(pack([b"EVAL", _SCRIPT, *call.arguments]))
        crash_point("script_answered")
        self._unanswered = None
        found = Checkpoint(*answer) if isinstance(answer, list) else call.target
        if found != call.target:
            raise self._moved(found)
        self.checkpoint = call.target

    def _moved(self, found: Checkpoint) -> Moved:
        return Moved(
            "the cache is not where we left it",
            detail=f"left at {self.checkpoint.describe()}, found {found.describe()}",
        )

    def _name_unreachable(self, plan: Plan) -> None:
        """Warn once for each table with keys that a delete or an update cannot reach."""
        for table in plan.unreachable - self._unreachable:
            log.warning(
                "cache_keys_unreachable", table=table, hint=f"ALTER TABLE {table} REPLICA IDENTITY FULL",
            )  # fmt: skip
        self._unreachable |= plan.unreachable
