"""What a starting writer finds behind the tail: where one last looked, and a snapshot that a fork left behind."""

from dataclasses import replace

import pytest

from cdc.archive.bucket.memory import MemoryBucket
from cdc.archive.reader.tail import find_lost_snapshot, read_last_look
from cdc.archive.writer.sink import ArchiveSink
from cdc.position import Epoch
from tests.support.transactions import EPOCH, SOURCE, TURNS, batch, opened, transaction


async def lost_snapshot(sink: ArchiveSink) -> int | None:
    assert sink.tail is not None
    return await find_lost_snapshot(sink.bucket, sink.tail)


async def last_look(sink: ArchiveSink) -> int:
    assert sink.tail is not None
    return await read_last_look(sink.bucket, sink.tail)


async def test_a_snapshot_of_the_lost_tail_is_found_until_something_is_written() -> None:
    bucket = MemoryBucket()
    sink = await opened(bucket)
    await sink.write_snapshot(150, [], [TURNS])
    await sink.write(batch(transaction(2), transaction(3)))
    for timeline, switch_lsn, lost in ((2, 348, None), (3, 150, None), (4, 149, 149)):
        source = replace(SOURCE, epoch=Epoch(EPOCH.system_identifier, timeline))
        await sink.open()
        assert await lost_snapshot(sink) is None
        await sink.write_fork(source, switch_lsn, "promoted")
        assert await lost_snapshot(sink) == lost
        await sink.open()
        await sink.fence(source)  # as a start does that is killed before it records the gap
        assert await lost_snapshot(sink) == lost
    await sink.write_gap(149, "the snapshot was lost")
    assert await lost_snapshot(sink) is None


@pytest.mark.parametrize("segments", [3, 100])
async def test_where_a_writer_last_looked_is_found_from_near_and_far(segments: int) -> None:
    bucket = MemoryBucket()
    await (await opened(bucket)).write(batch(transaction(1)))
    sink = await opened(bucket)
    assert await last_look(sink) == transaction(1).end_lsn
    for number in range(2, segments):
        await sink.write(batch(transaction(number)))
    assert await last_look(sink) == transaction(1).end_lsn
    covered = await sink.write_coverage(transaction(segments).end_lsn)
    assert await last_look(sink) == covered
