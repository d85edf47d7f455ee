"""An encrypted archive, written by the sink: what lies in the bucket, who reads it, what is proved without a key."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.bucket.memory import MemoryBucket
from cdc.archive.bucket.opening import open_bucket
from cdc.archive.bucket.unlocked import UnlockedBucket
from cdc.archive.format.encryption import Keys, Sealed, generate_key
from cdc.archive.format.object_key import log_key
from cdc.archive.format.segment import decode_segment
from cdc.archive.proof.audit import AuditReport, verify
from cdc.archive.proof.verification import Prover
from cdc.archive.reader.history import RestorePoint, read_history
from cdc.archive.reader.reader import cat_lines, list_segments
from cdc.archive.state.gap_diff import GapDiff
from cdc.archive.writer.sink import ArchiveSink
from cdc.errors import Unavailable
from cdc.restore.chunk import copy_pieces
from cdc.row import Row
from tests.support.transactions import (
    TURNS,
    archived,
    batch,
    facts,
    in_batches,
    lsns,
    opened,
    pieces,
    settings,
    transaction,
)

BOX, SAFE, NEW_BOX, STRANGER = generate_key(), generate_key(), generate_key(), generate_key()
PUBLIC = (BOX[0], SAFE[0])
CANARY = b"canary-51c3e07f"
ROWS: list[Row] = [[b"%d" % n, CANARY + b" %d" % (n * 7919), b"0.5", b'{"a": 1}', b"t"] for n in range(5)]


async def fill(bucket: Bucket, **values: Any) -> ArchiveSink:
    """0 fence, 1 snapshot, 2 data, 3 to 5 parts, 6 coverage."""
    sink = await opened(bucket, **values)
    chunks = await sink.write_base(TURNS, in_batches(ROWS, 2), 50)
    chunks += await sink.write_deleted(TURNS, in_batches(ROWS, 2), 50)
    await sink.write_snapshot(50, [chunk for chunk in chunks if "deleted" not in chunk.key], [TURNS])
    await sink.write(batch(transaction(1, 3, content=CANARY), transaction(2, content=CANARY)))
    for piece in pieces(3, 9, of=3):
        await sink.write(batch(piece))
    await sink.write_coverage(5000)
    return sink


@pytest.fixture
async def bucket() -> MemoryBucket:
    bucket = MemoryBucket()
    await fill(bucket, recipients=PUBLIC)
    return bucket


def unlocked(bucket: Bucket, pair: tuple[str, str]) -> UnlockedBucket:
    return UnlockedBucket(bucket, Keys.parse(pair[1]))


def told(body: bytes) -> bytes:
    """All that an object says to whoever holds it: its bytes, and what `zstdcat` makes of them."""
    with zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True) as reader:
        text: bytes = reader.read()
    assert text.startswith(b'{"cdc":1,')
    return body + text


def problems(report: AuditReport) -> list[str]:
    return [f"{finding.key} {finding.problem}" for finding in report.findings]


async def copied(bucket: Bucket, keys: Keys) -> list[bytes]:
    history = await read_history(bucket, RestorePoint())
    return [
        piece.lines
        async for _, body in history.chunk_bodies(bucket)
        for piece in copy_pieces(body, ("id", "content"), keys)
    ]


async def test_no_stored_byte_tells_a_value_though_a_plain_archive_tells_it(bucket: MemoryBucket) -> None:
    plain = MemoryBucket()
    await fill(plain)
    assert sum(CANARY in told(body) for body in plain.objects.values()) == 3  # data, a chunk, deleted keys
    assert not any(CANARY in key.encode() + told(body) for key, body in bucket.objects.items())
    assert sorted(plain.objects) == sorted(bucket.objects)


@pytest.mark.parametrize("pair", [BOX, SAFE], ids=["box", "safe"])
async def test_each_recipient_alone_reads_all_that_a_plain_archive_would_hold(
    bucket: MemoryBucket, pair: tuple[str, str]
) -> None:
    plain = MemoryBucket()
    await fill(plain)
    mine = unlocked(bucket, pair)
    assert facts(await archived(mine)) == facts(await archived(plain))
    assert [line async for line in cat_lines(mine)] == [line async for line in cat_lines(plain)]
    assert await copied(mine, mine.keys) == await copied(plain, mine.keys)
    history = await read_history(mine, RestorePoint(time_us=2 * 10**15))  # reads a line of a chunk
    rows = [row.new async for _, changes in history.chunks(mine) for row in changes]
    assert rows == ROWS
    assert lsns([one async for _, one in history.transactions(mine, 0)]) == [1, 2, 3, 3, 3]


async def test_without_a_key_headers_and_tail_are_read_and_rows_are_refused(bucket: MemoryBucket) -> None:
    assert [found.header.kind async for found in list_segments(bucket)][:3] == ["fence", "snapshot", "data"]
    sink = await opened(bucket, recipients=PUBLIC)  # the writer itself has no key
    assert sink.covered_upto == 5000
    with pytest.raises(Sealed, match="rows of segment 2 are encrypted, and no key"):
        await archived(bucket)
    with pytest.raises(Sealed, match="rows of a snapshot's chunk are encrypted, and no key"):
        await copied(bucket, Keys())
    with pytest.raises(Sealed, match="rows of segment 2"):
        await archived(unlocked(bucket, NEW_BOX))


async def test_verify_proves_the_chain_without_a_key_and_the_lines_with_one(bucket: MemoryBucket) -> None:
    locked, opened_report = await verify(bucket), await verify(unlocked(bucket, SAFE))
    assert (problems(locked), problems(opened_report)) == ([], [])
    assert (locked.sealed, opened_report.sealed) == (5, 0)
    assert (locked.changes, locked.base_rows) == (opened_report.changes, opened_report.base_rows) == (13, 5)


@pytest.mark.parametrize("with_key", [False, True], ids=["without a key", "with the key"])
async def test_verify_finds_damage_in_each_encrypted_object(bucket: MemoryBucket, with_key: bool) -> None:
    reader = unlocked(bucket, BOX) if with_key else bucket
    encrypted = [key for key, body in bucket.objects.items() if b"\x50\x2a\x4d\x18" in body and "deleted" not in key]
    assert len(encrypted) == 5
    for key in encrypted:
        whole = bucket.objects[key]
        for damaged in (whole[:-1], whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:]):
            bucket.objects[key] = damaged
            assert any(problem.startswith(f"{key} the encrypted lines") for problem in problems(await verify(reader)))
        bucket.objects[key] = whole


async def test_verify_finds_exchanged_bodies_without_a_key(bucket: MemoryBucket) -> None:
    one, other = (bucket.objects[log_key(seq)] for seq in (3, 4))
    cut, other_cut = (body.index(b"\x50\x2a\x4d\x18") for body in (one, other))
    bucket.objects[log_key(3)] = one[:cut] + other[other_cut:]
    bucket.objects[log_key(4)] = other[:other_cut] + one[cut:]
    assert any("does not name the SHA-256" in problem for problem in problems(await verify(bucket)))
    assert any("encrypted lines" in problem for problem in problems(await verify(unlocked(bucket, BOX))))


async def test_what_was_proved_without_a_key_is_proved_again_with_one(bucket: MemoryBucket) -> None:
    first = await Prover(bucket).run()
    assert (first.report.sealed, first.since) == (5, None)
    again = await Prover(bucket).run()
    assert (again.report.sealed, again.segments_read) == (5, 0)
    keyed = await Prover(unlocked(bucket, BOX)).run()
    assert (keyed.report.sealed, keyed.since) == (0, None)
    assert "without the key" in keyed.restarted
    assert (await Prover(unlocked(bucket, BOX)).run()).segments_read == 0


async def test_a_rotated_key_reads_what_is_new_and_the_old_one_what_was_before(bucket: MemoryBucket) -> None:
    sink = await opened(bucket, recipients=(NEW_BOX[0], SAFE[0]))
    await sink.write(batch(transaction(60), transaction(61)))
    both = UnlockedBucket(bucket, Keys.parse(f"{BOX[1]}\n{NEW_BOX[1]}"))
    for reader in (both, unlocked(bucket, SAFE)):
        assert lsns(await archived(reader)) == [1, 2, 3, 3, 3, 60, 61]
        assert (await verify(reader)).sealed == 0
    assert (await verify(unlocked(bucket, NEW_BOX))).sealed == 5
    assert (await verify(unlocked(bucket, BOX))).sealed == 1
    with pytest.raises(Sealed):
        await archived(unlocked(bucket, BOX))


async def test_an_archive_may_become_encrypted_and_plain_again() -> None:
    bucket = MemoryBucket()
    await fill(bucket)
    await (await opened(bucket, recipients=PUBLIC)).write(batch(transaction(60)))
    await (await opened(bucket)).write(batch(transaction(61)))
    report = await verify(bucket)
    assert (problems(report), report.sealed) == ([], 1)
    assert lsns(await archived(unlocked(bucket, BOX))) == [1, 2, 3, 3, 3, 60, 61]


class _LosesAnswers(MemoryBucket):
    """Every object is stored, and every first answer is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, list[bytes]] = {}

    async def create(self, key: str, body: bytes) -> None:
        attempts = self.sent.setdefault(key, [])
        attempts.append(body)
        if len(attempts) == 1:
            self.objects[key] = body
            if "0" * 16 not in key:
                raise Unavailable("the answer was lost")
            return
        await super().create(key, body)


