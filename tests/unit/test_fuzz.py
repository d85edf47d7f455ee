"""Fuzz: streams and archives that real servers and the real sink made, damaged. What comes out is right, or DataError.

Nothing else may come out: no other exception, no hang, and nothing that the archive could not take and give back.
CDC_FUZZ_EXAMPLES says how many damages each test tries (`make fuzz`); without it the tests are quick.
"""

import asyncio
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.bucket.memory import MemoryBucket
from cdc.archive.format.object_key import BASE, LOG
from cdc.archive.format.segment import decode_segment, decode_segment_header
from cdc.archive.proof.audit import verify
from cdc.archive.reader.reader import ArchiveReader, cat_lines
from cdc.archive.reader.tail import read_tail
from cdc.change import RowChange, Transaction
from cdc.errors import DataError
from cdc.pgoutput.assembler import Assembler
from cdc.pgoutput.frames import PAYLOAD_BEGIN
from cdc.row import Value
from tests.support.transactions import (
    OUTBOX,
    archived,
    batch,
    facts,
    opened,
    pieces,
    transaction,
    with_changes,
    write_chunk,
)
from tests.unit.archive.test_segment import DAMAGED, SOME, encode
from tests.unit.pgoutput.test_golden import PRIMARY_KEYS, VERSIONS, frames

EXAMPLES = int(os.environ.get("CDC_FUZZ_EXAMPLES", "60"))

# A hang is what pytest-timeout ends; a long budget is none.
pytestmark = pytest.mark.timeout(180 + EXAMPLES)

fuzz = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def place(data: st.DataObject, length: int) -> int:
    """Somewhere in so many bytes; half of the time near the beginning, where the structure is."""
    near = min(length, 20) if data.draw(st.booleans()) else length
    return data.draw(st.integers(0, max(0, near - 1)))


