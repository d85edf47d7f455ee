"""The way to a moment: the newest snapshot before it, whole transactions after that, and nothing over a gap."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from cdc.archive.bucket.memory import MemoryBucket
from cdc.archive.format.object_key import log_key
from cdc.archive.reader.history import History, RestorePoint, read_history
from cdc.archive.writer.sink import ArchiveSink
from cdc.change import Transaction
from cdc.errors import DataError, Diverged, Invalid
from cdc.position import Epoch
from cdc.row import Row
from tests.support.transactions import (
    EPOCH,
    SOURCE,
    TURNS,
    batch,
    facts,
    in_batches,
    lsns,
    opened,
    pieces,
    right_after,
    settings,
    transaction,
)

ROWS: list[Row] = [[b"%d" % number, b"base", None, None, None] for number in range(5)]


async def snapshot(sink: ArchiveSink, number: int, rows: Sequence[Row] = ROWS) -> None:
    """The rows as they are after transaction `number`."""
    consistent_lsn = number * 100 + 50
    chunks = await sink.write_base(TURNS, in_batches(rows, 2), consistent_lsn)
    await sink.write_snapshot(consistent_lsn, chunks, [TURNS])


async def replayed(bucket: MemoryBucket, history: History, first_ordinal: int = 0) -> list[Transaction]:
    found = [pair async for pair in history.transactions(bucket, max(first_ordinal, history.first_ordinal))]
    ends = [ordinal for ordinal, one in found if one.last]
    assert ends == list(range(ends[0], ends[0] + len(ends))) if ends else True
    return [one for _, one in found]


async def replayed_across(bucket: MemoryBucket, history: History) -> list[Transaction]:
    """As `replayed`; a lost tail leaves out ordinals."""
    return [one async for _, one in history.transactions(bucket, history.first_ordinal)]


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
    history = await read_history(bucket, RestorePoint())
    assert history.base.consistent_lsn == 650
    assert [row.new for _, rows in [pair async for pair in history.chunks(bucket)] for row in rows] == ROWS
    assert lsns(await replayed(bucket, history)) == [7, 8, 9]


@pytest.mark.parametrize("ordinal", range(9))
async def test_it_ends_with_the_transaction_that_is_named(bucket: MemoryBucket, ordinal: int) -> None:
    history = await read_history(bucket, RestorePoint(ordinal=ordinal))
    first = 0 if ordinal < 6 else 6
    assert history.first_ordinal == first
    expected = [transaction(number + 1, {3: 9}.get(number, 2 if number < 3 else 1)) for number in range(9)]
    assert facts(await replayed(bucket, history)) == facts(expected[first : ordinal + 1])


@pytest.mark.parametrize("apart", [False, True])
async def test_a_commit_that_begins_where_the_last_one_ends_is_told_from_it(apart: bool) -> None:
    """At an LSN, in one segment or in several; before a snapshot that begins there, and after it."""
    bucket = MemoryBucket()
    sink = await opened(bucket)
    await snapshot(sink, 0)
    one = transaction(1)
    two = right_after(one, transaction(2))
    three = right_after(two, transaction(3))
    for written in [[one], [two]] if apart else [[one, two]]:
        await sink.write(batch(*written))
    chunks = await sink.write_base(TURNS, in_batches(ROWS, 2), two.end_lsn)
    await sink.write_snapshot(two.end_lsn, chunks, [TURNS])
    await sink.write(batch(three))
    for lsn, expected in {one.commit_lsn: [one], two.commit_lsn: [one, two], three.commit_lsn: [three]}.items():
        history = await read_history(bucket, RestorePoint(lsn=lsn))
        assert facts(await replayed(bucket, history)) == facts(expected)


async def test_it_goes_on_within_the_log_at_any_ordinal(bucket: MemoryBucket) -> None:
    history = await read_history(bucket, RestorePoint(ordinal=4))
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
        await read_history(bucket, RestorePoint())
    assert "the slot was lost" in refused.value.detail
    assert "--to-ordinal 1 " in refused.value.hint
    history = await read_history(bucket, RestorePoint(ordinal=1))
    assert lsns(await replayed(bucket, history)) == [1, 2]
    await snapshot(sink, 5)
    history = await read_history(bucket, RestorePoint())
    assert [interruption.reason for interruption in history.skipped] == ["the slot was lost"]


async def forked(bucket: MemoryBucket, switch_lsn: int) -> ArchiveSink:
    """The writer on a new timeline, which left the archived one there."""
    sink = ArchiveSink(bucket, settings())
    await sink.open()
    timeline = (sink.tail.source.epoch.timeline if sink.tail else 0) + 1
    await sink.write_fork(replace(SOURCE, epoch=Epoch(EPOCH.system_identifier, timeline)), switch_lsn, "promoted")
    return sink


def later(number: int) -> Transaction:
    """Committed after everything else, whatever its LSN."""
    one = transaction(number)
    one.commit_time_us += 10**6
    return one


@pytest.fixture
async def lost() -> MemoryBucket:
    """An empty snapshot, 1 to 5 of which 4 and 5 are a lost tail, a fork; then others with the LSNs of 4 and 6."""
    bucket = MemoryBucket()
    sink = await opened(bucket)
    await snapshot(sink, 0, [])
    await sink.write(batch(transaction(1), transaction(2), transaction(3), transaction(4)))
    for piece in pieces(5, 9, of=3):
        await sink.write(batch(piece))
    sink = await forked(bucket, 348)
    await sink.write(batch(later(4), later(6)))
    return bucket


@pytest.mark.parametrize(
    ("until", "there"),
    [
        (RestorePoint(), [1, 2, 3, 4, 6]),
        (RestorePoint(ordinal=6), [1, 2, 3, 4, 6]),
        (RestorePoint(ordinal=5), [1, 2, 3, 4]),
        (RestorePoint(lsn=200), [1, 2]),
        (RestorePoint(lsn=399), [1, 2, 3]),
        (RestorePoint(lsn=400), [1, 2, 3, 4]),
        (RestorePoint(time_us=later(6).commit_time_us), [1, 2, 3, 4, 6]),
        (RestorePoint(time_us=later(4).commit_time_us), [1, 2, 3, 4]),
    ],
    ids=["end", "ordinal 6", "ordinal 5", "lsn 200", "lsn 399", "lsn 400", "time of 6", "time of 4"],
)
async def test_behind_a_fork_its_lost_tail_never_happened(
    lost: MemoryBucket, until: RestorePoint, there: list[int]
) -> None:
    history = await read_history(lost, until)
    found = [pair async for pair in history.transactions(lost, history.first_ordinal)]
    assert lsns([one for _, one in found if one.last]) == there
    of_4 = {one.commit_time_us for _, one in found if one.commit_lsn == 400}
    assert of_4 == ({later(4).commit_time_us} if 4 in there else set())
    assert [(fork.lsn, fork.lost_ordinal, fork.next_ordinal) for fork in history.forks] == [(348, 0, 5)]
    assert "left out: a fork at 0/15C" in "".join(history.remarks())


@pytest.mark.parametrize("with_snapshot", [False, True])
async def test_at_the_switch_point_a_commit_is_lost_and_a_snapshot_is_not(with_snapshot: bool) -> None:
    """The commit's record begins there; the snapshot shows what was committed before."""
    bucket = MemoryBucket()
    sink = await opened(bucket)
    await snapshot(sink, 0, [])
    kept = transaction(1)
    lost = right_after(kept, transaction(2))
    await sink.write(batch(kept))
    if with_snapshot:
        await sink.write_snapshot(kept.end_lsn, await sink.write_base(TURNS, in_batches([], 2), kept.end_lsn), [TURNS])
    await sink.write(batch(lost))
    sink = await forked(bucket, kept.end_lsn)
    await sink.write(batch(later(3)))
    history = await read_history(bucket, RestorePoint())
    assert history.base.consistent_lsn == (kept.end_lsn if with_snapshot else 50)
    assert lsns(await replayed_across(bucket, history)) == ([3] if with_snapshot else [1, 3])
    assert [(fork.lost_ordinal, fork.next_ordinal) for fork in history.forks] == [(1, 2)]


