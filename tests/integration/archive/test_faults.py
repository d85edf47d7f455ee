"""Writers that crash and sleep, a bucket that fails in every way: each transaction is told once and in order.

Each seed is a story of many lives on one bucket. A life opens the archive, fences it, gets the WAL again from somewhere
at or before what is covered, and writes until it is done or killed, maybe with a PUT in flight that lands much later.
Old lives are sometimes left running as zombies.
"""

import asyncio
import contextlib
import random

import pytest

from cdc.archive.bucket.bucket import AlreadyExists
from cdc.archive.bucket.memory import MemoryBucket
from cdc.archive.proof.audit import verify
from cdc.archive.writer.sink import ArchiveSink
from cdc.change import Batch, Transaction
from cdc.errors import Fenced, Moved, Unavailable
from tests.support.transactions import SOURCE, archived, facts, opened, pieces, settings, transaction

TRANSACTIONS = 12


class Storm(MemoryBucket):
    """Refuses, applies without answering, and applies long after it was thought dead."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance
        self.late: list[asyncio.Task[None]] = []
        self.calm = False

    async def create(self, key: str, body: bytes) -> None:
        await self._weather(key, body)
        await super().create(key, body)
        await self._weather(key, body)

    async def _weather(self, key: str, body: bytes) -> None:
        fate = 1.0 if self.calm else self.chance.random()
        try:
            await asyncio.sleep(0 if fate > 0.2 else 0.002)
        except asyncio.CancelledError:
            if fate < 0.1:
                self.late.append(asyncio.create_task(self._land(key, body)))
            raise
        if fate < 0.05:
            self.late.append(asyncio.create_task(self._land(key, body)))
        if fate < 0.15:
            raise Unavailable("a storm")

    async def _land(self, key: str, body: bytes) -> None:
        await asyncio.sleep(self.chance.random() * 0.01)
        with contextlib.suppress(AlreadyExists):
            await super().create(key, body)


def history(chance: random.Random) -> list[list[Transaction]]:
    made = []
    for number in range(1, TRANSACTIONS + 1):
        rows = chance.choice([1, 2, 9])
        made.append(pieces(number, 9, of=2) if rows == 9 else [transaction(number, rows)])
    return made


async def live(bucket: Storm, wal: list[list[Transaction]], chance: random.Random) -> None:
    """One life, from its start to the end of the WAL."""
    sink = ArchiveSink(bucket, settings(), retry_s=0.001, max_retry_s=0.002)
    await sink.open()
    await sink.fence(SOURCE)
    confirmed = sink.covered_upto // 100
    stream = [piece for parts in wal[max(0, confirmed - chance.randint(0, 3)) :] for piece in parts]
    while stream:
        size = chance.randint(1, 4)
        batch, stream = stream[:size], stream[size:]
        await sink.write(Batch(batch))
        if not stream or stream[0].first_seq == 0:
            await sink.write_coverage(sink.covered_upto + chance.randint(0, 3))


@pytest.mark.parametrize("seed", range(150))
async def test_the_archive_tells_each_transaction_once_and_in_order(seed: int) -> None:
    chance = random.Random(seed)
    bucket, wal = Storm(chance), history(chance)
    lives: list[asyncio.Task[None]] = []
    for _ in range(chance.randint(1, 6)):
        lives.append(asyncio.create_task(live(bucket, wal, chance)))
        await asyncio.sleep(chance.random() * 0.01)
        if chance.random() < 0.6:
            lives[-1].cancel()  # else it goes on, as a zombie of the next
    ends = await asyncio.gather(*lives, return_exceptions=True)
    assert all(end is None or isinstance(end, Fenced | Unavailable | Moved | asyncio.CancelledError) for end in ends), (
        ends
    )
    bucket.calm = True
    last = await opened(bucket)
    for parts in wal:
        for piece in parts:
            await last.write(Batch([piece]))
    await asyncio.gather(*bucket.late)
    expected = [piece for parts in wal for piece in parts]
    assert facts(await archived(bucket)) == facts(expected)
    assert (await verify(bucket)).findings == []
