"""The writer of the archive: fenced, one PUT in flight, the same bytes for ever, whole transactions in order."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from cdc.archive.bucket.bucket import AlreadyExists
from cdc.archive.bucket.memory import MemoryBucket
from cdc.archive.format.header import Header, Source
from cdc.archive.format.object_key import HINT_KEY, log_key
from cdc.archive.format.segment import decode_segment, decode_segment_header
from cdc.archive.proof.audit import verify
from cdc.archive.reader.hint import encode_hint
from cdc.archive.reader.tail import find_last_seq
from cdc.archive.writer.sink import ArchiveSink
from cdc.change import Column, LogicalMessage, Relation, Transaction
from cdc.errors import DataError, Diverged, Fenced, Moved, Unavailable
from cdc.position import Epoch, Position
from tests.support.transactions import (
    EPOCH,
    OUTBOX,
    SOURCE,
    TURNS,
    archived,
    batch,
    created,
    facts,
    in_batches,
    lsns,
    opened,
    pieces,
    settings,
    transaction,
    with_changes,
    write_chunk,
)


class FaultyBucket(MemoryBucket):
    """A bucket that fails where `fault` says so: before it applies a PUT, or after."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[str], bool] = lambda key: False
        self.after: Callable[[str], bool] = lambda key: False
        self.in_flight = self.most_in_flight = 0
        self.attempts: list[tuple[str, bytes]] = []
        self.delay_s = 0.0
        self.heads = 0

    async def create(self, key: str, body: bytes) -> None:
        self.attempts.append((key, body))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.delay_s)
            if self.before(key):
                raise Unavailable("down")
            await super().create(key, body)
            if self.after(key):
                raise Unavailable("the answer is lost")
        finally:
            self.in_flight -= 1

    async def head(self, key: str) -> int | None:
        self.heads += 1
        return await super().head(key)


@pytest.fixture
def bucket() -> FaultyBucket:
    return FaultyBucket()


def headers(bucket: MemoryBucket) -> list[Header]:
    return [decode_segment_header(body) for key, body in sorted(bucket.objects.items()) if key.startswith("log/")]


def kinds(bucket: MemoryBucket) -> list[str]:
    return [header.kind for header in headers(bucket)]


def times(count: int) -> Callable[[str], bool]:
    left = [count]

    def due(key: str) -> bool:
        left[0] -= 1
        return left[0] >= 0

    return due


async def assert_intact(bucket: MemoryBucket) -> None:
    assert (await verify(bucket)).findings == []