async def test_a_retried_put_sends_the_same_encrypted_bytes() -> None:
    bucket = _LosesAnswers()
    await fill(bucket, recipients=PUBLIC)
    assert max(len(attempts) for attempts in bucket.sent.values()) == 2
    assert all(len(set(attempts)) == 1 for attempts in bucket.sent.values())
    assert problems(await verify(unlocked(bucket, BOX))) == []


async def test_a_gap_is_closed_without_a_key_and_says_why_its_inside_is_unknown(bucket: MemoryBucket) -> None:
    sink = await opened(bucket, recipients=PUBLIC)
    await sink.write_gap(5000, "the slot is gone")
    for reader, known in ((bucket, False), (unlocked(bucket, BOX), True)):
        diff = GapDiff(7)
        try:
            await diff.replay(reader, 8)
            diff.see(TURNS, ROWS)
            repair = await diff.conclude(sink, [TURNS], 6000)
        finally:
            diff.close()
        assert bool(repair.tables) is known
        assert known or "are encrypted" in repair.unknown["public.turns"]


async def test_the_identity_of_the_configuration_opens_the_bucket(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/archive"
    plain = open_bucket(settings(url=url))
    await fill(plain, recipients=PUBLIC)
    assert lsns(await archived(open_bucket(settings(url=url, identity=SAFE[1])))) == [1, 2, 3, 3, 3]
    with pytest.raises(Sealed):
        await archived(plain)


@pytest.mark.parametrize("pair", [BOX, SAFE], ids=["box", "safe"])
async def test_the_reader_in_the_documentation_reads_what_we_read(
    bucket: MemoryBucket, tmp_path: Path, pair: tuple[str, str]
) -> None:
    document = (Path(__file__).parents[3] / "docs" / "encryption.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    (tmp_path / "identity").write_text(f"# a remark\n{STRANGER[1]}\n{pair[1]}\n")
    (tmp_path / "object").write_bytes(bucket.objects[log_key(2)])
    command = [sys.executable, "-c", program, tmp_path / "object", tmp_path / "identity"]
    said = subprocess.run(command, check=True, capture_output=True).stdout
    assert said.splitlines() == [line async for line in cat_lines(unlocked(bucket, SAFE), 2, 2)]
    assert len(said.splitlines()) == 4


async def test_deleted_keys_of_a_gap_are_encrypted_too(bucket: MemoryBucket) -> None:
    (key,) = (key for key in bucket.objects if "deleted/" in key)
    with pytest.raises(Sealed, match="rows of a snapshot's chunk"):
        decode_segment(bucket.objects[key])
    assert len(decode_segment(bucket.objects[key], Keys.parse(BOX[1])).lines) == 5
