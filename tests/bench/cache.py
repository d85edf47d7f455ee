"""What a row costs in the cache: our CPU, step by step, and the server's, for batches of 500 rows of `turns`.

Run as a program: `python -m tests.bench.cache [--program /usr/bin/redis-server]`. CPU seconds, not wall time, the
best of many batches, so that a busy machine does not lie too much. `after` is encoded beforehand: the archive needs it
too. Rows are transactions of their own, of three kinds: of 50 sessions, of 500, each of a new session.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import SecretStr

from cdc.cache.connection import pack
from cdc.cache.plan import Plan
from cdc.cache.projection import bind
from cdc.cache.sink import CacheSink
from cdc.change import CREATE, Batch, Column, Relation, RowChange, Transaction
from cdc.config import TURNS_PROJECTIONS, CacheSettings
from cdc.embedded import ValkeyServer
from cdc.position import Epoch, Position
from cdc.row import Row
from tests.support.cache_model import snapshot

ROWS, BATCHES = 500, 60
_COLUMNS = {
    "id": 20, "turn_id": 2950, "domain": 25, "channel": 25, "session_hash": 25, "role": 25, "content": 25,
    "confidence": 701, "state": 25, "metadata": 3802, "redaction_version": 23, "created_at": 1184,
}  # fmt: skip
TURNS = Relation(1, "public", "turns", "f", [Column(name, "", oid, -1, name == "id") for name, oid in _COLUMNS.items()])


def _row(id: int, session: int) -> Row:
    return [
        b"%d" % id, b"a0eebc99-9c0b-4ef8-bb6d-%012d" % id, b"support", b"web", b"%032x" % session, b"user",
        b"lorem ipsum dolor sit amet " * 6, b"0.93", b"open", b'{"lang": "de", "model": "m-1"}', b"1",
        b"2026-11-22 18:07:13.802498+00",
    ]  # fmt: skip


def _batches(sessions: int, now_us: int) -> list[Batch]:
    chance, made = random.Random(1), []
    for first in range(0, ROWS * BATCHES, ROWS):
        transactions = []
        for id in range(first + 1, first + ROWS + 1):
            change = RowChange(CREATE, 0, TURNS, _row(id, chance.randrange(sessions)), None)
            assert change.after
            transactions.append(Transaction(id, id * 16, now_us + id, [change], end_lsn=id * 16 + 8, nbytes=900))
        made.append(Batch(transactions))
    return made


def _best_us(work: Callable[[], object]) -> float:
    """CPU microseconds a row, of the best run."""

    def once() -> float:
        started = time.thread_time()
        work()
        return time.thread_time() - started

    return min(once() for _ in range(50)) / ROWS * 1e6


def _steps(batch: Batch) -> dict[str, float]:
    bound = [bind(projection, TURNS) for projection in TURNS_PROJECTIONS]

    def project() -> Plan:
        plan = Plan()
        for transaction in batch:
            for each in bound:
                change = transaction.changes[0]
                assert isinstance(change, RowChange)
                each.apply(change, transaction.commit_time_us // 1000, plan)
        return plan

    plan = project()
    keys, numbers, values = plan.flatten(11)
    return {
        "project": _best_us(project),
        "flatten": _best_us(lambda: plan.flatten(11)),
        "pack": _best_us(lambda: pack([b"EVALSHA", *keys, numbers, *values])),
    }


async def _measure(url: str, sessions: int) -> None:
    now_us = time.time_ns() // 1000
    batches = _batches(sessions, now_us)
    sink = CacheSink(CacheSettings(url=SecretStr(url)), Epoch("1", 1))
    await sink.open()
    await sink.warm(snapshot(), Position(Epoch("1", 1), 8), now_us)
    server_before, spent = await _server_cpu_s(sink), []
    for batch in batches:
        started = time.thread_time()
        await sink.write(batch)
        spent.append((time.thread_time() - started) / ROWS * 1e6)
    server_us = (await _server_cpu_s(sink) - server_before) / (ROWS * BATCHES) * 1e6
    await sink.close()
    steps = " ".join(f"{name} {cost:.2f}" for name, cost in _steps(batches[-1]).items())
    print(f"{sessions:>7} sessions: ours {min(spent):.2f} us/row ({steps}), the server's {server_us:.2f} us/row")


async def _server_cpu_s(sink: CacheSink) -> float:
    facts = (await sink._connection.call(b"INFO", b"cpu")).decode().splitlines()
    return sum(float(line.split(":")[1]) for line in facts if line.startswith(("used_cpu_sys:", "used_cpu_user:")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", type=Path, help="the server to measure; else the embedded Valkey")
    program = parser.parse_args().program
    for sessions in (50, 500, 10_000_000):
        with (
            tempfile.TemporaryDirectory() as directory,
            ValkeyServer(Path(directory) / "data", program=program) as server,
        ):
            asyncio.run(_measure(server.url, sessions))


if __name__ == "__main__":
    main()
