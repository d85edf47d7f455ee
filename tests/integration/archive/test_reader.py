"""Reading the archive back: after any position, across parts, and without what crashes left behind."""

from collections.abc import AsyncIterator

import pytest

from cdc.archive.bucket.memory import MemoryBucket
from cdc.archive.format.object_key import HINT_KEY, log_key
from cdc.archive.reader.reader import cat_lines, list_segments
from cdc.archive.reader.tail import read_tail
from cdc.change import Transaction
from cdc.errors import DataError, Diverged, Moved
from cdc.position import Epoch, Position
from tests.support.transactions import (
    EPOCH,
    OUTBOX,
    archived,
    batch,
    facts,
    lsns,
    opened,
    pieces,
    right_after,
    transaction,
)


@pytest.fixture
async def bucket() -> MemoryBucket:
    """Fences, data, coverage, abandoned parts and a large transaction: 1 to 40, of which 20 came in pieces."""
    bucket = MemoryBucket()
    sink = await opened(bucket)
    for number in range(1, 20):
        await sink.write(batch(transaction(number, 2)))
        if number % 5 == 0:
            await sink.write_coverage(number * 100 + 50)
    large = pieces(20, 12, of=3)
    await sink.write(batch(large[0]))
    await sink.write(batch(large[1]))
    sink = await opened(bucket)
    for piece in large:
        await sink.write(batch(piece))
    for number in range(21, 41, 3):
        await sink.write(batch(*(transaction(n, 2) for n in range(number, min(number + 3, 41)))))
    return bucket


def everything() -> list[Transaction]:
    return [transaction(number, 12 if number == 20 else 2) for number in range(1, 41)]


async def test_all_transactions_are_read_in_order(bucket: MemoryBucket) -> None:
    assert facts(await archived(bucket)) == facts(everything())


@pytest.mark.parametrize("number", range(41))
async def test_reading_goes_on_after_any_transaction(bucket: MemoryBucket, number: int) -> None:
    after = Position(EPOCH, number * 100 + 48)
    assert facts(await archived(bucket, after)) == facts(everything()[number:])


async def test_reading_goes_on_with_a_commit_that_begins_where_the_last_one_ends() -> None:
    bucket = MemoryBucket()
    sink = await opened(bucket)
    history = [transaction(1)]
    for number in range(2, 6):
        history.append(right_after(history[-1], transaction(number)))
    await sink.write(batch(*history[:3]))
    await sink.write(batch(*history[3:]))
    for count, one in enumerate(history, 1):
        assert facts(await archived(bucket, Position(EPOCH, one.end_lsn))) == facts(history[count:])


@pytest.mark.parametrize("seq", range(13))
async def test_reading_goes_on_within_a_large_transaction(bucket: MemoryBucket, seq: int) -> None:
    found = await archived(bucket, Position(EPOCH, 1948, part_commit_lsn=2000, part_seq=seq))
    large = [one for one in found if one.commit_lsn == 2000]
    assert large[0].first_seq == seq
    assert [change.seq for one in large for change in one.changes] == list(range(seq, 12))
    assert [one.last for one in large] == [False] * (len(large) - 1) + [True]
    assert large[-1].end_lsn == 2048
    assert lsns(found)[len(large) :] == list(range(21, 41))


async def test_reading_goes_on_within_a_transaction_that_the_archive_holds_whole() -> None:
    bucket = MemoryBucket()
    sink = await opened(bucket)
    await sink.write(batch(transaction(1), transaction(2, 10)))
    found = await archived(bucket, Position(EPOCH, 148, part_commit_lsn=200, part_seq=7))
    assert [(one.first_seq, one.last, len(one.changes)) for one in found] == [(7, True, 3)]


async def test_a_large_transaction_that_is_still_being_written_is_waited_for() -> None:
    bucket = MemoryBucket()
    sink = await opened(bucket)
    first, second, last = pieces(2, 9, of=3)
    await sink.write(batch(transaction(1), first))
    await sink.write(batch(second))
    assert lsns(await archived(bucket)) == [1]
    await sink.write(batch(last, transaction(3)))
    assert facts(await archived(bucket, Position(EPOCH, 148))) == facts([transaction(2, 9), transaction(3)])


