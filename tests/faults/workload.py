"""A chat application under load: several writers that do everything an application does to `turns` and `outbox`.

Inserts with an event in the same transaction, small updates, updates that leave a long text alone, turns that move to
another session or get another turn_id, deletes, savepoints rolled back, transactions rolled back, empty ones, some of
several thousand rows, a TRUNCATE of the outbox now and then; when asked for, also some of fifty thousand rows of both
tables, which a later one deletes again, and a TRUNCATE of the turns. `redaction_version` counts the versions of each
row, so that a reader can tell whether a cache went back. Bounded in rate; it survives a restart of Postgres.
"""

import json
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import psycopg

# How a session's turns are bounded: well below the 200 that the cache keeps, so that it must hold all of them.
_TURNS_PER_SESSION = 40
_KNOWN_TURNS = 400
_LARGE_TEXT_CHARACTERS = (9_000, 60_000)
_RECONNECT_S = 0.1

Connection = psycopg.Connection[Any]


class Workload:
    """Start with `with` or `start()`. `rate` is transactions a second of all writers together."""

    def __init__(
        self,
        dsn: str,
        *,
        seed: int = 1,
        writers: int = 3,
        rate: float = 60,
        large_every_s: float = 15.0,
        large_rows: int = 3000,
        truncate_every_s: float = 20.0,
        big_texts: bool = True,
        bulk_every_s: float | None = None,
        bulk_rows: int = 50_000,
        truncate_turns_every_s: float | None = None,
    ) -> None:
        self.committed: Counter[str] = Counter()
        self.failures: list[BaseException] = []
        self.interruptions = 0
        self._dsn = dsn
        self._pause_s = writers / rate
        self._large_every_s = large_every_s
        self._large_rows = large_rows
        self._truncate_every_s = truncate_every_s
        self._big_texts = big_texts
        self._bulk_every_s = bulk_every_s
        self._bulk_rows = bulk_rows
        self._truncate_turns_every_s = truncate_turns_every_s
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._write, args=(number, random.Random(f"{seed}/{number}")), name=f"writer {number}"
            )
            for number in range(writers)
        ]

    def start(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> Counter[str]:
        """End after the transactions of the moment; what was committed, by kind."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        if self.failures:
            raise self.failures[0]
        return self.committed

    def run_for(self, seconds: float) -> Counter[str]:
        with self:
            time.sleep(seconds)
        return self.committed

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _write(self, number: int, dice: random.Random) -> None:
        writer = _Writer(number, dice, self._big_texts)
        due = {
            writer.insert_many(self._large_rows): self._large_every_s * (1 + number),
            writer.truncate_outbox: self._truncate_every_s * (1 + number),
        }
        if number == 0 and self._bulk_every_s is not None:
            due[writer.bulk(self._bulk_rows)] = self._bulk_every_s
        if number == 0 and self._truncate_turns_every_s is not None:
            due[writer.truncate_turns] = self._truncate_turns_every_s
        clock = _Due(due)
        try:
            while not self._stopping.is_set():
                self._connected(writer, clock)
        except BaseException as error:  # shown by stop(), in the test's own thread
            self.failures.append(error)

    def _connected(self, writer: "_Writer", due: "_Due") -> None:
        try:
            with psycopg.connect(self._dsn, autocommit=True, connect_timeout=5) as connection:
                while not self._stopping.wait(writer.dice.expovariate(1 / self._pause_s)):
                    self._commit(connection, due.next() or writer.choose())
        except (psycopg.OperationalError, psycopg.Rollback):  # a rollback gets out if the connection is gone by then
            self.interruptions += 1
            self._stopping.wait(_RECONNECT_S)

    def _commit(self, connection: Connection, act: Callable[[Connection], str]) -> None:
        name = "roll_back"
        try:
            with connection.transaction():
                name = act(connection)
        except (psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation):
            return
        self.committed[name] += 1


def raise_rollback() -> None:
    """End the innermost `connection.transaction()` without committing; nothing is raised out of it."""
    raise psycopg.Rollback


class _Due:
    """Acts that are done now and then rather than by chance."""

    def __init__(self, every_s: dict[Callable[[Connection], str], float]) -> None:
        self._every_s = every_s
        self._next_s = {act: time.monotonic() + seconds / 3 for act, seconds in every_s.items()}

    def next(self) -> Callable[[Connection], str] | None:
        now_s = time.monotonic()
        for act, due_s in self._next_s.items():
            if now_s >= due_s:
                self._next_s[act] = now_s + self._every_s[act]
                return act
        return None


class _Writer:
    """What one writer may do; each act is one transaction's content and returns its name."""

    def __init__(self, number: int, dice: random.Random, big_texts: bool) -> None:
        self.dice = dice
        self._number = number
        self._big_texts = big_texts
        self._turns: list[int] = []
        self._bulk = ""
        self._session = 0
        self._in_session = 0
        self._acts: dict[Callable[[Connection], str], int] = {
            self.insert: 40,
            self.insert_several: 6,
            self.update: 20,
            self.leave_long_text_alone: 8,
            self.change_text: 3,
            self.move_to_another_session: 5,
            self.rename: 3,
            self.delete: 7,
            self.roll_back_to_savepoint: 5,
            self.roll_back: 4,
            self.do_nothing: 2,
            self.emit_message: 2,
        }

    def choose(self) -> Callable[[Connection], str]:
        return self.dice.choices(list(self._acts), weights=list(self._acts.values()))[0]

    def insert(self, connection: Connection) -> str:
        self._insert_turn(connection)
        self._insert_event(connection, "turn.created")
        return "insert"

    def insert_several(self, connection: Connection) -> str:
        for _ in range(self.dice.randint(2, 12)):
            self._insert_turn(connection)
        self._insert_event(connection, "turns.created")
        return "insert_several"

    def insert_many(self, rows: int) -> Callable[[Connection], str]:
        def act(connection: Connection) -> str:
            self._insert_many_turns(connection, rows)
            return "insert_many"

        return act

    def bulk(self, rows: int) -> Callable[[Connection], str]:
        """Rows of both tables in one transaction, most of them events; the next time they are deleted."""

        def act(connection: Connection) -> str:
            if self._bulk:
                connection.execute(
                    "DELETE FROM turns WHERE channel = 'bulk' AND session_hash LIKE %s", [f"{self._bulk}%"]
                )
                connection.execute("DELETE FROM outbox WHERE aggregate_id = %s", [self._bulk])
                self._bulk = ""
                return "bulk_delete"
            self._bulk = self._insert_many_turns(connection, rows // 10)
            connection.execute(
                "INSERT INTO outbox (event_type, idempotency_key, aggregate_id, payload)"
                " SELECT 'bulk', gen_random_uuid()::text, %s, jsonb_build_object('n', n)"
                "   FROM generate_series(1, %s) AS n",
                [self._bulk, rows - rows // 10],
            )
            return "bulk_insert"

        return act

    def truncate_turns(self, connection: Connection) -> str:
        connection.execute("SET LOCAL lock_timeout = '2s'")
        connection.execute("TRUNCATE turns")
        return "truncate_turns"

    def update(self, connection: Connection) -> str:
        metadata = json.dumps(
            {"score": self.dice.random(), "note": 'O\'Neil "quoted" \\ \n tab\t é 😀', "list": [1, None]}
        )
        state = self.dice.choice([None, "null", '{"open": true}', "[]", '"text"', "12345678901234567890.10"])
        self._change(
            connection,
            "metadata = %s::jsonb, state = %s::jsonb, confidence = %s",
            metadata,
            state,
            self.dice.choice([None, self.dice.random(), float("nan"), float("inf"), 1e-300, 0.1]),
        )
        return "update"

    def leave_long_text_alone(self, connection: Connection) -> str:
        connection.execute(
            "UPDATE turns SET redaction_version = redaction_version + 1, confidence = %s"
            " WHERE id = (SELECT id FROM turns WHERE length(content) > 8000 ORDER BY random() LIMIT 1)",
            [self.dice.random()],
        )
        return "leave_long_text_alone"

    def change_text(self, connection: Connection) -> str:
        self._change(connection, "content = %s", self._text())
        return "change_text"

    def move_to_another_session(self, connection: Connection) -> str:
        self._change(connection, "session_hash = %s", self._session_name(self.dice.randint(0, self._session)))
        return "move_to_another_session"

    def rename(self, connection: Connection) -> str:
        self._change(connection, "turn_id = %s", str(uuid.UUID(int=self.dice.getrandbits(128), version=4)))
        return "rename"

    def delete(self, connection: Connection) -> str:
        if self._turns:
            turn = self._turns.pop(self.dice.randrange(len(self._turns)))
            connection.execute("DELETE FROM turns WHERE id = %s", [turn])
            self._insert_event(connection, "turn.deleted")
        return "delete"

    def roll_back_to_savepoint(self, connection: Connection) -> str:
        self._insert_turn(connection)
        with connection.transaction():
            self._insert_turn(connection, known=False)
            self._insert_event(connection, "never.happened")
            raise_rollback()
        self._insert_event(connection, "turn.created")
        return "roll_back_to_savepoint"

    def roll_back(self, connection: Connection) -> str:
        self._insert_turn(connection, known=False)
        self._insert_event(connection, "never.happened")
        raise_rollback()
        return "roll_back"

    def do_nothing(self, connection: Connection) -> str:
        connection.execute("SELECT pg_current_xact_id()")
        return "do_nothing"

    def emit_message(self, connection: Connection) -> str:
        connection.execute("SELECT pg_logical_emit_message(true, 'workload', %s)", [f"from writer {self._number}"])
        return "emit_message"

    def truncate_outbox(self, connection: Connection) -> str:
        connection.execute("SET LOCAL lock_timeout = '2s'")
        try:
            with connection.transaction():
                connection.execute("TRUNCATE outbox")
        except psycopg.errors.LockNotAvailable:
            return "truncate_refused"
        self._insert_event(connection, "outbox.emptied")
        return "truncate_outbox"

    def _insert_many_turns(self, connection: Connection, rows: int) -> str:
        """Whole sessions of them; what their names begin with."""
        name = f"bulk-{uuid.UUID(int=self.dice.getrandbits(128))}-"
        connection.execute(
            "INSERT INTO turns (domain, channel, session_hash, role, content, metadata)"
            " SELECT 'support', 'bulk', %s || (n %% %s), 'user', 'row ' || n || repeat('é\"\\', n %% 7),"
            "        jsonb_build_object('n', n, 'half', n / 2.0)"
            "   FROM generate_series(1, %s) AS n",
            [name, max(1, rows // _TURNS_PER_SESSION), rows],
        )
        return name

    def _insert_turn(self, connection: Connection, *, known: bool = True) -> None:
        self._in_session += 1
        if self._in_session > _TURNS_PER_SESSION // 4:
            self._in_session = 1
            self._session += 1
        row = connection.execute(
            "INSERT INTO turns (domain, channel, session_hash, role, content) VALUES ('support', 'web', %s, %s, %s)"
            " RETURNING id",
            [self._session_name(self._session), self.dice.choice(["user", "assistant"]), self._text()],
        ).fetchone()
        if known and row is not None:
            self._turns = [*self._turns[-_KNOWN_TURNS:], row[0]]

    def _insert_event(self, connection: Connection, event_type: str) -> None:
        connection.execute(
            "INSERT INTO outbox (event_type, idempotency_key, aggregate_id, payload) VALUES (%s, %s, %s, %s::jsonb)",
            [event_type, str(uuid.uuid4()), self._session_name(self._session), json.dumps({"by": self._number})],
        )

    def _change(self, connection: Connection, assignments: str, *values: object) -> None:
        if self._turns:
            turn = self.dice.choice(self._turns)
            statement = f"UPDATE turns SET redaction_version = redaction_version + 1, {assignments} WHERE id = %s"
            connection.execute(statement.encode(), [*values, turn])

    def _session_name(self, session: int) -> str:
        return f"writer-{self._number}-{session}"

    def _text(self) -> str:
        if self._big_texts and self.dice.random() < 0.06:
            characters = self.dice.randint(*_LARGE_TEXT_CHARACTERS)
            return self.dice.randbytes(characters // 2).hex()  # does not compress, so it is stored out of line
        return "".join(self.dice.choice("abc dé'\"\\\n\t{}😀") for _ in range(self.dice.randint(0, 60)))
