"""Writes what a chat application writes: plain SQL from several writers that know nothing of us.

Each writer holds some conversations and works on them in transactions of different kinds: mostly an exchange of two
turns, now and then a text so large that Postgres moves it out of the row (TOAST), an update that leaves such a text
alone, a redaction, a delete, a change of key, a rollback, a savepoint that is rolled back. Every transaction that
commits writes an event to the outbox, so the outbox knows them all. The application gives only what it must: the rest
of a row has defaults or is null.

`Workload.run` works until it is told to stop, and always ends its transactions: what it counted is in the tables.
"""

import asyncio
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final

from cdc.config import PostgresSettings
from cdc.postgres.session import Connection, connect

WRITERS = 4
# A conversation ends well below the history's default limit of 200 turns, as most do.
_CONVERSATIONS, _LAST_TURN = 12, 80
# Random text, because repeated words would be compressed to nothing and stay in the row.
_LARGE_BYTES = range(9_000, 60_000)
_PHRASES = (
    "the invoice was sent on Monday", "my order still shows as open", "could you please look into it again",
    "thank you, that helped", "I have looked into your account", "the refund takes three days", "anything else",
)  # fmt: skip

# Weights: what a hundred transactions are, about.
_KINDS: Final[dict[str, int]] = {
    "exchange": 66,
    "large": 5,
    "annotate": 12,
    "redact": 3,
    "delete": 4,
    "rekey": 2,
    "rollback": 4,
    "savepoint": 4,
}

_STATE = '{"step": "delivered", "open": null}'
_INSERT_TURN = (
    "INSERT INTO public.turns (domain, channel, session_hash, role, content) VALUES (%s, %s, %s, %s, %s) "
    "RETURNING id, turn_id::text"
)
_INSERT_EVENT = "INSERT INTO public.outbox (event_type, idempotency_key, payload) VALUES (%s, %s, %s)"
_ANNOTATE = "UPDATE public.turns SET state = %s, confidence = %s, metadata = %s WHERE id = %s"
_REDACT = "UPDATE public.turns SET content = '[redacted]', redaction_version = 1 WHERE id = %s"
_DELETE = "DELETE FROM public.turns WHERE id = %s"
_REKEY = "UPDATE public.turns SET turn_id = %s WHERE id = %s"


@dataclass(frozen=True, slots=True)
class Commit:
    """A transaction that is committed. `turn_id` names a row that it wrote, None if it wrote none that stays.

    `committed_at` is the wall clock's time in seconds at which COMMIT returned.
    """

    kind: str
    turn_id: str | None
    committed_at: float


@dataclass(slots=True)
class Tally:
    """Counts of transactions: `committed` by kind, and `rolled_back`, which `committed` leaves out."""

    committed: Counter[str] = field(default_factory=Counter)
    rolled_back: int = 0

    @property
    def transactions(self) -> int:
        return self.committed.total()


@dataclass(slots=True)
class _Conversation:
    session_hash: str
    turns: list[int] = field(default_factory=list)


