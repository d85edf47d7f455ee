"""The cache sink on a real Valkey: what the rules say of each change, and what must survive."""

import time
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from cdc import metrics
from cdc.cache.sink import CacheSink
from cdc.change import CREATE, DELETE, UPDATE, Batch, Column, Relation, RowChange, Transaction
from cdc.config import (
    CacheSettings,
    HistoryProjection,
    LatestProjection,
    Projection,
    RowProjection,
)
from cdc.errors import Invalid, Moved
from cdc.position import Epoch, Position
from cdc.row import ABSENT, Row
from tests.support.cache_model import (
    EPOCH,
    HISTORY,
    LATEST,
    NOW_US,
    PROJECTIONS,
    ROW,
    START,
    TURNS,
    CacheModel,
    Entry,
    command,
    created,
    deleted,
    end_lsn,
    pieces,
    read_cache,
    row_of,
    snapshot,
    transaction,
    truncated,
    turn,
    updated,
)


def settings_of(url: str, *projections: Projection, **other: int) -> CacheSettings:
    return CacheSettings(url=SecretStr(url), projections=projections or PROJECTIONS, **other)


async def opened(settings: CacheSettings, epoch: Epoch = EPOCH) -> CacheSink:
    """A sink on a cache that is empty and complete up to START."""
    sink = CacheSink(settings, epoch)
    await sink.open()
    await sink.warm(snapshot(), START, NOW_US)
    return sink


@pytest.fixture
def settings(redis_url: str) -> CacheSettings:
    return settings_of(redis_url)


@pytest.fixture
async def sink(settings: CacheSettings) -> AsyncIterator[CacheSink]:
    sink = await opened(settings)
    yield sink
    await sink.close()


def batch(*transactions: Transaction) -> Batch:
    return Batch(list(transactions))


# Position ------------------------------------------------------------------------------------------------------------


async def test_an_empty_cache_has_no_position(settings: CacheSettings) -> None:
    sink = CacheSink(settings, EPOCH)
    assert await sink.open() is None
    assert sink.position is None
    with pytest.raises(Moved):
        await sink.write(batch(transaction(1, NOW_US, created(turn(1)))))
    await sink.close()


async def test_the_position_moves_with_the_data_and_is_printed_as_postgres_prints_it(sink: CacheSink) -> None:
    assert await sink.write(batch(transaction(0x16, NOW_US, created(turn(1))))) == end_lsn(0x16)
    assert await command(sink, "HGET", "cdc:meta", "lsn") == b"0/168"
    assert await command(sink, "HGET", "cdc:meta", "epoch") == b"7/1"
    assert await command(sink, "HEXISTS", "cdc:meta", "part") == 0
    assert await command(sink, "TTL", "cdc:meta") == -1
    assert await sink.open() == Position(EPOCH, end_lsn(0x16))


async def test_another_epochs_position_is_none(sink: CacheSink, settings: CacheSettings) -> None:
    later = CacheSink(settings, Epoch("7", 2))
    assert await later.open() is None
    await later.close()


async def test_a_cache_of_other_projections_must_be_warmed_again(sink: CacheSink, redis_url: str) -> None:
    other = CacheSink(settings_of(redis_url, ROW), EPOCH)
    assert await other.open() is None
    await other.close()


async def test_transactions_without_rows_for_the_cache_move_the_position(sink: CacheSink) -> None:
    orders = Relation(1, "public", "orders", "d", TURNS.columns)
    change = RowChange(CREATE, 0, orders, row_of(turn(1)), None)
    assert await sink.write(batch(transaction(1, NOW_US, change), transaction(2, NOW_US))) == end_lsn(2)
    assert await command(sink, "DBSIZE") == 1


async def test_the_stream_may_pass_without_changes(sink: CacheSink) -> None:
    assert await sink.advance(500) == 500
    assert await sink.advance(400) == 500
    assert await sink.open() == Position(EPOCH, 500)


async def test_a_half_applied_transaction_is_not_passed_over(sink: CacheSink) -> None:
    first, _ = pieces(transaction(1, NOW_US, created(turn(1)), created(turn(2))), 1)
    await sink.write(batch(first))
    assert await sink.advance(500) == START.lsn
    with pytest.raises(Moved):
        await sink.write(batch(transaction(2, NOW_US, created(turn(3)))))