def damaged(data: st.DataObject, whole: bytes, other: bytes) -> bytes:
    """Bytes as a wrong disk, a wrong network or a wrong program leaves them."""
    at = place(data, len(whole))
    kinds = ["bit", "byte", "word", "cut", "lost", "grown", "spliced"]
    match data.draw(st.sampled_from(kinds)) if whole else "grown":
        case "bit":
            return whole[:at] + bytes([whole[at] ^ 1 << data.draw(st.integers(0, 7))]) + whole[at + 1 :]
        case "byte":
            return whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :]
        case "word":
            word = data.draw(st.sampled_from([bytes(8), b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\x80" + bytes(7)]))
            return whole[:at] + word + whole[at + 8 :]
        case "cut":
            return whole[:at]
        case "lost":
            return whole[:at] + whole[at + data.draw(st.integers(1, 40)) :]
        case "grown":
            return whole[:at] + data.draw(st.binary(min_size=1, max_size=40)) + whole[at:]
        case _:
            return whole[:at] + other[place(data, len(other)) :]


# The stream -----------------------------------------------------------------------------------------------------------


@cache
def golden(version: str) -> tuple[bytes, ...]:
    return tuple(frames(version))


def disordered(data: st.DataObject, stream: list[bytes]) -> None:
    """One frame lost, doubled, out of its place, or damaged."""
    at, other = (data.draw(st.integers(0, len(stream) - 1)) for _ in range(2))
    match data.draw(st.sampled_from(["lost", "doubled", "moved", "damaged", "damaged", "damaged"])):
        case "lost":
            del stream[at]
        case "doubled":
            stream.insert(at, stream[at])
        case "moved":
            stream.insert(other, stream.pop(at))
        case _:
            # Two of three times in the message, behind the frame's own few fields.
            begin = data.draw(st.sampled_from([0, PAYLOAD_BEGIN, PAYLOAD_BEGIN]))
            stream[at] = stream[at][:begin] + damaged(data, stream[at][begin:], stream[other][begin:])


def fed(data: st.DataObject, stream: Sequence[bytes]) -> list[Transaction]:
    """What an assembler makes of a stream that arrives in runs of any length."""
    assembler = Assembler({23: "integer"}, PRIMARY_KEYS, data.draw(st.sampled_from([1, 1000, 2**20])))
    made: list[Transaction] = []
    at = 0
    while at < len(stream):
        run = data.draw(st.sampled_from([1, 2, 7, 50, 1000]))
        made += assembler.feed(stream[at : at + run]).transactions
        at += run
    return made


def put_together(made: Sequence[Transaction]) -> list[Transaction]:
    """Whole transactions that have changes. Asserts that pieces follow one another."""
    whole: list[Transaction] = []
    gathered: list[Transaction] = []
    for piece in made:
        changes = [change for before in gathered for change in before.changes]
        assert piece.first_seq == len(changes)
        gathered.append(piece)
        if piece.last:
            changes += piece.changes
            assert [change.seq for change in changes] == list(range(len(changes)))
            if changes:
                whole.append(
                    Transaction(piece.xid, piece.commit_lsn, piece.commit_time_us, changes, end_lsn=piece.end_lsn)
                )
            gathered = []
    return whole


def is_printed_by_postgres(value: Value, type_oid: int) -> bool:
    """Whether a value of a type that becomes a JSON number or JSON itself is one. No value is parsed to archive it."""
    if not isinstance(value, bytes) or type_oid not in (20, 21, 23, 114, 700, 701, 3802):
        return True
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError:
        return value in (b"NaN", b"Infinity", b"-Infinity")
    return True


def are_printed_by_postgres(whole: Sequence[Transaction]) -> bool:
    return all(
        is_printed_by_postgres(value, column.type_oid)
        for one in whole
        for change in one.changes
        if isinstance(change, RowChange)
        for row in (change.new, change.old)
        for value, column in zip(row or (), change.relation.columns, strict=False)
    )


def check_that_the_archive_takes_it(made: Sequence[Transaction]) -> None:
    """Bytes that were archived, read back and archived again are the same bytes, or a number in them was damaged."""
    whole = put_together(made)
    if not whole:
        return
    body = encode(whole)
    try:
        again = encode(decode_segment(body).transactions())
    except DataError:
        assert not are_printed_by_postgres(whole)
    else:
        assert again == body


@pytest.mark.parametrize("version", VERSIONS)
@fuzz
@given(st.data())
def test_a_damaged_stream_gives_what_the_archive_can_hold_or_a_data_error(version: str, data: st.DataObject) -> None:
    stream = list(golden(version))
    for _ in range(data.draw(st.integers(1, 3))):
        disordered(data, stream)
    try:
        made = fed(data, stream)
    except DataError as error:
        assert error.message  # noqa: PT017
    else:
        check_that_the_archive_takes_it(made)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_archive_takes_the_stream_that_is_not_damaged(version: str) -> None:
    check_that_the_archive_takes_it(Assembler({}, PRIMARY_KEYS).feed(golden(version)).transactions)


# The archive ----------------------------------------------------------------------------------------------------------


@cache
def intact() -> dict[str, bytes]:
    """The objects of an archive with every kind of record that the sink writes."""
    bucket = MemoryBucket()
    asyncio.run(_fill(bucket))
    return dict(bucket.objects)


async def _fill(bucket: MemoryBucket) -> None:
    sink = await opened(bucket)
    chunks = [await write_chunk(sink, OUTBOX, [[b"%d" % row] for row in range(5)], 50) for _ in range(2)]
    await sink.write_snapshot(50, chunks, [OUTBOX])
    await sink.write(batch(*(transaction(number, 2) for number in range(1, 4))))
    for piece in pieces(4, 6, of=3):
        await sink.write(batch(piece))
    await sink.write(batch(with_changes(5, SOME[1].changes), transaction(6)))
    await sink.write_coverage(5000)


def keys(prefix: str) -> list[str]:
    return sorted(key for key in intact() if key.startswith(prefix))


def with_one_damaged(data: st.DataObject, key: str, other: str) -> MemoryBucket:
    bucket = MemoryBucket()
    bucket.objects.update(intact() | {key: damaged(data, intact()[key], intact()[other])})
    return bucket


async def told(bucket: Bucket) -> list[Any]:
    """All that a reader is told: transactions, lines as they lie, headers."""
    reader = ArchiveReader(bucket)
    transactions = facts(await archived(bucket))
    lines = [line async for line in cat_lines(bucket)]
    headers = [segment.header async for segment in reader.segments()]
    tail = await read_tail(bucket)
    return [transactions, lines, headers, tail and tail.covered_upto]


@cache
def told_intact() -> list[Any]:
    bucket = MemoryBucket()
    bucket.objects.update(intact())
    return asyncio.run(told(bucket))


@fuzz
@given(st.data())
def test_a_damaged_object_gives_the_reader_a_data_error_or_no_difference(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(keys(LOG)))
    bucket = with_one_damaged(data, key, key)
    try:
        found = asyncio.run(told(bucket))
    except DataError:
        return
    assert found == told_intact()


@fuzz
@given(st.data())
def test_a_damaged_object_is_found_by_verify_or_makes_no_difference(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(keys(LOG) + keys(BASE))))
    bucket = with_one_damaged(data, key, data.draw(st.sampled_from(sorted(intact()))))
    report = asyncio.run(verify(bucket))
    if report.intact and bucket.objects[key] != intact()[key]:
        # Nothing names the checksum of the last object yet; what it says must be the same.
        assert key == keys(LOG)[-1]
        assert asyncio.run(told(bucket)) == told_intact()


@pytest.mark.parametrize("decode", [decode_segment, decode_segment_header], ids=["whole", "header"])
def test_every_bit_of_an_object_may_be_wrong(decode: Any) -> None:
    right = facts(decode_segment(DAMAGED).transactions())
    header = decode_segment_header(DAMAGED)
    for at in range(len(DAMAGED)):
        for bit in range(8):
            body = DAMAGED[:at] + bytes([DAMAGED[at] ^ 1 << bit]) + DAMAGED[at + 1 :]
            try:
                found = decode(body)
            except DataError:
                continue
            if decode is decode_segment:
                assert facts(found.transactions()) == right
            else:
                assert found == header
