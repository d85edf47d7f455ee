"""Verify finds planted damage, each kind, and finds nothing in an intact archive."""

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256

import pytest

from cdc.archive.bucket.memory import MemoryBucket
from cdc.archive.format.header import Header, Writer
from cdc.archive.format.object_key import log_key
from cdc.archive.format.segment import decode_segment, encode_segment
from cdc.archive.proof.audit import AuditReport, verify
from tests.support.transactions import OUTBOX, batch, opened, pieces, transaction, write_chunk

SEGMENTS = 11


@pytest.fixture
async def bucket() -> MemoryBucket:
    """0 fence, 1 snapshot, 2 to 5 data of three transactions each, 6 to 8 parts, 9 data, 10 coverage."""
    bucket = MemoryBucket()
    sink = await opened(bucket)
    chunks = [await write_chunk(sink, OUTBOX, [[b"%d" % row] for row in range(5)], 50) for _ in range(2)]
    await sink.write_snapshot(50, chunks, [OUTBOX])
    for number in range(1, 13, 3):
        await sink.write(batch(*(transaction(n, 2) for n in range(number, number + 3))))
    for piece in pieces(13, 9, of=3):
        await sink.write(batch(piece))
    await sink.write(batch(transaction(14)))
    await sink.write_coverage(5000)
    return bucket


def problems(report: AuditReport) -> str:
    return "\n".join(f"{finding.key} {finding.problem}" for finding in report.findings)


def resealed(bucket: MemoryBucket, from_seq: int, change: Callable[[Header, list[bytes]], Header]) -> None:
    """Change a segment as a wrong program would: header, checksums and the chain behind it are right again."""
    seq = from_seq
    while (body := bucket.objects.get(log_key(seq))) is not None:
        segment = decode_segment(body)
        lines, header = segment.lines, segment.header
        if seq == from_seq:
            header = change(header, lines)
        if seq > 0:
            header = replace(header, prev_sha256=sha256(bucket.objects[log_key(seq - 1)]).hexdigest())
        texts = [line + b"\n" for line in lines]
        header = replace(header, body_bytes=sum(map(len, texts)), changes=len(texts))
        bucket.objects[log_key(seq)] = encode_segment(header, texts, 3)
        seq += 1


async def test_an_intact_archive_has_no_findings(bucket: MemoryBucket) -> None:
    seen: list[tuple[int, int]] = []
    report = await verify(bucket, progress=lambda done, total: seen.append((done, total)))
    assert report.intact
    assert (report.segments, report.transactions, report.changes) == (SEGMENTS, 14, 34)
    assert (report.base_chunks, report.base_rows, report.uncommitted_chunks, report.abandoned_parts) == (2, 10, 0, 0)
    assert report.kinds == {"fence": 1, "snapshot": 1, "data": 5, "part": 3, "coverage": 1}
    assert (report.last_seq, report.last_commit_lsn, report.covered_upto) == (10, 1400, 5000)
    assert seen == [(done, SEGMENTS) for done in range(1, SEGMENTS + 1)]


async def test_an_empty_archive_has_no_findings() -> None:
    report = await verify(MemoryBucket())
    assert report.intact
    assert report.segments == 0


