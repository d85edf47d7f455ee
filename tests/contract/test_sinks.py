"""One contract, every sink: the archive on a directory, in memory and on S3; the cache on Valkey and Redis; a third.

The checks are functions of a destination. Each is shown to be red for a sink with a fault in it.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from cdc.archive.bucket.memory import MemoryBucket
from cdc.archive.bucket.opening import open_bucket
from cdc.archive.reader.reader import ArchiveReader
from cdc.change import Batch, Transaction
from cdc.embedded import ValkeyServer
from cdc.errors import Moved
from cdc.health.vitals import CacheState, Vitals
from cdc.pipeline.cache_feed import CacheFeed
from cdc.pipeline.sinks import Follower
from cdc.position import Epoch, Position
from tests.contract.destinations import (
    BEGINNING,
    Archive,
    Cache,
    Destination,
    Followed,
    Journal,
    Rows,
    first,
    in_pieces,
    large,
    second,
    show,
    third,
)
from tests.contract.sqlite_sink import SqliteSink
from tests.support.s3 import S3Server
from tests.support.servers import flushed_redis
from tests.support.transactions import EPOCH, batch, opened, pieces, right_after, settings, transaction

NEXT_EPOCH = Epoch(EPOCH.system_identifier, EPOCH.timeline + 1)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with S3Server(tls=False) as server:
        yield server


def on_directory(request: pytest.FixtureRequest) -> Archive:
    path: Path = request.getfixturevalue("tmp_path")
    return Archive(open_bucket(settings(url=f"file://{path}/archive")))


def on_memory(_request: pytest.FixtureRequest) -> Archive:
    return Archive(MemoryBucket())


def on_s3(request: pytest.FixtureRequest) -> Archive:
    server: S3Server = request.getfixturevalue("s3_server")
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    url = f"s3://archive/{uuid.uuid4().hex}"
    return Archive(open_bucket(settings(url=url, endpoint_url=server.endpoint_url)))


def on_valkey(request: pytest.FixtureRequest) -> Cache:
    return Cache(request.getfixturevalue("redis_url"))


def on_redis(request: pytest.FixtureRequest) -> Cache:
    debian: ValkeyServer = request.getfixturevalue("debian_redis")
    return Cache(flushed_redis(debian, 0))


def on_sqlite(request: pytest.FixtureRequest) -> Journal:
    path: Path = request.getfixturevalue("tmp_path")
    return Journal(path / "journal.sqlite")


GATES = [pytest.param(make, id=make.__name__.removeprefix("on_")) for make in (on_directory, on_memory, on_s3)]
FOLLOWERS = [
    pytest.param(on_valkey, id="valkey"),
    pytest.param(on_redis, id="redis", marks=pytest.mark.wide),
    pytest.param(on_sqlite, id="sqlite"),
]


@pytest.fixture(params=[*GATES, *FOLLOWERS])
async def destination(request: pytest.FixtureRequest) -> AsyncIterator[Destination]:
    made: Destination = request.param(request)
    yield made
    await made.close()


@pytest.fixture(params=FOLLOWERS)
async def followed(request: pytest.FixtureRequest) -> AsyncIterator[Followed]:
    made: Followed = request.param(request)
    yield made
    await made.close()


async def assert_holds(destination: Destination, *transactions: Transaction) -> None:
    """The destination shows exactly these whole transactions, each once, in this order."""
    rows: Rows = {}
    for whole in transactions:
        show(rows, whole.changes)
    assert await destination.rows() == rows
    log = await destination.log()
    assert log is None or log == [(whole.commit_lsn, change.seq) for whole in transactions for change in whole.changes]


# The checks -----------------------------------------------------------------------------------------------------------


async def a_new_destination_has_no_position(destination: Destination) -> None:
    assert await destination.reopen() is None
    await assert_holds(destination)


async def what_is_written_takes_effect_in_order(destination: Destination) -> None:
    await destination.reopen()
    assert await destination.write(batch(first(), second())) == second().end_lsn
    assert await destination.write(batch(third())) == third().end_lsn
    await assert_holds(destination, first(), second(), third())


async def a_position_survives_reopening(destination: Destination) -> None:
    await destination.reopen()
    await destination.write(batch(first()))
    await destination.write(batch(second()))
    assert await destination.reopen() == Position(EPOCH, second().end_lsn)
    await assert_holds(destination, first(), second())
    assert await destination.write(batch(third())) == third().end_lsn
    assert await destination.reopen() == Position(EPOCH, third().end_lsn)
    await assert_holds(destination, first(), second(), third())


async def a_passed_position_survives_reopening_and_none_goes_back(destination: Destination) -> None:
    await destination.reopen()
    await destination.write(batch(first()))
    assert await destination.advance(190) == 190
    assert await destination.advance(150) == 190
    assert await destination.reopen() == Position(EPOCH, 190)
    assert await destination.write(batch(second())) == second().end_lsn
    assert await destination.advance(first().end_lsn) == second().end_lsn
    assert await destination.reopen() == Position(EPOCH, second().end_lsn)
    await assert_holds(destination, first(), second())


async def a_replay_has_no_effect(destination: Destination) -> None:
    await destination.reopen()
    await destination.write(batch(first(), second()))
    assert await destination.write(batch(first())) == second().end_lsn
    await assert_holds(destination, first(), second())
    await destination.reopen()
    assert await destination.write(batch(first(), second(), third())) == third().end_lsn
    await assert_holds(destination, first(), second(), third())


async def a_large_transaction_counts_with_its_last_piece(destination: Destination) -> None:
    beginning, middle, end = in_pieces(large())
    await destination.reopen()
    assert await destination.write(batch(first(), beginning)) == first().end_lsn
    assert await destination.write(batch(middle)) == first().end_lsn
    assert await destination.write(batch(end)) == large().end_lsn
    await assert_holds(destination, first(), large())
    assert await destination.write(batch(beginning, middle, end)) == large().end_lsn
    assert await destination.reopen() == Position(EPOCH, large().end_lsn)
    await assert_holds(destination, first(), large())


async def an_abandoned_transaction_that_begins_again_counts_once(destination: Destination) -> None:
    """The connection breaks twice in its middle; the second time the sink lives on."""
    beginning, middle, end = in_pieces(large())
    await destination.reopen()
    await destination.write(batch(first(), beginning))
    await destination.write(batch(middle))
    found = await destination.reopen()
    assert found is not None
    assert (found.epoch, found.lsn) == (EPOCH, first().end_lsn)
    assert await destination.write(batch(first(), beginning)) == first().end_lsn
    assert await destination.write(batch(first(), beginning)) == first().end_lsn
    assert await destination.write(batch(middle)) == first().end_lsn
    assert await destination.write(batch(end)) == large().end_lsn
    await assert_holds(destination, first(), large())


async def a_commit_right_after_the_last_one_counts(destination: Destination) -> None:
    """Its record begins where the last one ends: its `commit_lsn` is the position, which does not cover it."""
    changed = right_after(first(), second())
    grown = right_after(changed, large())
    added = right_after(grown, third())
    beginning, middle, end = in_pieces(grown)
    await destination.reopen()
    assert await destination.write(batch(first(), changed)) == changed.end_lsn
    assert await destination.write(batch(beginning)) == changed.end_lsn
    assert await destination.write(batch(middle)) == changed.end_lsn
    assert await destination.write(batch(end)) == grown.end_lsn
    assert await destination.reopen() == Position(EPOCH, grown.end_lsn)
    assert await destination.write(batch(changed, beginning, middle, end, added)) == added.end_lsn
    await assert_holds(destination, first(), changed, grown, added)


# What a follower promises beside that -----------------------------------------------------------------------------


async def a_position_of_another_epoch_is_none(followed: Followed) -> None:
    await followed.reopen()
    await followed.write(batch(first()))
    assert await followed.reopen(NEXT_EPOCH) is None
    await assert_holds(followed)
    assert await followed.reopen(NEXT_EPOCH) == Position(NEXT_EPOCH, BEGINNING.lsn)
    assert await followed.reopen() is None


async def nothing_is_written_before_it_is_filled(followed: Followed) -> None:
    assert await followed.reopen(fill=False) is None
    assert await is_moved(followed.write(batch(first())))
    assert await is_moved(followed.advance(190))
    assert await followed.reopen(fill=False) is None
    await assert_holds(followed)


async def is_moved(call: Awaitable[int]) -> bool:
    try:
        await call
    except Moved:
        return True
    return False


async def the_middle_of_a_transaction_is_not_passed(followed: Followed) -> None:
    beginning, middle, end = in_pieces(large())
    await followed.reopen()
    await followed.write(batch(first(), beginning))
    assert await followed.advance(large().commit_lsn) == first().end_lsn
    assert await followed.write(batch(middle)) == first().end_lsn
    assert await followed.advance(large().commit_lsn) == first().end_lsn
    assert await followed.write(batch(end)) == large().end_lsn
    await assert_holds(followed, first(), large())


Check = Callable[[Destination], Awaitable[None]]
FollowerCheck = Callable[[Followed], Awaitable[None]]
CHECKS: list[Check] = [
    a_new_destination_has_no_position,
    what_is_written_takes_effect_in_order,
    a_position_survives_reopening,
    a_passed_position_survives_reopening_and_none_goes_back,
    a_replay_has_no_effect,
    a_large_transaction_counts_with_its_last_piece,
    an_abandoned_transaction_that_begins_again_counts_once,
    a_commit_right_after_the_last_one_counts,
]
FOLLOWER_CHECKS: list[FollowerCheck] = [
    a_position_of_another_epoch_is_none,
    nothing_is_written_before_it_is_filled,
    the_middle_of_a_transaction_is_not_passed,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_the_contract(destination: Destination, check: Check) -> None:
    await check(destination)


@pytest.mark.parametrize("check", FOLLOWER_CHECKS, ids=lambda check: check.__name__)
async def test_the_contract_of_a_follower(followed: Followed, check: FollowerCheck) -> None:
    await check(followed)


# Each check can be red ------------------------------------------------------------------------------------------------


class Forgetful(SqliteSink):
    """Its position is in memory only."""

    def _stand(self, position: Position) -> None:
        pass


class Lingering(SqliteSink):
    """Records its position when it is closed."""

    _latest: Position | None = None

    def _stand(self, position: Position) -> None:
        self._latest = position

    async def close(self) -> None:
        if self._latest is not None:
            with self._transaction():
                super()._stand(self._latest)
        self._latest = None
        await super().close()


class Accepting(SqliteSink):
    """Takes a batch for durable that it writes with the next one."""

    _accepted: tuple[Transaction, ...] = ()

    async def write(self, batch: Batch) -> int:
        await super().write(Batch(list(self._accepted)))
        self._accepted = tuple(batch)
        return batch.end_lsn


class Replaying(SqliteSink):
    """Applies what it has."""

    def _covers(self, position: Position, piece: Transaction) -> bool:
        return False


class Overlooking(SqliteSink):
    """Takes a commit that begins at its position for covered."""

    def _covers(self, position: Position, piece: Transaction) -> bool:
        return piece.commit_lsn <= position.lsn


class CountingParts(SqliteSink):
    """Takes the first piece for the transaction."""

    def _position_after(self, piece: Transaction, position: Position) -> Position:
        return Position(EPOCH, piece.end_lsn or piece.commit_lsn + 1)


class Repeating(SqliteSink):
    """Does not notice that a transaction begins again."""

    def _apply(self, piece: Transaction, position: Position) -> Position:
        begun = Position(position.epoch, position.lsn, position.part_commit_lsn, piece.first_seq)
        return super()._apply(piece, begun)


class Backward(SqliteSink):
    """Writes the newest first."""

    async def write(self, batch: Batch) -> int:
        for piece in reversed(batch.transactions):
            self.position = BEGINNING
            await super().write(Batch([piece]))
        return batch.end_lsn


class Returning(SqliteSink):
    """Goes where it is told to, back too."""

    async def advance(self, lsn: int) -> int:
        self.position = Position(EPOCH, 0)
        return await super().advance(lsn)


class Inventing(SqliteSink):
    """Takes a destination that records nothing for one that is at its beginning."""

    async def open(self) -> Position | None:
        self.position = await super().open() or BEGINNING
        return self.position


class Mistaking(SqliteSink):
    """Takes another epoch's position for its own."""

    async def open(self) -> Position | None:
        await super().open()
        found = self._transaction().execute("SELECT lsn, part_commit_lsn, part_seq FROM position").fetchone()
        self.position = None if found is None else Position(self.epoch, *found)
        return self.position


