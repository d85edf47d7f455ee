"""The way to a moment: the newest snapshot before it, whole transactions after that, and nothing over a gap."""

import pytest

from cdc.archive.history import History, Until, read_history
from cdc.archive.memory import MemoryBucket
from cdc.archive.sink import ArchiveSink
from cdc.archive.tail import log_key
from cdc.change import Transaction
from cdc.errors import DataError, Diverged, Invalid
from cdc.row import Row
from tests.archived import TURNS, batch, facts, in_batches, lsns, opened, pieces, transaction

ROWS: list[Row] = [[b"%d" % number, b"base", None, None, None] for number in range(5)]


async def snapshot(sink: ArchiveSink, number: int) -> None:
    """The rows as they are after transaction `number`."""
    consistent_lsn = number * 100 + 50
    chunks = await sink.write_base(TURNS, in_batches(ROWS, 2), consistent_lsn)
    await sink.write_snapshot(consistent_lsn, chunks, [TURNS])


async def replayed(bucket: MemoryBucket, history: History, first_ordinal: int = 0) -> list[Transaction]:
    found = [pair async for pair in history.transactions(bucket, max(first_ordinal, history.first_ordinal))]
    ends = [ordinal for ordinal, one in found if one.last]
    assert ends == list(range(ends[0], ends[0] + len(ends))) if ends else True
    return [one for _, one in found]


@pytest.fixture
async def bucket() -> MemoryBucket:
    """A snapshot, 1 to 6 of which 4 came in parts after an attempt that was abandoned, a snapshot, 7 to 9."""
    bucket = MemoryBucket()
    sink = await opened(bucket)
    await snapshot(sink, 0)
    for number in range(1, 4):
        await sink.write(batch(transaction(number, 2)))
    large = pieces(4, 9, of=3)
    await sink.write(batch(large[0]))
    sink = await opened(bucket)
    for piece in large:
        await sink.write(batch(piece))
    await sink.write(batch(transaction(5), transaction(6)))
    await snapshot(sink, 6)
    await sink.write(batch(transaction(7), transaction(8), transaction(9)))
    await sink.close()
    return bucket


async def test_without_a_moment_it_begins_with_the_newest_snapshot(bucket: MemoryBucket) -> None:
    history = await read_history(bucket, Until())
    assert history.base.consistent_lsn == 650
    assert [row.new for _, rows in [pair async for pair in history.chunks(bucket)] for row in rows] == ROWS
    assert lsns(await replayed(bucket, history)) == [7, 8, 9]


@pytest.mark.parametrize("ordinal", range(9))
async def test_it_ends_with_the_transaction_that_is_named(bucket: MemoryBucket, ordinal: int) -> None:
    history = await read_history(bucket, Until(ordinal=ordinal))
    first = 0 if ordinal < 6 else 6
    assert history.first_ordinal == first
    expected = [transaction(number + 1, {3: 9}.get(number, 2 if number < 3 else 1)) for number in range(9)]
    assert facts(await replayed(bucket, history)) == facts(expected[first : ordinal + 1])


async def test_it_goes_on_within_the_log_at_any_ordinal(bucket: MemoryBucket) -> None:
    history = await read_history(bucket, Until(ordinal=4))
    for ordinal in range(6):
        found = await replayed(bucket, history, ordinal)
        assert sorted(set(lsns(found))) == list(range(ordinal + 1, 6))
        assert sum(len(one.changes) for one in found if one.commit_lsn == 400) in {0, 9}


async def test_a_gap_is_not_stepped_over_but_what_is_before_it_can_be_had() -> None:
    bucket = MemoryBucket()
    sink = await opened(bucket)
    await snapshot(sink, 0)
    await sink.write(batch(transaction(1), transaction(2)))
    await sink.write_gap(248, "the slot was lost")
    await sink.write(batch(transaction(5)))
    with pytest.raises(Diverged, match="interrupted") as refused:
        await read_history(bucket, Until())
    assert "the slot was lost" in refused.value.detail
    assert "--to-ordinal 1 " in refused.value.hint
    history = await read_history(bucket, Until(ordinal=1))
    assert lsns(await replayed(bucket, history)) == [1, 2]
    await snapshot(sink, 5)
    history = await read_history(bucket, Until())
    assert [interruption.reason for interruption in history.skipped] == ["the slot was lost"]


async def test_a_broken_chain_is_never_replayed(bucket: MemoryBucket) -> None:
    objects = bucket.objects
    objects[log_key(2)], objects[log_key(3)] = objects[log_key(3)], objects[log_key(2)]
    with pytest.raises(DataError, match="does not follow"):
        await read_history(bucket, Until())


async def test_an_object_that_changes_after_the_walk_is_refused(bucket: MemoryBucket) -> None:
    history = await read_history(bucket, Until(ordinal=2))
    bucket.objects[log_key(3)] = bucket.objects[log_key(2)]
    with pytest.raises(DataError, match="has changed"):
        await replayed(bucket, history)


async def test_without_an_archive_there_is_no_history() -> None:
    with pytest.raises(Invalid, match="no archive yet"):
        await read_history(MemoryBucket(), Until())