async def test_a_missing_piece_is_noticed(sink: CacheSink) -> None:
    _, second = pieces(transaction(1, NOW_US, created(turn(1)), created(turn(2))), 1)
    with pytest.raises(Moved):
        await sink.write(batch(second))


# Replay --------------------------------------------------------------------------------------------------------------


async def test_a_replay_has_no_effect(sink: CacheSink, settings: CacheSettings) -> None:
    first = transaction(1, NOW_US, created(turn(1)))
    second = transaction(2, NOW_US, updated(turn(1), turn(1, content="new")))
    await sink.write(batch(first, second))
    before = await read_cache(settings)
    assert await sink.write(batch(first)) == end_lsn(2)
    assert await sink.write(batch(first, second)) == end_lsn(2)
    assert await read_cache(settings) == before


async def test_a_replay_does_not_lengthen_a_life(sink: CacheSink, settings: CacheSettings) -> None:
    change = transaction(1, NOW_US, created(turn(1)))
    await sink.write(batch(change))
    expiries = {key: entry.expiry_ms for key, entry in (await read_cache(settings)).items()}
    assert expiries["turn:t1"] == NOW_US // 1000 + ROW.ttl_s * 1000
    await command(sink, "DEL", "cdc:meta")
    await sink.open()
    await sink.warm(snapshot(), START, NOW_US)
    await sink.write(batch(change))
    assert {key: entry.expiry_ms for key, entry in (await read_cache(settings)).items()} == expiries


async def test_what_is_older_than_its_time_of_life_is_not_kept(sink: CacheSink, settings: CacheSettings) -> None:
    old_us = NOW_US - (LATEST.ttl_s + 60) * 1_000_000
    await sink.write(batch(transaction(1, old_us, created(turn(1)))))
    assert set(await read_cache(settings)) == {"turn:t1", "session:a:turns"}
    ancient_us = NOW_US - (ROW.ttl_s + 60) * 1_000_000
    await sink.write(batch(transaction(2, ancient_us, created(turn(2, "b")))))
    assert set(await read_cache(settings)) == {"turn:t1", "session:a:turns"}


async def test_a_large_transaction_goes_on_after_a_crash_in_its_middle(redis_url: str) -> None:
    settings = settings_of(redis_url, batch_rows=3)
    whole = transaction(1, NOW_US, *(created(turn(id, pos=id)) for id in range(1, 12)))
    first, second, third = pieces(whole, 4, 8)
    sink = await opened(settings)
    await sink.write(batch(first))
    await sink.write(batch(second))
    await sink.close()

    sink = CacheSink(settings, EPOCH)
    position = await sink.open()
    assert position == Position(EPOCH, START.lsn, whole.commit_lsn, 8)
    assert await command(sink, "HGET", "cdc:meta", "part") == b"0/10:8"
    await sink.write(batch(first, second))  # Postgres sends it again from its beginning
    assert await sink.write(batch(third)) == end_lsn(1)
    model = CacheModel()
    model.apply(batch(whole))
    assert await read_cache(settings) == model.entries
    await sink.close()


async def test_an_old_piece_that_comes_again_takes_nothing_back(redis_url: str) -> None:
    """P5: the row's first version, replayed after its second, must not be seen again."""
    settings = settings_of(redis_url, batch_rows=1)
    whole = transaction(1, NOW_US, created(turn(1)), updated(turn(1), turn(1, content="new")), created(turn(2)))
    first, second, third = pieces(whole, 1, 2)
    sink = await opened(settings)
    await sink.write(batch(first, second))
    await sink.write(batch(first))
    assert (await read_cache(settings))["turn:t1"].value == turn(1, content="new")
    await command(sink, "CONFIG", "RESETSTAT")
    assert await sink.write(batch(first, second, third)) == end_lsn(1)
    assert "cmdstat_evalsha:calls=1," in str(await command(sink, "INFO", "commandstats"))
    await sink.close()


# row -----------------------------------------------------------------------------------------------------------------


