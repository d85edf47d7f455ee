"""Random histories of a table, cut into random batches and pieces, against the model."""

import asyncio
import random
import time

from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cdc.cache.sink import CacheSink
from cdc.change import Batch, Change, RowChange, Transaction
from cdc.config import CacheSettings
from cdc.position import Position
from tests.support.cache_model import (
    EPOCH,
    PROJECTIONS,
    CacheModel,
    Turn,
    created,
    deleted,
    pieces,
    read_cache,
    row_of,
    snapshot,
    transaction,
    truncated,
    turn,
    updated,
)


class Table:
    """A table that is changed at random, and the changes that this makes."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._rows: dict[int, Turn] = {}

    def change(self) -> RowChange:
        id = self._chance.randrange(8)
        old = self._rows.pop(id, None)
        if old is not None and self._chance.random() < 0.35:
            return deleted(old)
        new = self._rows[id] = self._row(id, old)
        return created(new) if old is None else updated(old, new)

    def _row(self, id: int, old: Turn | None) -> Turn:
        chance = self._chance
        if old is not None and chance.random() < 0.5:
            return {**old, "content": chance.choice(["x", "y", 'a "quoted" \\ word'])}
        row = turn(id, chance.choice(["a", "a", "b", None]), content=chance.choice(["x", "ü"]))
        row["pos"] = chance.choice([None, *range(-3, 9)])
        row["turn_id"] = chance.choice([f"t{id}", f"u{id}"])
        return row

    def truncate(self) -> None:
        self._rows.clear()


def _transactions(chance: random.Random, now_us: int) -> list[Transaction]:
    table = Table(chance)
    made = []
    for number in range(1, chance.randrange(2, 40)):
        changes: list[Change] = []
        for _ in range(chance.choice([1, 1, 1, 2, 6, 15])):
            if chance.random() < 0.02:
                table.truncate()
                changes.append(truncated())
            else:
                changes.append(table.change())
        made.append(transaction(number, now_us + number * 1_000_000, *changes))
    return made


def _batches(chance: random.Random, transactions: list[Transaction]) -> list[Batch]:
    cut: list[Transaction] = []
    for whole in transactions:
        count = len(whole.changes)
        cuts = sorted(chance.sample(range(1, count), chance.randrange(min(3, count)))) if count > 1 else []
        cut += pieces(whole, *cuts)
    batches = []
    while cut:
        size = chance.randrange(1, 12)
        batches.append(Batch(cut[:size]))
        cut = cut[size:]
    return batches


async def _compare(settings: CacheSettings, chance: random.Random) -> None:
    now_us = time.time_ns() // 1000
    transactions = _transactions(chance, now_us)
    model = CacheModel()
    sink = CacheSink(settings, EPOCH)
    try:
        await sink.open()
        await sink.warm(snapshot(), Position(EPOCH, 8), now_us)
        for batch in _batches(chance, transactions):
            model.apply(batch)
            await sink.write(batch)
            if chance.random() < 0.2:
                await sink.write(batch)
        assert await read_cache(settings) == model.entries
        assert await sink.open() == Position(EPOCH, transactions[-1].end_lsn)
    finally:
        await sink.close()


@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), batch_rows=st.sampled_from([1, 2, 5, 500]))
def test_any_changes_in_any_batches_leave_what_the_rules_say(redis_url: str, seed: int, batch_rows: int) -> None:
    settings = CacheSettings(url=redis_url, projections=PROJECTIONS, batch_rows=batch_rows)
    asyncio.run(_compare(settings, random.Random(seed)))


def test_the_model_itself_knows_an_expired_session_from_a_living_one() -> None:
    model = CacheModel()
    model.apply(Batch([transaction(1, 0, updated(turn(1), turn(1, content="new")))]))
    assert set(model.entries) == {"turn:t1"}
    assert row_of(turn(1))[0] == b"1"