@pytest.mark.parametrize(
    "until", [RestorePoint(ordinal=4), RestorePoint(time_us=transaction(5).commit_time_us + 1)], ids=["ordinal", "time"]
)
async def test_a_moment_before_the_fork_is_one_of_the_old_timeline(lost: MemoryBucket, until: RestorePoint) -> None:
    history = await read_history(lost, until)
    assert lsns(await replayed(lost, history))[:5] == [1, 2, 3, 4, 5]
    assert history.forks == []


async def test_a_time_between_two_forks_without_a_commit_is_one_of_the_old_timeline() -> None:
    bucket = MemoryBucket()
    sink = await opened(bucket)
    await snapshot(sink, 0, [])
    await sink.write(batch(transaction(1), transaction(2), transaction(3)))
    await forked(bucket, 248)
    sink = await forked(bucket, 240)
    await sink.write(batch(later(3)))
    history = await read_history(bucket, RestorePoint(time_us=transaction(3).commit_time_us))
    assert lsns(await replayed(bucket, history)) == [1, 2, 3]
    history = await read_history(bucket, RestorePoint(time_us=later(3).commit_time_us))
    found = [pair async for pair in history.transactions(bucket, 0)]
    assert [(ordinal, one.commit_lsn) for ordinal, one in found] == [(0, 100), (1, 200), (3, 300)]
    assert [fork.lost_ordinal for fork in history.forks] == [0, 0]