async def test_a_changed_row_key_moves_the_row(sink: CacheSink, settings: CacheSettings) -> None:
    new = turn(1, turn_id="moved")
    await sink.write(batch(transaction(1, NOW_US, created(turn(1))), transaction(2, NOW_US, updated(turn(1), new))))
    cache = await read_cache(settings)
    assert "turn:t1" not in cache
    assert cache["turn:moved"].value == new


async def test_rows_that_swap_keys_in_one_batch_end_where_they_belong(sink: CacheSink, settings: CacheSettings) -> None:
    one, two = turn(1), turn(2)
    swap = transaction(
        2,
        NOW_US,
        updated(one, turn(1, turn_id="between")),
        updated(two, turn(2, turn_id="t1")),
        updated(turn(1, turn_id="between"), turn(1, turn_id="t2")),
    )
    await sink.write(batch(transaction(1, NOW_US, created(one), created(two)), swap))
    cache = await read_cache(settings)
    assert cache["turn:t1"].value == turn(2, turn_id="t1")
    assert cache["turn:t2"].value == turn(1, turn_id="t2")


async def test_null_in_a_key_column_gives_no_key(sink: CacheSink, settings: CacheSettings) -> None:
    await sink.write(batch(transaction(1, NOW_US, created(turn(1, None)))))
    assert set(await read_cache(settings)) == {"turn:t1"}
    await sink.write(batch(transaction(2, NOW_US, updated(turn(1, None), turn(1, "a")))))
    assert set(await read_cache(settings)) == {"turn:t1", "session:a:turns"}


async def test_a_hole_is_answered_with_a_miss(sink: CacheSink, settings: CacheSettings) -> None:
    await sink.write(batch(transaction(1, NOW_US, created(turn(1)))))
    holed: Row = row_of(turn(1))
    holed[4] = ABSENT
    await sink.write(batch(transaction(2, NOW_US, RowChange(UPDATE, 0, TURNS, holed, None))))
    assert await read_cache(settings) == {}


async def test_a_delete_without_the_old_key_is_named_and_reaches_the_rest(sink: CacheSink, redis_url: str) -> None:
    key_only: Row = [b"1", ABSENT, ABSENT, ABSENT, ABSENT, ABSENT]
    settings = settings_of(redis_url, ROW, RowProjection(table="public.turns", key="by_id:{id}"))
    sink = await opened(settings)
    await sink.write(batch(transaction(1, NOW_US, created(turn(1)))))
    await sink.write(batch(transaction(2, NOW_US, RowChange(DELETE, 0, TURNS, None, key_only))))
    assert set(await read_cache(settings)) == {"turn:t1"}
    await sink.close()


# history -------------------------------------------------------------------------------------------------------------


async def test_a_history_keeps_the_newest_in_order(sink: CacheSink, settings: CacheSettings) -> None:
    await sink.write(batch(transaction(1, NOW_US, *(created(turn(id)) for id in (3, 1, 5, 2, 4)))))
    assert (await read_cache(settings))["session:a:turns"].rows == [(id, turn(id)) for id in (3, 4, 5)]


async def test_an_update_does_not_bring_an_expired_session_back(sink: CacheSink, settings: CacheSettings) -> None:
    await sink.write(batch(transaction(1, NOW_US, created(turn(1)), created(turn(2)))))
    await command(sink, "DEL", "session:a:turns", "session:a:state")
    await sink.write(batch(transaction(2, NOW_US, updated(turn(1), turn(1, content="new")))))
    assert set(await read_cache(settings)) == {"turn:t1", "turn:t2"}


async def test_a_row_moves_between_sessions_within_one_batch(sink: CacheSink, settings: CacheSettings) -> None:
    there, back = turn(1, "b"), turn(1, "a", content="back")
    await sink.write(
        batch(
            transaction(1, NOW_US, created(turn(1, "a")), created(turn(2, "b"))),
            transaction(2, NOW_US, updated(turn(1, "a"), there)),
            transaction(3, NOW_US, updated(there, back)),
        )
    )
    cache = await read_cache(settings)
    assert cache["session:a:turns"].rows == [(1.0, back)]
    assert cache["session:b:turns"].rows == [(2.0, turn(2, "b"))]


async def test_a_row_inserted_and_deleted_in_one_batch_is_gone(sink: CacheSink, settings: CacheSettings) -> None:
    await sink.write(batch(transaction(1, NOW_US, created(turn(1))), transaction(2, NOW_US, deleted(turn(1)))))
    assert await read_cache(settings) == {}