class Assuming(SqliteSink):
    """Begins without rows of a snapshot."""

    def _required_position(self) -> Position:
        return self.position or BEGINNING


class Passing(SqliteSink):
    """Moves on in the middle of a transaction."""

    async def advance(self, lsn: int) -> int:
        self.position = Position(self.epoch, self._required_position().lsn)
        return await super().advance(lsn)


@pytest.mark.parametrize(
    ("faulty", "check"),
    [
        (Inventing, a_new_destination_has_no_position),
        (Backward, what_is_written_takes_effect_in_order),
        (Accepting, what_is_written_takes_effect_in_order),
        (Forgetful, a_position_survives_reopening),
        (Lingering, a_position_survives_reopening),
        (Accepting, a_position_survives_reopening),
        (Forgetful, a_passed_position_survives_reopening_and_none_goes_back),
        (Returning, a_passed_position_survives_reopening_and_none_goes_back),
        (Replaying, a_replay_has_no_effect),
        (CountingParts, a_large_transaction_counts_with_its_last_piece),
        (Replaying, a_large_transaction_counts_with_its_last_piece),
        (CountingParts, an_abandoned_transaction_that_begins_again_counts_once),
        (Repeating, an_abandoned_transaction_that_begins_again_counts_once),
        (Overlooking, a_commit_right_after_the_last_one_counts),
        (Mistaking, a_position_of_another_epoch_is_none),
        (Assuming, nothing_is_written_before_it_is_filled),
        (Passing, the_middle_of_a_transaction_is_not_passed),
    ],
    ids=lambda value: value.__name__,
)
async def test_a_check_is_red_for_a_sink_with_a_fault(
    faulty: type[SqliteSink], check: FollowerCheck, tmp_path: Path
) -> None:
    destination = Journal(tmp_path / "journal.sqlite", faulty)
    try:
        with pytest.raises(AssertionError):
            await check(destination)
    finally:
        await destination.close()