async def test_several_forks_that_lost_nothing_are_one_history() -> None:
    """The archive may be behind the switch point: what lies between was read on the new timeline."""
    bucket = MemoryBucket()
    sink = await opened(bucket)
    await snapshot(sink, 0)
    await sink.write(batch(transaction(1)))
    sink = await forked(bucket, 348)
    await sink.write(batch(transaction(2), transaction(3), transaction(4)))
    sink = await forked(bucket, 10_000)
    await sink.write(batch(transaction(5)))
    for number in range(1, 6):
        history = await read_history(bucket, RestorePoint(lsn=number * 100))
        assert lsns(await replayed(bucket, history)) == list(range(1, number + 1))
        assert all(fork.lost_ordinal == fork.next_ordinal for fork in history.forks)


async def test_a_snapshot_of_a_lost_tail_is_no_state_behind_it() -> None:
    bucket = MemoryBucket()
    sink = await opened(bucket)
    await sink.write(batch(transaction(1), transaction(2)))
    await snapshot(sink, 2)
    sink = await forked(bucket, 148)
    with pytest.raises(Diverged, match="interrupted"):
        await read_history(bucket, RestorePoint())
    await snapshot(sink, 3)
    history = await read_history(bucket, RestorePoint())
    assert history.base.consistent_lsn == 350
    assert "a fork at" in "".join(history.remarks())


async def test_a_broken_chain_is_never_replayed(bucket: MemoryBucket) -> None:
    objects = bucket.objects
    objects[log_key(2)], objects[log_key(3)] = objects[log_key(3)], objects[log_key(2)]
    with pytest.raises(DataError, match="does not follow"):
        await read_history(bucket, RestorePoint())


async def test_an_object_that_changes_after_the_walk_is_refused(bucket: MemoryBucket) -> None:
    history = await read_history(bucket, RestorePoint(ordinal=2))
    bucket.objects[log_key(3)] = bucket.objects[log_key(2)]
    with pytest.raises(DataError, match="has changed"):
        await replayed(bucket, history)


async def test_without_an_archive_there_is_no_history() -> None:
    with pytest.raises(Invalid, match="no archive yet"):
        await read_history(MemoryBucket(), RestorePoint())