TRICKY = Relation(
    1, "public", "turns", "f",
    [
        Column("meta", "json", 114, -1, False),
        Column("id", "bigint", 20, -1, True),
        Column("session_hash", "text", 25, -1, False),
        Column("turn_id", "text", 25, -1, False),
        Column("pos", "integer", 23, -1, False),
    ],
)  # fmt: skip


async def test_a_member_of_another_shape_is_found_by_its_primary_key(redis_url: str) -> None:
    """After ADD COLUMN the old row's JSON is not the member's. Keys beyond 2^53 must not be mistaken for neighbours."""
    big = 2**53
    settings = settings_of(redis_url, HISTORY)
    meta = b'{"id": %d, "deep": [1, {"a": "]}\\""}], "id":%d}' % (big + 1, big + 1)
    row: Row = [meta, str(big).encode(), b"a", b"t", b"1"]
    neighbour: Row = [b"[ ]", str(big + 1).encode(), b"a", b'quote " brace }', b"1"]
    sink = await opened(settings)
    await sink.write(
        batch(transaction(1, NOW_US, *(RowChange(CREATE, 0, TRICKY, each, None) for each in (row, neighbour))))
    )
    wider = Relation(1, "public", "turns", "f", [*TRICKY.columns, Column("added", "text", 25, -1, False)])
    old: Row = [*neighbour, b"default"]
    await sink.write(batch(transaction(2, NOW_US, RowChange(UPDATE, 0, wider, [*neighbour, b"new"], old))))
    members = [member["added" if "added" in member else "id"] for _, member in (await _history(settings)).rows]
    assert sorted(map(str, members)) == [str(big), "new"]
    await sink.write(batch(transaction(3, NOW_US, RowChange(DELETE, 0, wider, None, [*row, b"default"]))))
    assert [member["added"] for _, member in (await _history(settings)).rows] == ["new"]
    await sink.close()


async def test_without_the_old_row_the_member_is_found_by_its_primary_key(redis_url: str) -> None:
    settings = settings_of(redis_url, HISTORY)
    sink = await opened(settings)
    await sink.write(batch(transaction(1, NOW_US, created(turn(1)), created(turn(2)))))
    new = turn(1, pos=7, content="new")
    await sink.write(batch(transaction(2, NOW_US, RowChange(UPDATE, 0, TURNS, row_of(new), None))))
    assert (await _history(settings)).rows == [(2.0, turn(2)), (7.0, new)]
    await sink.close()


async def test_a_history_by_time_is_scored_in_microseconds(redis_url: str) -> None:
    settings = settings_of(redis_url, HISTORY.model_copy(update={"order_by": "created_at"}))
    sink = await opened(settings)
    times = ("-infinity", "2026-11-22 18:07:13.802498+00", "infinity")
    rows = [turn(id, created_at=text) for id, text in enumerate(times)]
    await sink.write(batch(transaction(1, NOW_US, *map(created, rows))))
    scores = [score for score, _ in (await _history(settings)).rows]
    assert scores == [float("-inf"), 1795370833802498.0, float("inf")]
    await sink.close()


async def _history(settings: CacheSettings) -> Entry:
    return (await read_cache(settings))["session:a:turns"]


# latest --------------------------------------------------------------------------------------------------------------


async def test_latest_is_the_newest_row_not_the_last_written(sink: CacheSink, settings: CacheSettings) -> None:
    await sink.write(batch(transaction(1, NOW_US, created(turn(5)), created(turn(3)))))
    await sink.write(batch(transaction(2, NOW_US, created(turn(4)), updated(turn(3), turn(3, content="new")))))
    assert (await read_cache(settings))["session:a:state"].value == {"pos": 5, "id": 5, "content": "hello"}


async def test_when_the_newest_row_goes_latest_goes(sink: CacheSink, settings: CacheSettings) -> None:
    await sink.write(batch(transaction(1, NOW_US, created(turn(1)), created(turn(2)))))
    await sink.write(batch(transaction(2, NOW_US, deleted(turn(1)))))
    assert "session:a:state" in await read_cache(settings)
    await sink.write(batch(transaction(3, NOW_US, deleted(turn(2)))))
    assert "session:a:state" not in await read_cache(settings)


