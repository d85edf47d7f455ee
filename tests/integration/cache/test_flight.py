"""A plan is made while the call before it is in flight: whatever ends the writing, nothing is lost or doubled."""

import asyncio
import random
from contextlib import suppress

import pytest
from pydantic import SecretStr

from cdc.cache.sink import CacheSink
from cdc.change import Batch, Transaction
from cdc.config import CacheSettings
from cdc.errors import Moved
from tests.support.cache_model import (
    EPOCH,
    NOW_US,
    PROJECTIONS,
    START,
    CacheModel,
    created,
    end_lsn,
    read_cache,
    snapshot,
    transaction,
    turn,
    updated,
)


def _settings(redis_url: str, batch_rows: int) -> CacheSettings:
    return CacheSettings(url=SecretStr(redis_url), projections=PROJECTIONS, batch_rows=batch_rows)


def _transactions(count: int) -> list[Transaction]:
    """Rows that are created, and changed by the next transaction: an order that was lost would show."""
    made = []
    for number in range(1, count + 1):
        old, new = turn(number - 1, f"s{(number - 1) % 7}"), turn(number, f"s{number % 7}")
        changes = [created(new)] if number == 1 else [updated(old, {**old, "content": "changed"}), created(new)]
        made.append(transaction(number, NOW_US, *changes))
    return made


async def _expect(settings: CacheSettings, transactions: list[Transaction]) -> None:
    model = CacheModel()
    model.apply(Batch(transactions))
    assert await read_cache(settings) == model.entries


@pytest.fixture
async def settings(redis_url: str) -> CacheSettings:
    settings = _settings(redis_url, 4)
    sink = CacheSink(settings, EPOCH)
    await sink.open()
    await sink.warm(snapshot(), START, NOW_US)
    await sink.close()
    return settings


async def test_many_calls_of_one_batch_come_in_order(settings: CacheSettings) -> None:
    transactions = _transactions(300)
    sink = CacheSink(settings, EPOCH)
    await sink.open()
    assert await sink.write(Batch(transactions)) == end_lsn(300)
    await sink.close()
    await _expect(settings, transactions)


async def test_a_write_that_is_cancelled_anywhere_can_be_repeated(settings: CacheSettings) -> None:
    transactions = _transactions(300)
    chance = random.Random(7)
    sink = CacheSink(settings, EPOCH)
    await sink.open()
    for _ in range(40):
        writing = asyncio.create_task(sink.write(Batch(transactions)))
        for _ in range(chance.randrange(60)):
            await asyncio.sleep(0)
        writing.cancel()
        with suppress(asyncio.CancelledError):
            await writing
    assert await sink.write(Batch(transactions)) == end_lsn(300)
    await sink.close()
    await _expect(settings, transactions)


async def test_a_call_in_flight_that_finds_another_checkpoint_stops_the_write(settings: CacheSettings) -> None:
    transactions = _transactions(300)
    first, second = CacheSink(settings, EPOCH), CacheSink(settings, EPOCH)
    await first.open()
    await second.open()
    await second.write(Batch(transactions[:100]))
    with pytest.raises(Moved):
        await first.write(Batch(transactions))
    await first.open()
    await first.write(Batch(transactions))
    await first.close()
    await second.close()
    await _expect(settings, transactions)