# A third sink at work -------------------------------------------------------------------------------------------------


class Life:
    """A follower's feed between an archive in memory and the third sink, for one connection."""

    def __init__(self, bucket: MemoryBucket, path: Path) -> None:
        self.warm_ups = 0
        self._sink = SqliteSink(path, EPOCH)
        follower: Follower = self._sink
        self.feed = CacheFeed(follower, ArchiveReader(bucket), self._warm_up, 10_000, Vitals())
        self._task = asyncio.create_task(self.feed.run())

    async def _warm_up(self) -> Position:
        self.warm_ups += 1
        await self._sink.fill([], BEGINNING)
        return BEGINNING

    async def until_at(self, lsn: int) -> None:
        async with asyncio.timeout(20):
            while self._sink.position is None or self._sink.position.lsn < lsn:
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        """As the service ends: what waits is still taken."""
        self.feed.queue.close()
        async with asyncio.timeout(20):
            await self._task
        await self.feed.close()


async def test_a_third_sink_is_filled_follows_falls_behind_and_catches_up(tmp_path: Path) -> None:
    bucket, path = MemoryBucket(), tmp_path / "journal.sqlite"
    archive = await opened(bucket)
    live = [transaction(1), transaction(2), *pieces(3, 10, of=4)]
    missed = [*(transaction(number, nbytes=2000) for number in range(4, 20)), *pieces(20, 10, of=4)]

    life = Life(bucket, path)
    life.feed.restart(BEGINNING.lsn)
    await life.feed.offer(live)
    await life.until_at(348)
    life.feed.state = CacheState.AWAY
    await life.feed.offer(missed)
    assert life.feed.queue.empty  # it did not fit, and was dropped
    life.feed.archive_advanced(await archive.write(batch(*live, *missed)))
    await life.until_at(2048)
    await life.end()
    assert life.warm_ups == 1

    life = Life(bucket, path)
    life.feed.restart(348)
    await life.feed.offer([*missed, transaction(21)])
    await life.until_at(2148)
    await life.end()
    assert life.warm_ups == 0

    expected = [(whole * 100, seq) for whole in range(1, 22) for seq in range(10 if whole in (3, 20) else 1)]
    journal = Journal(path)
    assert await journal.log() == expected
    await archive.close()