async def test_the_order_column_is_always_in_latest(redis_url: str) -> None:
    settings = settings_of(redis_url, LATEST.model_copy(update={"columns": ("content",)}))
    sink = await opened(settings)
    await sink.write(batch(transaction(1, NOW_US, created(turn(1)))))
    assert (await read_cache(settings))["session:a:state"].value == {"pos": 1, "content": "hello"}
    await sink.close()


# Truncate ------------------------------------------------------------------------------------------------------------


async def test_truncate_empties_what_was_before_it_and_keeps_what_comes_after(
    sink: CacheSink, settings: CacheSettings
) -> None:
    await command(sink, "SET", "somebody:else", "x")
    await sink.write(batch(transaction(1, NOW_US, *(created(turn(id)) for id in range(20)))))
    await sink.write(batch(transaction(2, NOW_US, created(turn(30)), truncated(), created(turn(31)))))
    assert await command(sink, "DEL", "somebody:else") == 1
    assert set(await read_cache(settings)) == {"turn:t31", "session:a:turns", "session:a:state"}
    assert sink.position == Position(EPOCH, end_lsn(2))


async def test_truncate_spares_the_keys_of_other_tables(redis_url: str) -> None:
    """`user:*` would match `user:1:turns` too."""
    users = Relation(2, "public", "users", "f", TURNS.columns)
    settings = settings_of(
        redis_url,
        RowProjection(table="public.users", key="user:{id}"),
        HistoryProjection(table="public.turns", key="user:{id}:[turns]*", order_by="pos"),
    )
    sink = await opened(settings)
    changes = (created(turn(1)), RowChange(CREATE, 0, users, row_of(turn(1)), None))
    await sink.write(batch(transaction(1, NOW_US, *changes)))
    await sink.write(batch(transaction(2, NOW_US, truncated(relation=users))))
    assert set(await read_cache(settings)) == {"user:1:[turns]*"}
    await sink.write(batch(transaction(3, NOW_US, truncated())))
    assert await read_cache(settings) == {}
    await sink.close()


async def test_many_keys_go_with_a_truncate(redis_url: str) -> None:
    settings = settings_of(redis_url, ROW)
    sink = await opened(settings)
    await sink.write(batch(*(transaction(n, NOW_US, created(turn(n))) for n in range(1, 5001))))
    assert len(await read_cache(settings)) == 5000
    await sink.write(batch(transaction(5001, NOW_US, truncated())))
    assert await read_cache(settings) == {}
    await sink.close()


# Warm-up -------------------------------------------------------------------------------------------------------------


async def test_a_warm_up_replaces_everything_and_ends_with_the_position(
    sink: CacheSink, settings: CacheSettings
) -> None:
    await sink.write(batch(transaction(1, NOW_US, created(turn(99, "old")))))
    await command(sink, "SET", "somebody:else", "x")
    await command(sink, "DEL", "cdc:meta")
    assert await sink.open() is None
    await sink.warm(snapshot(*(turn(id, created_at=_text(NOW_US)) for id in range(1, 6))), Position(EPOCH, 400), NOW_US)
    assert await sink.open() == Position(EPOCH, 400) == sink.position
    assert await command(sink, "DEL", "somebody:else") == 1
    cache = await read_cache(settings)
    assert set(cache) == {"session:a:turns", "session:a:state", *(f"turn:t{id}" for id in range(1, 6))}
    assert [row["id"] for _, row in cache["session:a:turns"].rows] == [3, 4, 5]