async def test_a_series_that_ends_while_it_is_looked_at_is_not_skipped() -> None:
    bucket = MemoryBucket()
    sink = await opened(bucket)
    first, second, last = pieces(1, 9, of=3)
    await sink.write(batch(first))
    await sink.write(batch(second))

    class Racing(MemoryBucket):
        """The writer goes on the moment that the reader has seen the end."""

        async def get(self, key: str) -> bytes | None:
            body = await super().get(key)
            if body is None:
                await sink.write(batch(last, transaction(2)))
            return body

    racing = Racing()
    racing.objects = bucket.objects
    assert await archived(racing) == []
    assert facts(await archived(racing)) == facts([transaction(1, 9), transaction(2)])


async def test_a_series_that_grows_while_its_beginning_is_sought_is_not_skipped() -> None:
    """Found by the simulation (seed 37208): the cache lacked a whole transaction, and its checkpoint said otherwise."""
    bucket = MemoryBucket()
    sink = await opened(bucket)
    first, second, last = pieces(2, 9, of=3)
    await sink.write(batch(transaction(1), first))

    class Racing(MemoryBucket):
        """The writer goes on the moment that the reader has found the end."""

        async def get(self, key: str) -> bytes | None:
            if writing and key != HINT_KEY:
                await sink.write(batch(writing.pop()))
            return await super().get(key)

    writing = [second]
    racing = Racing()
    racing.objects = bucket.objects
    assert await archived(racing, Position(EPOCH, 148)) == []
    assert not writing
    writing = [last]
    assert facts(await archived(racing, Position(EPOCH, 148))) == facts([transaction(2, 9)])
    await sink.write(batch(transaction(3)))
    assert facts(await archived(bucket, Position(EPOCH, 148))) == facts([transaction(2, 9), transaction(3)])


async def test_an_empty_archive_gives_nothing() -> None:
    assert await archived(MemoryBucket()) == []
    assert await archived(MemoryBucket(), Position(EPOCH, 100)) == []
    assert await read_tail(MemoryBucket()) is None


async def test_transactions_do_not_lead_across_a_gap_or_a_snapshot(bucket: MemoryBucket) -> None:
    sink = await opened(bucket)
    await sink.write_gap(4048, "slot lost")
    await sink.write_snapshot(9000, [], [OUTBOX])
    await sink.write(batch(transaction(90)))
    assert lsns(await archived(bucket, Position(EPOCH, 9000))) == [90]
    with pytest.raises(Moved, match="snapshot"):
        await archived(bucket, Position(EPOCH, 4048))
    with pytest.raises(Moved, match="gap"):
        await archived(bucket, Position(EPOCH, 100))


async def test_a_position_of_another_cluster_is_refused(bucket: MemoryBucket) -> None:
    with pytest.raises(Diverged):
        await archived(bucket, Position(Epoch("999", 1), 100))


async def test_an_object_under_another_key_is_refused(bucket: MemoryBucket) -> None:
    bucket.objects[log_key(3)] = bucket.objects[log_key(2)]
    with pytest.raises(DataError, match="says that it is segment 2"):
        await archived(bucket)


async def test_segments_are_listed_with_their_headers(bucket: MemoryBucket) -> None:
    listed = [facts async for facts in list_segments(bucket)]
    assert [one.header.seq for one in listed] == list(range(len(listed)))
    assert [one.header.prev_sha256 for one in listed[1:]] == [one.sha256 for one in listed[:-1]]
    assert [one.nbytes for one in listed] == [len(bucket.objects[one.key]) for one in listed]
    some = [one.header.seq async for one in list_segments(bucket, 3, 5)]
    assert some == [3, 4, 5]


async def collected(lines: AsyncIterator[bytes]) -> list[bytes]:
    return [line async for line in lines]


async def test_lines_are_read_as_they_lie(bucket: MemoryBucket) -> None:
    lines = await collected(cat_lines(bucket, 1, 2))
    assert [line.split(b'"seq":')[0] for line in lines] == [b'{"ord":0,"lsn":"0/64",'] * 2 + [
        b'{"ord":1,"lsn":"0/C8",'
    ] * 2
    assert await collected(cat_lines(bucket, 1, 2, table="public.turns")) == lines
    assert await collected(cat_lines(bucket, 1, 2, table="public.outbox")) == []
