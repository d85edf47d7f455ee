"""Small transactions at a steady rate, each with the moment at which its COMMIT returned.

Run as a program: `python -m tests.bench.traffic DSN RATE SECONDS`. Prints one line for each transaction when all is
over: the turn's id and the wall clock's seconds. A transaction is one statement, a turn with its event, so that this
program takes little of the machine that it shares.
"""

import asyncio
import sys
import time
import uuid

import psycopg

_CONNECTIONS = 8

_TRANSACTION = """
WITH turn AS (
  INSERT INTO public.turns (turn_id, domain, channel, session_hash, role, content)
  VALUES (%(turn_id)s, 'support', 'web', %(session)s, 'user', %(content)s)
)
INSERT INTO public.outbox (event_type, idempotency_key, payload) VALUES ('turn', %(turn_id)s, '{"kind": "turn"}')
"""


async def _write(dsn: str, number: int, interval_s: float, end: float, commits: list[tuple[str, float]]) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        due = time.monotonic() + interval_s * number / _CONNECTIONS
        while due < end:
            await asyncio.sleep(due - time.monotonic())
            turn_id = str(uuid.uuid4())
            values = {"turn_id": turn_id, "session": f"session-{number}-{len(commits) // 40}", "content": "words " * 20}
            await connection.execute(_TRANSACTION, values, prepare=True)
            commits.append((turn_id, time.time()))
            due += interval_s


async def _main(dsn: str, rate: float, seconds: float) -> None:
    commits: list[tuple[str, float]] = []
    end = time.monotonic() + seconds
    async with asyncio.TaskGroup() as tasks:
        for number in range(_CONNECTIONS):
            tasks.create_task(_write(dsn, number, _CONNECTIONS / rate, end, commits))
    for turn_id, at in commits:
        print(turn_id, repr(at))


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