async def test_warmed_rows_live_as_long_as_their_time_allows(redis_url: str) -> None:
    settings = settings_of(redis_url, HISTORY, ROW, LATEST, batch_rows=1)
    sink = CacheSink(settings, EPOCH)
    await sink.open()
    hour_us = 3_600_000_000
    rows = [
        turn(1, "a", created_at=_text(NOW_US - 200 * hour_us)),
        turn(2, "a", created_at=_text(NOW_US - hour_us)),
        turn(3, "a", created_at=_text(NOW_US - 2 * hour_us)),
        turn(4, "b", created_at="infinity"),
        turn(5, "c", created_at=None),
    ]
    await sink.warm(snapshot(*rows), START, NOW_US)
    expiries = {key: entry.expiry_ms for key, entry in (await read_cache(settings)).items()}
    week_ms, now_ms, hour_ms = ROW.ttl_s * 1000, NOW_US // 1000, 3_600_000
    assert expiries == {
        "turn:t2": now_ms - hour_ms + week_ms,
        "turn:t3": now_ms - 2 * hour_ms + week_ms,
        "session:a:turns": now_ms - hour_ms + week_ms,
        "turn:t4": now_ms + week_ms,
        "session:b:turns": now_ms + week_ms,
        "session:b:state": now_ms + LATEST.ttl_s * 1000,
        "turn:t5": now_ms + week_ms,
        "session:c:turns": now_ms + week_ms,
        "session:c:state": now_ms + LATEST.ttl_s * 1000,
    }
    await sink.close()


async def test_a_warm_up_that_breaks_off_is_no_warm_up(sink: CacheSink, settings: CacheSettings) -> None:
    async def broken() -> AsyncIterator[tuple[Relation, list[Row]]]:
        yield TURNS, [row_of(turn(1))]
        raise ConnectionError("the snapshot's connection went")

    with pytest.raises(ConnectionError):
        await sink.warm(broken(), Position(EPOCH, 400), NOW_US)
    assert sink.position is None
    assert await sink.open() is None
    await sink.warm(snapshot(turn(2)), Position(EPOCH, 500), NOW_US)
    assert await sink.open() == Position(EPOCH, 500)
    assert "turn:t1" not in await read_cache(settings)


