"""Where the cache takes its changes from, on a real Valkey: live, from the archive, from a snapshot."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
import redis.asyncio
from pydantic import SecretStr

from cdc.archive.bucket.memory import MemoryBucket
from cdc.archive.reader.reader import ArchiveReader
from cdc.archive.writer.sink import ArchiveSink
from cdc.cache.sink import CacheSink
from cdc.change import Batch, Transaction
from cdc.config import CacheSettings, RowProjection
from cdc.health.vitals import CacheState, Vitals
from cdc.pipeline.cache_feed import CacheFeed
from cdc.position import Position
from tests.support import transactions as archived
from tests.support.cache_model import snapshot
from tests.support.transactions import EPOCH, SOURCE, pieces, transaction

QUEUE_BYTES = 10_000


class Stage:
    """A feed between an archive in memory and a real cache. Snapshots hold nothing and are taken at `snapshot_lsn`."""

    def __init__(self, url: str) -> None:
        row = RowProjection(table="public.turns", key="turn:{id}", time_column=None)
        self.bucket = MemoryBucket()
        self.archive = ArchiveSink(self.bucket, archived.settings(segment_bytes=64 * 1024))
        self.sink = CacheSink(CacheSettings(url=SecretStr(url), projections=(row,)), EPOCH)
        self.feed = CacheFeed(self.sink, ArchiveReader(self.bucket), self.warm_up, QUEUE_BYTES, Vitals())
        self.redis = redis.asyncio.Redis.from_url(url)
        self.snapshot_lsn = 0x30
        self.warm_ups = 0

    async def warm_up(self) -> Position:
        self.warm_ups += 1
        position = Position(EPOCH, self.snapshot_lsn)
        await self.sink.warm(snapshot(), position, archived.TIME_US)
        return position

    async def archive_all(self, transactions: list[Transaction]) -> None:
        self.feed.archive_advanced(await self.archive.write(Batch(transactions)))

    async def has(self, *row_ids: int) -> bool:
        return all([await self.redis.exists(f"turn:{row_id}") for row_id in row_ids])

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while True:
                met = condition()
                if asyncio.iscoroutine(met):
                    met = await met
                if met:
                    return
                await asyncio.sleep(0.01)


@pytest.fixture
async def stage(redis_url: str) -> AsyncIterator[Stage]:
    made = Stage(redis_url)
    await made.archive.open()
    await made.archive.fence(SOURCE)
    yield made
    await made.feed.close()
    await made.archive.close()
    await made.redis.aclose()


@contextlib.asynccontextmanager
async def running(stage: Stage, since_lsn: int = 0x30) -> AsyncIterator[CacheFeed]:
    stage.feed.restart(since_lsn)
    task = asyncio.create_task(stage.feed.run())
    try:
        yield stage.feed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_cache_that_knows_nothing_is_warmed_and_then_follows(stage: Stage) -> None:
    async with running(stage) as feed:
        await feed.offer([transaction(1), transaction(2)])
        await stage.until(lambda: stage.has(1000, 2000))
    assert stage.warm_ups == 1
    assert feed.state is CacheState.LIVE


async def test_what_the_queue_had_to_drop_comes_from_the_archive_without_new_traffic(stage: Stage) -> None:
    many = [transaction(number, nbytes=1000) for number in range(1, 30)]
    stage.feed.restart(0x30)
    stage.feed.state = CacheState.AWAY
    await stage.feed.offer(many)
    assert stage.feed.queue.empty
    await stage.archive_all(many)
    task = asyncio.create_task(stage.feed.run())
    await stage.until(lambda: stage.has(*[number * 1000 for number in range(1, 30)]))
    await stage.until(lambda: stage.feed.state is CacheState.LIVE)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert stage.warm_ups == 1


async def test_it_waits_for_an_archive_that_is_itself_behind(stage: Stage) -> None:
    many = [transaction(number, nbytes=1000) for number in range(1, 30)]
    async with running(stage) as feed:
        await stage.until(lambda: feed.state is CacheState.LIVE)
        feed.state = CacheState.AWAY
        await feed.offer(many)
        await stage.until(lambda: feed.state is CacheState.CATCHING_UP)
        assert not await stage.has(29_000)
        await stage.archive_all(many)
        await stage.until(lambda: stage.has(1000, 29_000))
        await feed.offer([transaction(30)])
        await stage.until(lambda: stage.has(30_000))


async def test_a_flushed_cache_is_warmed_again(stage: Stage) -> None:
    async with running(stage) as feed:
        await feed.offer([transaction(1)])
        await stage.until(lambda: stage.has(1000))
        await stage.archive_all([transaction(1)])
        await stage.redis.flushall()
        await feed.offer([transaction(2)])
        await stage.until(lambda: stage.has(1000, 2000))
    assert stage.warm_ups == 2


async def test_a_replay_after_a_reconnect_has_no_effect_and_nothing_is_skipped(stage: Stage) -> None:
    async with running(stage) as feed:
        await feed.offer([transaction(1), transaction(2)])
        await stage.until(lambda: stage.has(2000))
        feed.restart(0x30)
        await feed.offer([transaction(1), transaction(2), transaction(3)])
        await stage.until(lambda: stage.has(3000))
        position = stage.sink.position
    assert position is not None
    assert position.lsn == transaction(3).end_lsn


async def test_a_covered_position_of_the_last_connection_does_not_skip_what_this_one_sends_again(stage: Stage) -> None:
    """The archive was covered up to 0x1000 when the connection broke; the cache had not applied all it was sent."""
    async with running(stage) as feed:
        await stage.until(lambda: feed.state is CacheState.LIVE)
        feed.archive_advanced(0x1000, idle=True)
        feed.restart(0x30)
        await asyncio.sleep(0.05)
        await feed.offer([transaction(1)])
        await stage.until(lambda: stage.has(1000))


async def test_an_idle_cache_stands_where_the_archive_is_covered(stage: Stage) -> None:
    async with running(stage) as feed:
        await feed.offer([transaction(1)])
        await stage.until(lambda: stage.has(1000))
        feed.archive_advanced(0x5000, idle=True)
        await stage.until(lambda: stage.sink.position is not None and stage.sink.position.lsn == 0x5000)


async def test_idle_wal_that_a_full_redis_did_not_take_is_no_reason_to_pass_over_what_came_since(stage: Stage) -> None:
    async with running(stage) as feed:
        await stage.until(lambda: feed.state is CacheState.LIVE)
        await stage.redis.config_set("maxmemory", 1)
        await stage.redis.config_set("maxmemory-policy", "noeviction")
        try:
            feed.archive_advanced(0x50, idle=True)
            await stage.until(lambda: feed.state is CacheState.AWAY)
            await feed.offer([transaction(1)])
            feed.archive_advanced(transaction(2).end_lsn, idle=True)
        finally:
            await stage.redis.config_set("maxmemory", 0)
        await stage.until(lambda: stage.has(1000))


async def test_a_large_transaction_whose_first_pieces_were_dropped_comes_whole_from_the_archive(stage: Stage) -> None:
    large = pieces(5, 20, of=4, nbytes=1000)
    async with running(stage) as feed:
        await stage.until(lambda: feed.state is CacheState.LIVE)
        feed.state = CacheState.AWAY
        for piece in large:
            await feed.offer([piece])
        await feed.offer([transaction(6)])
        await stage.archive_all([*large, transaction(6)])
        await stage.until(lambda: stage.has(5000, 5019, 6000))


async def test_a_snapshot_in_the_archive_cannot_be_followed_so_the_cache_is_warmed(stage: Stage) -> None:
    async with running(stage) as feed:
        await stage.until(lambda: feed.state is CacheState.LIVE)
        await stage.archive.write_snapshot(0x8000, [])
        stage.snapshot_lsn = 0x8000
        feed.restart(0x8000)
        await feed.offer([transaction(0x200)])
        await stage.until(lambda: stage.has(0x200 * 1000))
    assert stage.warm_ups == 2