@pytest.mark.parametrize("seq", range(SEGMENTS))
async def test_a_flipped_byte_is_found(bucket: MemoryBucket, seq: int) -> None:
    body = bytearray(bucket.objects[log_key(seq)])
    body[len(body) // 2] ^= 1
    bucket.objects[log_key(seq)] = bytes(body)
    assert log_key(seq) in problems(await verify(bucket))


@pytest.mark.parametrize("seq", range(SEGMENTS - 1))
async def test_a_deleted_object_is_found(bucket: MemoryBucket, seq: int) -> None:
    del bucket.objects[log_key(seq)]
    assert f"segment {seq} is missing before this one" in problems(await verify(bucket))


@pytest.mark.parametrize("seq", range(SEGMENTS - 1))
async def test_two_swapped_objects_are_found(bucket: MemoryBucket, seq: int) -> None:
    first, second = log_key(seq), log_key(seq + 1)
    bucket.objects[first], bucket.objects[second] = bucket.objects[second], bucket.objects[first]
    found = problems(await verify(bucket))
    assert f"says that it is segment {seq}" in found
    assert f"says that it is segment {seq + 1}" in found


async def test_a_segment_written_over_is_found(bucket: MemoryBucket) -> None:
    resealed(bucket, 4, lambda header, lines: header)
    segment = decode_segment(bucket.objects[log_key(4)])
    lines = [line.replace(b"hello", b"olleh") + b"\n" for line in segment.lines]
    bucket.objects[log_key(4)] = encode_segment(segment.header, lines, 3)
    assert f"{log_key(5)} does not name the SHA-256" in problems(await verify(bucket))


def skip_ordinal(header: Header, lines: list[bytes]) -> Header:
    lines[:] = [line.replace(b'"ord":4,', b'"ord":5,') for line in lines]
    return header


def begin_later(header: Header, lines: list[bytes]) -> Header:
    for old in (5, 4, 3):
        lines[:] = [line.replace(b'"ord":%d,' % old, b'"ord":%d,' % (old + 1)) for line in lines]
    return replace(header, first_ordinal=header.first_ordinal + 1)


def double_transaction(header: Header, lines: list[bytes]) -> Header:
    again = [line.replace(b'"ord":5,', b'"ord":6,') for line in lines if b'"ord":5,' in line]
    lines += again
    return replace(header, transactions=4, ends=(*header.ends, header.ends[-1]))


def reorder(header: Header, lines: list[bytes]) -> Header:
    swapped = lines[2:4] + lines[0:2] + lines[4:]
    numbers = [b'"ord":3,', b'"ord":3,', b'"ord":4,', b'"ord":4,', b'"ord":5,', b'"ord":5,']
    lines[:] = [number.join([b"{", line.split(b",", 1)[1]]) for number, line in zip(numbers, swapped, strict=True)]
    return replace(header, first_lsn=500)


def drop_change(header: Header, lines: list[bytes]) -> Header:
    del lines[0]
    return header


def drop_transaction(header: Header, lines: list[bytes]) -> Header:
    del lines[4:]
    return header


DAMAGE: list[tuple[Callable[[Header, list[bytes]], Header], str]] = [
    (skip_ordinal, "holds ordinal 5 where 4 belongs"),
    (begin_later, "begins at ordinal 4, not 3"),
    (double_transaction, "holds 0/258 after 0/258"),
    (reorder, "after 0/1F4"),
    (drop_change, "out of order or not all of them"),
    (drop_transaction, "complete transactions, its header says 3"),
    (lambda header, lines: replace(header, transactions=2), "its header says 2"),
    (lambda header, lines: replace(header, first_lsn=1), "begins with another transaction"),
    (lambda header, lines: replace(header, last_lsn=601), "ends with another transaction"),
    (lambda header, lines: replace(header, covered_upto=600), "past what its header covers"),
    (lambda header, lines: replace(header, covered_upto=9000), "covers less than the segment before it"),
    (lambda header, lines: replace(header, to_time_us=1), "other commit times"),
    (lambda header, lines: replace(header, archive="other"), "another archive"),
    (lambda header, lines: replace(header, kind="coverage"), "holds changes, though it is a coverage segment"),
    (lambda header, lines: replace(header, writer=Writer(header.writer.id, 2)), "is of writer 2, not 1"),
    (lambda header, lines: replace(header, source=replace(header.source, database="x")), "of another database"),
]


@pytest.mark.parametrize(("damage", "found"), DAMAGE)
async def test_a_segment_that_is_wrong_under_right_checksums_is_found(
    bucket: MemoryBucket, damage: Callable[[Header, list[bytes]], Header], found: str
) -> None:
    resealed(bucket, 3, damage)
    assert found in problems(await verify(bucket))


@pytest.mark.parametrize("seq", [6, 7, 8])
async def test_a_part_taken_out_is_found(bucket: MemoryBucket, seq: int) -> None:
    bodies = [bucket.objects.pop(log_key(number)) for number in range(seq, SEGMENTS)][1:]
    for number, body in enumerate(bodies, start=seq):
        segment = decode_segment(body)
        header = replace(segment.header, seq=number)
        lines = [line + b"\n" for line in segment.lines]
        bucket.objects[log_key(number)] = encode_segment(header, lines, 3)
    resealed(bucket, seq, lambda header, lines: header)
    report = await verify(bucket)
    assert not report.intact


async def test_a_foreign_object_in_the_log_is_found(bucket: MemoryBucket) -> None:
    bucket.objects["log/notes.txt"] = b""
    assert "log/notes.txt is not a segment's key" in problems(await verify(bucket))


async def test_damage_to_snapshot_rows_is_found(bucket: MemoryBucket) -> None:
    key = next(key for key in bucket.objects if key.startswith("base/"))
    body = bucket.objects[key]
    bucket.objects[key] = body[:-9] + bytes([body[-9] ^ 1]) + body[-8:]
    assert f"{key} does not have the bytes" in problems(await verify(bucket))
    segment = decode_segment(body)
    header = replace(segment.header, changes=4, body_bytes=sum(len(line) + 1 for line in segment.lines[1:]))
    bucket.objects[key] = encode_segment(header, [line + b"\n" for line in segment.lines[1:]], 3)
    assert f"{key} holds 4 rows, the snapshot record says 5" in problems(await verify(bucket))
    del bucket.objects[key]
    assert f"{key} is missing" in problems(await verify(bucket))