def _text(time_us: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time_us // 1_000_000)) + f".{time_us % 1_000_000:06d}+00"


# Whose cache ---------------------------------------------------------------------------------------------------------


async def test_a_zombie_cannot_take_a_key_back(sink: CacheSink, settings: CacheSettings) -> None:
    """P5: the one that was paused wakes up with an old batch, again and again."""
    zombie = CacheSink(settings, EPOCH)
    await zombie.open()
    first = transaction(1, NOW_US, created(turn(1)))
    second = transaction(2, NOW_US, updated(turn(1), turn(1, content="new")))
    await sink.write(batch(first))
    await sink.write(batch(second))
    with pytest.raises(Moved):
        await zombie.write(batch(first))
    with pytest.raises(Moved):
        await zombie.write(batch(first))
    with pytest.raises(Moved):
        await zombie.advance(1000)
    assert (await read_cache(settings))["turn:t1"].value == turn(1, content="new")
    assert await zombie.open() == sink.position
    assert await zombie.write(batch(first, second)) == end_lsn(2)
    await zombie.close()


async def test_a_zombie_cannot_empty_or_fill_a_cache_that_was_warmed_after_it(
    sink: CacheSink, settings: CacheSettings
) -> None:
    async def slow() -> AsyncIterator[tuple[Relation, list[Row]]]:
        yield TURNS, [row_of(turn(1, content="old"))]
        await sink.open()
        await sink.warm(snapshot(turn(1, content="new", created_at=None)), Position(EPOCH, 500), NOW_US)
        yield TURNS, [row_of(turn(1, content="old"))]

    zombie = CacheSink(settings, EPOCH)
    await zombie.open()
    with pytest.raises(Moved):
        await zombie.warm(slow(), Position(EPOCH, 400), NOW_US)
    with pytest.raises(Moved):
        await zombie.warm(snapshot(), START, NOW_US)
    assert await sink.open() == Position(EPOCH, 500)
    assert (await read_cache(settings))["turn:t1"].value == turn(1, content="new", created_at=None)
    await zombie.close()


async def test_a_writer_who_did_the_same_is_no_conflict(sink: CacheSink, settings: CacheSettings) -> None:
    twin = CacheSink(settings, EPOCH)
    await twin.open()
    change = batch(transaction(1, NOW_US, created(turn(1))))
    assert await sink.write(change) == await twin.write(change) == end_lsn(1)
    await twin.close()


# The call ------------------------------------------------------------------------------------------------------------


async def test_one_batch_is_one_command_and_never_multi(sink: CacheSink) -> None:
    await command(sink, "CONFIG", "RESETSTAT")
    await sink.write(batch(*(transaction(n, NOW_US, created(turn(n))) for n in range(1, 400))))
    statistics = str(await command(sink, "INFO", "commandstats"))
    assert "cmdstat_multi" not in statistics
    assert "cmdstat_evalsha:calls=1," in statistics
    assert "cmdstat_eval:" not in statistics


async def test_a_call_holds_no_more_rows_than_it_may_and_whole_transactions_where_they_fit(redis_url: str) -> None:
    sink = await opened(settings_of(redis_url, batch_rows=10))
    await command(sink, "CONFIG", "RESETSTAT")
    await sink.write(
        batch(*(transaction(n, NOW_US, *(created(turn(n * 10 + k)) for k in range(4))) for n in range(1, 6)))
    )
    assert "cmdstat_evalsha:calls=3," in str(await command(sink, "INFO", "commandstats"))
    await sink.close()


async def test_large_rows_go_in_several_calls(redis_url: str) -> None:
    sink = await opened(settings_of(redis_url, batch_bytes=100_000))
    await command(sink, "CONFIG", "RESETSTAT")
    large = "x" * 60_000
    changes = [created(turn(id, content=large)) for id in range(4)]
    assert await sink.write(batch(transaction(1, NOW_US, *changes))) == end_lsn(1)
    assert "cmdstat_evalsha:calls=2," in str(await command(sink, "INFO", "commandstats"))
    await sink.close()


async def test_the_script_is_sent_again_when_the_server_forgot_it(sink: CacheSink, settings: CacheSettings) -> None:
    await command(sink, "SCRIPT", "FLUSH")
    assert await sink.write(batch(transaction(1, NOW_US, created(turn(1))))) == end_lsn(1)
    assert "turn:t1" in await read_cache(settings)


async def test_somebody_elses_value_under_our_keys_is_replaced(sink: CacheSink, settings: CacheSettings) -> None:
    await command(sink, "SET", "session:a:turns", "a string")
    await command(sink, "RPUSH", "session:a:state", "a list")
    await command(sink, "RPUSH", "turn:t1", "a list")
    await sink.write(batch(transaction(1, NOW_US, created(turn(1)))))
    model = CacheModel()
    model.apply(batch(transaction(1, NOW_US, created(turn(1)))))
    assert await read_cache(settings) == model.entries
    await command(sink, "SET", "session:a:state", "not ours")
    await command(sink, "ZADD", "session:a:turns", "1", '{"not": "ours')
    await sink.write(batch(transaction(2, NOW_US, created(turn(2)), updated(turn(1), turn(1, content="new")))))
    assert (await read_cache_raw(sink, "session:a:state")) == b'{"pos":2,"id":2,"content":"hello"}'


async def read_cache_raw(sink: CacheSink, key: str) -> object:
    return await command(sink, "GET", key)


async def test_a_foreign_value_at_the_checkpoint_is_a_clear_mistake(settings: CacheSettings) -> None:
    sink = CacheSink(settings, EPOCH)
    await command(sink, "SET", "cdc:meta", "x")
    with pytest.raises(Invalid) as caught:
        await sink.open()
    assert "cdc:meta" in caught.value.hint
    await sink.close()


async def test_latency_and_position_are_measured(sink: CacheSink) -> None:
    def observed() -> float:
        return metrics.REGISTRY.get_sample_value("cdc_commit_to_durable_seconds_count", {"sink": "cache"}) or 0

    before = observed()
    await sink.write(batch(*(transaction(n, NOW_US + n, created(turn(n))) for n in range(1, 100))))
    assert observed() == before + 2
    assert sink.position == Position(EPOCH, end_lsn(99))


async def test_a_projection_that_does_not_fit_its_table_is_a_clear_mistake(redis_url: str) -> None:
    bad = LatestProjection(table="public.turns", key="x:{nothing}", order_by="content", columns=("id", "gone"))
    sink = await opened(settings_of(redis_url, bad))
    with pytest.raises(Invalid) as caught:
        await sink.write(batch(transaction(1, NOW_US, created(turn(1)))))
    assert all(word in caught.value.detail for word in ("nothing", "gone", "content", "neither a number nor a time"))
    await sink.close()
