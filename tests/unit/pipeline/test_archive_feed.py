"""The feed of the archive, with a gate that does as it is told: what is acknowledged, and what a full queue means."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from cdc.change import Batch
from cdc.config import ArchiveSettings
from cdc.health.vitals import Vitals
from cdc.pipeline.archive_feed import ArchiveFeed
from cdc.pipeline.continuity import Continuity
from cdc.pipeline.progress import Progress
from cdc.position import Position
from tests.support.transactions import settings, transaction

SMALL: ArchiveSettings = settings(queue_bytes=1024 * 1024, linger_s=0, coverage_wal_bytes=1024 * 1024)


class ModelGate:
    """`answers` is cleared while the bucket is away."""

    name = "archive"

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.answers.set()
        self.written: list[int] = []
        self.covered: list[int] = []

    @property
    def struggling(self) -> bool:
        return not self.answers.is_set()

    async def open(self) -> Position | None:
        return None

    async def write(self, batch: Batch) -> int:
        await self.answers.wait()
        self.written += [one.commit_lsn // 100 for one in batch]
        return batch.end_lsn

    async def write_coverage(self, lsn: int) -> int:
        await self.answers.wait()
        self.covered.append(lsn)
        return lsn

    async def close(self) -> None: ...


class Stage:
    def __init__(self, continuity: Continuity) -> None:
        self.gate = ModelGate()
        self.progress = Progress(50)
        self.rechecks = 0
        self.acknowledged: list[tuple[int, bool]] = []
        self.feed = ArchiveFeed(self.gate, self.progress, continuity, SMALL, self.recheck, Vitals())
        self.running = asyncio.create_task(self.feed.run(lambda lsn, idle: self.acknowledged.append((lsn, idle))))

    async def recheck(self) -> None:
        self.rechecks += 1

    def receive(self, *numbers: int, nbytes: int = 500) -> None:
        many = [transaction(number, nbytes=nbytes) for number in numbers]
        self.progress.received(many[-1].end_lsn, many[-1].end_lsn, in_transaction=False)
        self.feed.offer(many)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    made = Stage(Continuity(0))
    yield made
    made.running.cancel()
    await asyncio.gather(made.running, return_exceptions=True)


async def test_what_the_gate_has_is_acknowledged(stage: Stage) -> None:
    stage.receive(1, 2)
    await stage.feed.drain(stage.running)
    assert stage.gate.written == [1, 2]
    assert stage.acknowledged == [(248, False)]
    assert stage.progress.acknowledged_lsn == 248
    assert stage.feed.stalled_s == 0


async def test_nothing_is_written_before_the_stream_has_shown_the_last_commit() -> None:
    stage = Stage(Continuity(due_lsn=300))
    stage.receive(1, 2)
    await stage.feed.drain(stage.running)
    assert stage.gate.written == []
    assert stage.acknowledged == []


async def test_idle_wal_is_covered_after_the_publication_was_looked_at(stage: Stage) -> None:
    stage.progress.received(0, 2_000_000, in_transaction=False)
    async with asyncio.timeout(20):
        while not stage.acknowledged:
            await asyncio.sleep(0.01)
    assert stage.gate.covered == [2_000_000]
    assert stage.acknowledged == [(2_000_000, True)]
    assert stage.rechecks == 1


async def test_a_full_queue_is_waited_for_while_the_bucket_is_only_slow(stage: Stage) -> None:
    stage.receive(1, nbytes=SMALL.queue_bytes)
    async with asyncio.timeout(20):
        await stage.feed.make_room()
    assert not stage.feed.shed


async def test_a_failing_bucket_sheds_the_queue_and_ends_the_feed_when_it_answers(stage: Stage) -> None:
    stage.gate.answers.clear()
    stage.receive(1)
    await asyncio.sleep(0.1)  # it is in flight
    stage.receive(2, nbytes=SMALL.queue_bytes)
    await stage.feed.make_room()
    assert stage.feed.shed
    assert stage.feed.stalled_s > 0
    stage.receive(3)
    assert not stage.running.done()
    stage.gate.answers.set()
    async with asyncio.timeout(20):
        await stage.running
    assert stage.gate.written == [1]
    assert stage.progress.acknowledged_lsn == 148


async def test_a_failing_bucket_is_not_waited_for_at_the_end(stage: Stage) -> None:
    stage.gate.answers.clear()
    stage.receive(1)
    await asyncio.sleep(0.1)
    await stage.feed.drain(stage.running)
    await asyncio.gather(stage.running, return_exceptions=True)
    assert stage.running.cancelled()
    assert stage.acknowledged == []
