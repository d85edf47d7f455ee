"""A sink's queue: bounded, droppable, and honest about from where on it is complete."""

import asyncio
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from cdc.change import LogicalMessage, Transaction
from cdc.pipeline.queue import Since, TransactionQueue
from cdc.position import Epoch, Position

EPOCH = Epoch("1", 1)


def whole(number: int, nbytes: int = 10) -> Transaction:
    return piece(number, 0, last=True, nbytes=nbytes)


def piece(number: int, first_seq: int, *, last: bool, nbytes: int = 10) -> Transaction:
    lsn = number * 100
    change = LogicalMessage(first_seq, "test", b"", transactional=True)
    end_lsn = lsn + 10 if last else 0
    return Transaction(number, lsn, 0, [change], first_seq=first_seq, end_lsn=end_lsn, last=last, nbytes=nbytes)


def at(lsn: int, part_commit_lsn: int = 0, part_seq: int = 0) -> Position:
    return Position(EPOCH, lsn, part_commit_lsn, part_seq)


async def test_it_gives_what_waits_in_order_up_to_a_size() -> None:
    queue = TransactionQueue(100)
    queue.put([whole(1), whole(2), whole(3)])
    assert [t.xid for t in queue.pop(20)] == [1, 2]
    assert [t.xid for t in queue.pop(20)] == [3]
    assert len(queue.pop(20)) == 0
    assert queue.nbytes == 0


async def test_it_gives_one_transaction_even_if_that_is_larger_than_asked_for() -> None:
    queue = TransactionQueue(100)
    queue.put([whole(1, nbytes=500)])
    assert len(queue.pop(20)) == 1


async def test_room_comes_when_it_is_below_its_limit() -> None:
    queue = TransactionQueue(15)
    queue.put([whole(1), whole(2)])
    waiting = asyncio.ensure_future(queue.room())
    await asyncio.sleep(0)
    assert queue.full
    assert not waiting.done()
    queue.pop(10)
    await asyncio.wait_for(waiting, 5)


async def test_gather_waits_for_company_but_not_after_its_time() -> None:
    queue = TransactionQueue(1000)
    queue.put([whole(1)])
    await asyncio.wait_for(queue.gather(500, 0.0), 5)
    gathering = asyncio.ensure_future(queue.gather(500, time.monotonic() + 3600))
    await asyncio.sleep(0.06)
    assert not gathering.done()
    queue.put([whole(2, nbytes=600)])
    await asyncio.wait_for(gathering, 5)


async def test_after_a_drop_it_is_complete_from_the_last_whole_transaction_on() -> None:
    queue = TransactionQueue(100)
    queue.put([whole(1), whole(2)])
    queue.drop()
    assert queue.since == Since(210)
    queue.put([whole(3)])
    assert [t.xid for t in queue.pop(100)] == [3]


async def test_a_drop_inside_a_transaction_passes_over_its_other_pieces() -> None:
    queue = TransactionQueue(100)
    queue.put([whole(1), piece(2, 0, last=False)])
    queue.drop()
    assert not queue.since.reached_by(at(1 << 60))
    queue.put([piece(2, 1, last=False), piece(2, 2, last=True), whole(3)])
    assert queue.since == Since(210)
    assert [t.xid for t in queue.pop(100)] == [3]


async def test_a_close_forgets_the_transaction_that_will_never_be_whole() -> None:
    queue = TransactionQueue(100)
    queue.put([whole(1), piece(2, 0, last=False), piece(2, 1, last=False)])
    queue.close()
    assert [t.xid for t in queue.pop(100)] == [1]
    assert queue.empty


async def test_a_drop_wakes_the_reader_who_has_to_go_elsewhere() -> None:
    queue = TransactionQueue(100)
    waiting = asyncio.ensure_future(queue.wait())
    await asyncio.sleep(0)
    queue.drop()
    await asyncio.wait_for(waiting, 5)


def test_a_position_inside_a_large_transaction_reaches_only_a_queue_that_goes_on_there() -> None:
    since = Since(110, part_commit_lsn=200, part_seq=3)
    assert since.reached_by(at(110, 200, 3))
    assert since.reached_by(at(110, 200, 4))
    assert since.reached_by(at(210))
    assert not since.reached_by(at(110, 200, 2))
    assert not since.reached_by(at(110))
    assert not since.reached_by(at(150)), "covering WAL without changes is not having the transaction's first pieces"
    assert not since.reached_by(at(200)), "the transaction before may end where this one's commit record begins"


@st.composite
def streams(draw: st.DrawFn) -> list[Transaction]:
    pieces: list[Transaction] = []
    for number in range(1, draw(st.integers(1, 12)) + 1):
        count = draw(st.integers(1, 4))
        pieces += [piece(number, seq, last=seq == count - 1) for seq in range(count)]
    return pieces


@settings(max_examples=300, deadline=None)
@given(streams(), st.data())
def test_a_reader_who_reaches_since_misses_nothing(stream: list[Transaction], data: st.DataObject) -> None:
    """Whatever is put, dropped and taken: what a reader at `since` is then given is the rest of the stream, whole."""

    async def play() -> None:
        queue = TransactionQueue(1000)
        left = list(stream)
        while left:
            count = data.draw(st.integers(1, 5))
            queue.put(left[:count])
            del left[:count]
            match data.draw(st.sampled_from(["nothing", "drop", "pop"])):
                case "drop":
                    queue.drop()
                case "pop":
                    queue.pop(data.draw(st.integers(1, 60)))
        since = queue.since
        expected = [
            (t.commit_lsn, t.first_seq)
            for t in stream
            if t.commit_lsn > since.lsn and not (t.commit_lsn == since.part_commit_lsn and t.first_seq < since.part_seq)
        ]
        assert [(t.commit_lsn, t.first_seq) for t in queue.pop(1 << 30)] == expected

    asyncio.run(play())