class Workload:
    """Runs `rate` transactions a second by several writers, and reports each commit to `on_commit`."""

    def __init__(
        self, settings: PostgresSettings, rate: float, on_commit: Callable[[Commit], None] = lambda commit: None
    ) -> None:
        self.tally = Tally()
        self._settings = settings
        self._interval_s = WRITERS / rate
        self._on_commit = on_commit

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; returns when the last transaction has ended."""
        async with AsyncExitStack() as connections:
            writers = []
            for number in range(WRITERS):
                connection = await connect(self._settings, application_name="demo-chat")
                connections.push_async_callback(connection.close)
                writers.append(_Writer(connection, number, self.tally))
            async with asyncio.TaskGroup() as tasks:
                for writer in writers:
                    tasks.create_task(self._pace(writer, stop), name=f"writer-{writer.number}")

    async def _pace(self, writer: "_Writer", stop: asyncio.Event) -> None:
        """Start one transaction each interval. A writer that falls behind makes up for a second at most."""
        due = time.monotonic() + self._interval_s * writer.number / WRITERS
        while not stop.is_set():
            wait_s = due - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            commit = await writer.transact()
            if commit is not None:
                self._on_commit(commit)
            due = max(due + self._interval_s, time.monotonic() - 1)


class _Writer:
    """One connection and its conversations; no other writer touches their rows, so no writer waits for a lock."""

    def __init__(self, connection: Connection, number: int, tally: Tally) -> None:
        self.number = number
        self._connection = connection
        self._tally = tally
        self._random = random.Random(number)  # noqa: S311 - a workload, not a secret
        self._conversations = [_new_conversation() for _ in range(_CONVERSATIONS)]

    async def transact(self) -> Commit | None:
        """Do one transaction of a random kind; returns None if it was rolled back."""
        kind = self._random.choices(list(_KINDS), list(_KINDS.values()))[0]
        conversation = self._choose_conversation()
        if kind == "rollback":
            await self._roll_back(conversation)
            self._tally.rolled_back += 1
            return None
        async with self._connection.transaction():
            turn_id = await self._work(kind, conversation)
            await self._emit(kind, conversation)
        self._tally.committed[kind] += 1
        return Commit(kind, turn_id, time.time())

    def _choose_conversation(self) -> _Conversation:
        index = self._random.randrange(len(self._conversations))
        if len(self._conversations[index].turns) >= _LAST_TURN:
            self._conversations[index] = _new_conversation()
        return self._conversations[index]

    async def _work(self, kind: str, conversation: _Conversation) -> str | None:
        turns = conversation.turns
        match kind:
            case "annotate" if turns:
                metadata = json.dumps({"tokens": self._random.randrange(500), "model": "demo", "flags": [1, None]})
                confidence = round(self._random.random(), 3)
                await self._execute(_ANNOTATE, _STATE, confidence, metadata, self._random.choice(turns))
            case "redact" if turns:
                await self._execute(_REDACT, self._random.choice(turns))
            case "delete" if turns:
                await self._execute(_DELETE, turns.pop(self._random.randrange(len(turns))))
            case "rekey" if turns:
                await self._execute(_REKEY, str(uuid.uuid4()), self._random.choice(turns))
            case "large":
                return await self._insert(conversation, "tool", self._large_text())
            case "savepoint":
                return await self._with_savepoint(conversation)
            case _:
                await self._insert(conversation, "user", self._words())
                return await self._insert(conversation, "assistant", self._words())
        return None

    async def _with_savepoint(self, conversation: _Conversation) -> str:
        """Roll back to a savepoint: what lies in between must not arrive anywhere."""
        before = len(conversation.turns)
        async with self._connection.transaction(force_rollback=True):
            await self._insert(conversation, "assistant", "a draft that is taken back")
        del conversation.turns[before:]
        return await self._insert(conversation, "assistant", self._words())

    async def _roll_back(self, conversation: _Conversation) -> None:
        before = len(conversation.turns)
        async with self._connection.transaction(force_rollback=True):
            await self._insert(conversation, "user", self._words())
            await self._emit("rollback", conversation)
        del conversation.turns[before:]

    async def _insert(self, conversation: _Conversation, role: str, content: str) -> str:
        values = ("support", "web", conversation.session_hash, role, content)
        row = await self._connection.one(_INSERT_TURN, values)
        conversation.turns.append(row[0])
        return str(row[1])

    async def _emit(self, kind: str, conversation: _Conversation) -> None:
        payload = json.dumps({"kind": kind, "session_hash": conversation.session_hash})
        await self._execute(_INSERT_EVENT, f"chat.{kind}", str(uuid.uuid4()), payload)

    async def _execute(self, statement: str, *values: object) -> None:
        await self._connection.execute(statement, values)

    def _words(self) -> str:
        return "; ".join(self._random.choices(_PHRASES, k=self._random.randint(1, 8)))

    def _large_text(self) -> str:
        return self._random.randbytes(self._random.choice(_LARGE_BYTES) // 2).hex()


def _new_conversation() -> _Conversation:
    return _Conversation(session_hash=uuid.uuid4().hex)