class TestOpening:
    async def test_an_empty_archive_has_no_position(self, bucket: FaultyBucket) -> None:
        sink = ArchiveSink(bucket, settings())
        assert await sink.open() is None
        assert sink.covered_upto == 0

    async def test_an_archive_with_fences_only_has_no_position(self, bucket: FaultyBucket) -> None:
        await opened(bucket)
        assert await ArchiveSink(bucket, settings()).open() is None

    async def test_a_written_archive_says_where_it_is(self, bucket: FaultyBucket) -> None:
        first = await opened(bucket)
        assert await first.write(batch(transaction(1), transaction(2))) == 248
        sink = ArchiveSink(bucket, settings())
        assert await sink.open() == Position(EPOCH, 248)
        assert sink.tail == first.tail
        assert sink.tail is not None
        assert (sink.tail.next_ordinal, sink.tail.last_commit_lsn) == (2, 200)

    @pytest.mark.parametrize("segments", [0, 1, 2, 3, 4, 7, 8, 9, 31, 32, 33])
    @pytest.mark.parametrize("hint", [None, b"nonsense", b'{"seq":-1}', encode_hint(2), encode_hint(10**6)])
    async def test_the_tail_is_found_with_any_hint(self, segments: int, hint: bytes | None) -> None:
        bucket = FaultyBucket()
        for seq in range(segments):
            bucket.objects[log_key(seq)] = b""
        if hint is not None:
            bucket.objects[HINT_KEY] = hint
        assert await find_last_seq(bucket) == (segments - 1 if segments else None)

    async def test_the_tail_of_a_long_archive_is_found_with_few_requests(self, bucket: FaultyBucket) -> None:
        bucket.objects = {log_key(seq): b"" for seq in range(5000)}
        assert await find_last_seq(bucket) == 4999
        assert bucket.heads <= 30
        bucket.heads, bucket.objects[HINT_KEY] = 0, encode_hint(4990)
        assert await find_last_seq(bucket) == 4999
        assert bucket.heads <= 10

    async def test_a_hole_is_not_taken_for_the_end(self, bucket: FaultyBucket) -> None:
        bucket.objects = {log_key(seq): b"" for seq in range(20) if seq != 6}
        with pytest.raises(DataError, match="segment 6 is missing"):
            await find_last_seq(bucket)

    async def test_an_archive_without_its_beginning_is_not_empty(self, bucket: FaultyBucket) -> None:
        bucket.objects = {log_key(5): b""}
        with pytest.raises(DataError, match="segment 0 is missing"):
            await find_last_seq(bucket)

    async def test_a_damaged_tail_is_not_continued(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        await sink.write(batch(transaction(1)))
        whole = dict(bucket.objects)
        for damage in ({log_key(1): whole[log_key(1)][:-1]}, {log_key(0): whole[log_key(0)] + b"x"}):
            bucket.objects = whole | damage
            with pytest.raises(DataError):
                await ArchiveSink(bucket, settings()).open()

    async def test_closing_leaves_a_hint(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        await sink.write(batch(transaction(1)))
        await sink.close()
        assert json.loads(bucket.objects[HINT_KEY]) == {"seq": 1}
        await sink.close()


class TestFencing:
    async def test_writing_wants_a_fence(self, bucket: FaultyBucket) -> None:
        sink = ArchiveSink(bucket, settings())
        with pytest.raises(Moved):
            await sink.fence(SOURCE)
        await sink.open()
        for write in (sink.write(batch(transaction(1))), sink.write_coverage(5)):
            with pytest.raises(Moved):
                await write

    async def test_a_fenced_writer_changes_nothing_and_ends(self, bucket: FaultyBucket) -> None:
        old = await opened(bucket)
        await old.write(batch(transaction(1)))
        new = await opened(bucket)
        before = dict(bucket.objects)
        with pytest.raises(Fenced) as caught:
            await old.write(batch(transaction(2)))
        assert bucket.objects == before
        assert caught.value.exit_code == 75
        with pytest.raises(Moved):
            await old.write_coverage(10_000)
        await new.write(batch(transaction(2)))
        assert lsns(await archived(bucket)) == [1, 2]
        assert [header.writer.epoch for header in headers(bucket)] == [1, 1, 2, 2]
        await assert_intact(bucket)

    async def test_a_fence_that_is_overtaken_goes_behind_the_new_tail(self, bucket: FaultyBucket) -> None:
        old = await opened(bucket)
        new = ArchiveSink(bucket, settings())
        await new.open()
        await old.write(batch(transaction(1)))
        await new.fence(SOURCE)
        assert new.covered_upto == 148
        await new.write(batch(transaction(1), transaction(2)))
        assert lsns(await archived(bucket)) == [1, 2]
        await assert_intact(bucket)

    async def test_a_fence_that_is_overtaken_on_another_timeline_wants_to_look_again(
        self, bucket: FaultyBucket
    ) -> None:
        """Perhaps it is our own late fence of before a failover: a fork leads on, and only `open` finds that out."""
        late = ArchiveSink(bucket, settings())
        sink = ArchiveSink(bucket, settings())
        await sink.open()
        await late.open()
        await late.fence(SOURCE)
        with pytest.raises(Unavailable, match="another timeline"):
            await sink.fence(Source(epoch=Epoch(EPOCH.system_identifier, 2), database="chat"))
        assert kinds(bucket) == ["fence"]

    async def test_two_first_writers_make_one_archive(self, bucket: FaultyBucket) -> None:
        sinks = [ArchiveSink(bucket, settings()) for _ in range(5)]
        for sink in sinks:
            await sink.open()
        await asyncio.gather(*(sink.fence(SOURCE) for sink in sinks))
        assert len({header.archive for header in headers(bucket)}) == 1
        ends = await asyncio.gather(*(sink.write(batch(transaction(1))) for sink in sinks), return_exceptions=True)
        assert sorted(type(end).__name__ for end in ends) == ["Fenced"] * 4 + ["int"]
        await assert_intact(bucket)

    async def test_a_fence_whose_answer_is_lost_may_be_tried_again(self, bucket: FaultyBucket) -> None:
        bucket.after = times(1)
        sink = ArchiveSink(bucket, settings())
        await sink.open()
        with pytest.raises(Unavailable):
            await sink.fence(SOURCE)
        await sink.open()
        await sink.fence(SOURCE)
        await sink.write(batch(transaction(1)))
        await assert_intact(bucket)

    @pytest.mark.parametrize(
        ("source", "match"),
        [
            (Source(epoch=Epoch("999", 1), database="chat"), "another cluster"),
            (Source(epoch=EPOCH, database="other"), "another database"),
            (Source(epoch=Epoch(EPOCH.system_identifier, 2), database="chat"), "timeline"),
        ],
    )
    async def test_another_history_is_a_persons_matter(self, bucket: FaultyBucket, source: Source, match: str) -> None:
        await opened(bucket)
        sink = ArchiveSink(bucket, settings())
        await sink.open()
        with pytest.raises(Diverged, match=match) as caught:
            await sink.fence(source)
        assert caught.value.exit_code == 78
        assert caught.value.hint
        assert kinds(bucket) == ["fence"]

    async def test_a_fork_begins_a_new_epoch(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        await sink.write(batch(transaction(1), transaction(5)))
        source = Source(epoch=Epoch(EPOCH.system_identifier, 2), database="chat")
        sink = ArchiveSink(bucket, settings())
        await sink.open()
        await sink.write_fork(source, 300, "promoted")
        await sink.write(batch(transaction(4)))
        assert lsns(await archived(bucket)) == [1, 5, 4]
        fork = headers(bucket)[2].fork
        assert fork is not None
        assert (fork.previous, fork.switch_lsn) == (EPOCH, 300)
        await assert_intact(bucket)

    async def test_of_two_that_record_a_fork_one_does(self, bucket: FaultyBucket) -> None:
        await opened(bucket)
        source = Source(epoch=Epoch(EPOCH.system_identifier, 2), database="chat")
        first, second = ArchiveSink(bucket, settings()), ArchiveSink(bucket, settings())
        await first.open()
        await second.open()
        await first.write_fork(source, 300, "promoted")
        with pytest.raises(Unavailable, match="another service has recorded the fork"):
            await second.write_fork(source, 300, "promoted")
        assert kinds(bucket) == ["fence", "fork"]


class TestWriting:
    async def test_what_is_written_comes_back(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        history = [transaction(number, number) for number in range(1, 30)]
        assert await sink.write(batch(*history[:10])) == history[9].end_lsn
        assert await sink.write(batch(*history[10:])) == history[-1].end_lsn
        assert facts(await archived(bucket)) == facts(history)
        assert kinds(bucket) == ["fence", "data", "data"]
        await assert_intact(bucket)

    async def test_a_replay_has_no_effect(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        await sink.write(batch(transaction(1), transaction(2)))
        assert await sink.write(batch(transaction(1), transaction(2))) == 248
        sink = await opened(bucket)
        assert await sink.write(batch(transaction(2), transaction(3))) == 348
        assert lsns(await archived(bucket)) == [1, 2, 3]
        await assert_intact(bucket)

    async def test_segments_are_of_bounded_size(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket, segment_bytes=64 * 1024)
        await sink.write(batch(*(transaction(number, nbytes=30_000) for number in range(1, 8))))
        assert [header.transactions for header in headers(bucket)] == [0, 2, 2, 2, 1]
        assert lsns(await archived(bucket)) == list(range(1, 8))

    async def test_coverage_only_goes_forward(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        await sink.write(batch(transaction(1)))
        assert await sink.write_coverage(5000) == 5000
        assert await sink.write_coverage(4000) == 5000
        assert kinds(bucket) == ["fence", "data", "coverage"]
        assert await ArchiveSink(bucket, settings()).open() == Position(EPOCH, 5000)

    async def test_a_message_outside_transactions_is_its_own_transaction(self, bucket: FaultyBucket) -> None:

        message = Transaction(0, 250, 1, [LogicalMessage(0, "p", b"c", transactional=False)], end_lsn=250)
        sink = await opened(bucket)
        await sink.write(batch(transaction(1), message, transaction(3)))
        assert facts(await archived(bucket)) == facts([transaction(1), message, transaction(3)])
        assert facts(await archived(bucket, Position(EPOCH, 250))) == facts([transaction(3)])
        await assert_intact(bucket)

    async def test_the_loop_is_not_held(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        turner = asyncio.create_task(turn())
        await sink.write(batch(transaction(1, 20_000)))
        turner.cancel()
        assert turns >= 20_000 / 128


class TestLargeTransactions:
    async def test_pieces_go_out_as_parts_and_count_with_the_last(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        first, second, third = pieces(2, 9, of=3)
        assert await sink.write(batch(transaction(1), first)) == 148
        assert await sink.write(batch(second)) == 148
        assert lsns(await archived(bucket)) == [1]
        assert await sink.write(batch(third, transaction(3), pieces(4, 4, of=2)[0])) == 348
        assert kinds(bucket) == ["fence", "data", "part", "part", "part", "data", "part"]
        assert [header.transactions for header in headers(bucket)] == [0, 1, 0, 0, 1, 1, 0]
        assert [header.covered_upto for header in headers(bucket)] == [0, 148, 148, 148, 248, 348, 348]
        assert facts(await archived(bucket)) == facts([transaction(1), transaction(2, 9), transaction(3)])
        report = await verify(bucket)
        assert (report.findings, report.transactions, report.changes, report.abandoned_parts) == ([], 3, 13, 1)

    async def test_pieces_that_fit_together_are_no_parts(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        await sink.write(batch(transaction(1), *pieces(2, 9, of=3)))
        assert kinds(bucket) == ["fence", "data"]
        assert facts(await archived(bucket)) == facts([transaction(1), transaction(2, 9)])

    async def test_a_whole_transaction_above_the_limit_goes_out_as_parts(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket, segment_bytes=64 * 1024)
        large = transaction(2, 10, nbytes=30_000)
        assert await sink.write(batch(transaction(1), large, transaction(3))) == 348
        assert kinds(bucket) == ["fence", "data", "part", "part", "part", "part", "part", "data"]
        assert facts(await archived(bucket)) == facts([transaction(1), large, transaction(3)])
        await assert_intact(bucket)

    async def test_a_value_above_the_limit_goes_out_whole(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket, segment_bytes=64 * 1024)
        large = with_changes(2, [created(0, 1, b"x" * 20_000_000)], nbytes=20_000_000)
        await sink.write(batch(transaction(1), large, transaction(3)))
        assert kinds(bucket) == ["fence", "data", "data", "data"]
        assert facts(await archived(bucket)) == facts([transaction(1), large, transaction(3)])

    async def test_a_last_piece_may_be_empty(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        first, second = pieces(1, 4, of=2)
        second.last, second.end_lsn = False, 0
        last = Transaction(1, 100, first.commit_time_us, [], first_seq=4, end_lsn=148)
        for piece in (first, second, last):
            await sink.write(batch(piece))
        assert facts(await archived(bucket)) == facts([transaction(1, 4)])
        await assert_intact(bucket)

    async def test_abandoned_pieces_begin_again_and_are_never_read(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        first, second, third = pieces(1, 9, of=3)
        await sink.write(batch(first))
        await sink.write(batch(second))
        await sink.write(batch(first))
        sink = await opened(bucket)
        for piece in (first, second, third):
            await sink.write(batch(piece))
        await sink.write(batch(transaction(2)))
        assert facts(await archived(bucket)) == facts([transaction(1, 9), transaction(2)])
        assert [header.first_ordinal for header in headers(bucket)] == [0] * 8 + [1]
        report = await verify(bucket)
        assert (report.findings, report.abandoned_parts) == ([], 3)

    async def test_a_piece_that_does_not_follow_is_a_bug(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        first, _, third = pieces(1, 9, of=3)
        with pytest.raises(RuntimeError):
            await sink.write(batch(third))
        await sink.write(batch(first))
        with pytest.raises(RuntimeError):
            await sink.write(batch(third))

    async def test_a_transaction_there_only_in_part_is_never_covered(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        await sink.write(batch(pieces(1, 4, of=2)[0]))
        with pytest.raises(RuntimeError):
            await sink.write_coverage(5000)


class TestTrouble:
    async def test_the_same_bytes_are_tried_until_they_are_there(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        bucket.before, bucket.after = times(5), times(1)
        writing = asyncio.create_task(sink.write(batch(transaction(1))))
        was_struggling = False
        while not writing.done():
            was_struggling = was_struggling or sink.struggling
            await asyncio.sleep(0)
        assert await writing == 148
        assert (was_struggling, sink.struggling) == (True, False)
        bodies = {body for key, body in bucket.attempts if key == log_key(1)}
        assert len(bodies) == 1
        assert len(bucket.attempts) == 8
        assert bucket.most_in_flight == 1
        assert lsns(await archived(bucket)) == [1]

    async def test_our_own_bytes_under_a_taken_key_are_a_success(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        bucket.after = times(1)
        assert await sink.write(batch(transaction(1))) == 148
        assert await sink.write(batch(transaction(2))) == 248
        await assert_intact(bucket)

    async def test_a_bucket_that_contradicts_itself_is_asked_again(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        create, left = bucket.create, times(2)

        async def confused(key: str, body: bytes) -> None:
            if left(key):
                raise AlreadyExists("it says")
            await create(key, body)

        bucket.create = confused  # type: ignore[method-assign]
        assert await sink.write(batch(transaction(1))) == 148

    @pytest.mark.parametrize("landed", [True, False])
    async def test_a_write_cancelled_with_its_put_in_flight_is_settled_at_the_next_start(
        self, bucket: FaultyBucket, landed: bool
    ) -> None:
        sink = await opened(bucket)
        await sink.write(batch(transaction(1)))
        bucket.delay_s = 60.0
        writing = asyncio.create_task(sink.write(batch(transaction(2))))
        while not bucket.in_flight:
            await asyncio.sleep(0)
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing
        bucket.delay_s = 0.0
        key, body = bucket.attempts[-1]
        with pytest.raises(Moved):
            await sink.write(batch(transaction(2)))
        await sink.close()
        if landed:
            await bucket.create(key, body)
        again = await opened(bucket)
        await again.write(batch(transaction(2), transaction(3)))
        with pytest.raises(AlreadyExists):
            await bucket.create(key, body)
        assert lsns(await archived(bucket)) == [1, 2, 3]
        await assert_intact(bucket)

    async def test_a_write_cancelled_while_the_bucket_is_away_can_be_opened_again(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        bucket.before = lambda key: True
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sink.write(batch(transaction(1))), 0.2)
        assert not sink.struggling
        bucket.before = lambda key: False
        await sink.open()
        await sink.fence(SOURCE)
        await sink.write(batch(transaction(1)))
        assert lsns(await archived(bucket)) == [1]
        await assert_intact(bucket)

    async def test_a_hint_is_left_now_and_then(self, bucket: FaultyBucket, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cdc.archive.reader.hint._INTERVAL_S", 0.0)
        sink = await opened(bucket)
        for number in range(1, 40):
            await sink.write(batch(transaction(number)))
            await asyncio.sleep(0)
        hinted = json.loads(bucket.objects[HINT_KEY])["seq"]
        assert 16 <= hinted < 39
        await sink.close()
        assert json.loads(bucket.objects[HINT_KEY])["seq"] == 39

    async def test_an_idle_log_of_a_segment_a_minute_is_worth_no_hint(
        self, bucket: FaultyBucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        minutes = itertools.count(step=1.01)
        monkeypatch.setattr("cdc.archive.reader.hint.time", SimpleNamespace(monotonic=lambda: 60 * next(minutes)))
        sink = await opened(bucket)
        for number in range(1, 40):
            await sink.write(batch(transaction(number)))
            await asyncio.sleep(0)
        assert HINT_KEY not in bucket.objects

    async def test_a_hint_that_cannot_be_written_harms_nothing(self, bucket: FaultyBucket) -> None:
        async def replace(key: str, body: bytes) -> None:
            raise Unavailable("down")

        bucket.replace = replace  # type: ignore[method-assign]
        sink = await opened(bucket)
        await sink.write(batch(transaction(1)))
        await sink.close()


class TestBackfill:
    async def test_a_snapshot_record_commits_its_chunks(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        rows: list[Any] = [
            [b"%d" % number, b"\xff" if number == 3 else b"x", b"1", b"{}", b"t"] for number in range(10)
        ]
        chunks = [
            await write_chunk(sink, TURNS, rows[:4], 300),
            await write_chunk(sink, TURNS, rows[4:], 300),
            *await sink.write_base(OUTBOX, in_batches([[b"1"], [b"2"]], 1), 300),
        ]
        assert await ArchiveSink(bucket, settings()).open() is None
        assert await sink.write_snapshot(300, chunks, [TURNS, OUTBOX]) == 300
        assert [chunk.key for chunk in chunks] == [
            "base/0000000000000001/public.turns/00000000.ndjson.zst",
            "base/0000000000000001/public.turns/00000001.ndjson.zst",
            "base/0000000000000001/public.outbox/00000000.ndjson.zst",
        ]
        record = headers(bucket)[1]
        assert record.base is not None
        assert record.base.chunks == tuple(chunks)
        assert list(record.relations) == ["public.turns", "public.outbox"]
        found = [row.new for chunk in chunks[:2] for row in decode_segment(bucket.objects[chunk.key]).rows()]
        assert found == rows
        assert await ArchiveSink(bucket, settings()).open() == Position(EPOCH, 300)
        await sink.write(batch(transaction(4)))
        report = await verify(bucket)
        assert (report.findings, report.base_chunks, report.base_rows) == ([], 3, 12)

    async def test_large_tables_are_cut_into_chunks(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        rows: list[Any] = [[b"%d" % number, b"x" * 100_000, None, None, None] for number in range(200)]
        chunks = await sink.write_base(TURNS, in_batches(rows, 10), 300)
        assert [chunk.rows for chunk in chunks] == [90, 90, 20]
        assert await sink.write_base(OUTBOX, in_batches([], 1), 300) == []

    async def test_a_backfill_started_over_leaves_the_first_try_aside(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        await write_chunk(sink, OUTBOX, [[b"1"]], 300)
        sink = await opened(bucket)
        chunk = await write_chunk(sink, OUTBOX, [[b"1"], [b"2"]], 400)
        await sink.write_snapshot(400, [chunk], [OUTBOX])
        report = await verify(bucket)
        assert (report.findings, report.base_rows, report.uncommitted_chunks) == ([], 2, 1)

    async def test_an_empty_database_is_a_snapshot_too(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        assert await sink.write_snapshot(300, [], [TURNS]) == 300
        await assert_intact(bucket)

    async def test_names_that_could_break_a_path_do_not(self, bucket: FaultyBucket) -> None:

        odd = Relation(1, "../a", "b/c.d größe", "d", [Column("id", "int8", 20, -1, True)])
        chunk = await write_chunk(await opened(bucket), odd, [[b"1"]], 300)
        assert chunk.key == "base/0000000000000001/%2E%2E%2Fa.b%2Fc%2Ed%20größe/00000000.ndjson.zst"

    async def test_a_gap_is_recorded(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        await sink.write(batch(transaction(1)))
        await sink.write_gap(148, "slot lost")
        await sink.write_snapshot(900, [], [])
        assert kinds(bucket) == ["fence", "data", "gap", "snapshot"]
        await assert_intact(bucket)

    async def test_an_open_gap_is_named_by_every_header_until_a_snapshot(self, bucket: FaultyBucket) -> None:
        await (await opened(bucket)).write_gap(148, "slot lost")
        sink = await opened(bucket)
        assert [header.open_gap for header in headers(bucket)] == [None, 1, 1]
        assert (await verify(bucket)).gaps[0].closed_lsn == 0
        await sink.write_snapshot(900, [], [])
        assert sink.tail is not None
        assert sink.tail.open_gap is None
        assert (await verify(bucket)).gaps[0].closed_lsn == 900
        await assert_intact(bucket)

    async def test_changes_behind_an_open_gap_are_found(self, bucket: FaultyBucket) -> None:
        sink = await opened(bucket)
        await sink.write_gap(148, "slot lost")
        await sink.write(batch(transaction(9)))
        assert [finding.problem for finding in (await verify(bucket)).findings] == [
            "holds changes, though no snapshot has closed the gap of segment 1 yet"
        ]
