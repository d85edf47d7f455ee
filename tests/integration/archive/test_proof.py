"""An incremental proof reads what is new, trusts nothing that is remembered, and forgets no failure."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.bucket.directory import DirectoryBucket
from cdc.archive.bucket.memory import MemoryBucket
from cdc.archive.bucket.opening import open_bucket
from cdc.archive.format.object_key import log_key
from cdc.archive.proof.audit import verify
from cdc.archive.proof.proofs import VERIFY_KEY, Proof, read_proof
from cdc.archive.proof.verification import Prover, VerificationRun
from cdc.archive.writer.sink import ArchiveSink
from cdc.errors import Invalid, Unavailable
from tests.support.s3 import S3Server
from tests.support.transactions import OUTBOX, SOURCE, batch, opened, pieces, settings, transaction, write_chunk


async def write(sink: ArchiveSink, *numbers: int) -> None:
    for number in numbers:
        await sink.write(batch(transaction(number, 2)))


async def take_snapshot(sink: ArchiveSink, lsn: int) -> None:
    chunks = [await write_chunk(sink, OUTBOX, [[b"%d" % row] for row in range(5)], lsn) for _ in range(2)]
    await sink.write_snapshot(lsn, chunks, [OUTBOX])


async def begun(bucket: Bucket) -> ArchiveSink:
    """0 fence, 1 snapshot, 2 to 5 data."""
    sink = await opened(bucket)
    await take_snapshot(sink, 50)
    await write(sink, 1, 2, 3, 4)
    return sink


async def prove(bucket: Bucket, *, full: bool = False, **options: Any) -> VerificationRun:
    return await Prover(bucket, full=full, **options).run()


async def remembered(bucket: Bucket) -> tuple[bool, int]:
    """Whether the last proof held, and the last proved segment."""
    proof = await read_proof(bucket)
    assert proof is not None
    return proof.ok, -1 if proof.proved is None else proof.proved.seq


def number_in(key: str) -> int:
    """The segment that an object of the log is, or that names a chunk; before all of them for any other."""
    digits = key.split("/")[1][:16]
    return int(digits) if digits.isdecimal() else -1


def flip(bucket: MemoryBucket, seq: int) -> bytes:
    """Damage a segment; its bytes before."""
    before = bucket.objects[log_key(seq)]
    damaged = bytearray(before)
    damaged[len(damaged) // 2] ^= 1
    bucket.objects[log_key(seq)] = bytes(damaged)
    return before


def problems(run: VerificationRun) -> str:
    return "\n".join(f"{finding.key} {finding.problem}" for finding in run.report.findings)


class Watched(MemoryBucket):
    """Holds up the first reader of a key that has a gate, and tells of each replace before it happens."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[str, tuple[asyncio.Event, asyncio.Event]] = {}
        self.before_replace: Callable[[], None] = lambda: None

    def gate(self, key: str) -> tuple[asyncio.Event, asyncio.Event]:
        """The first one has the bytes; it may go on."""
        self.gates[key] = asyncio.Event(), asyncio.Event()
        return self.gates[key]

    async def get(self, key: str) -> bytes | None:
        body = await super().get(key)
        gate = self.gates.pop(key, None)
        if gate is not None:
            gate[0].set()
            await gate[1].wait()
        return body

    async def replace(self, key: str, body: bytes) -> None:
        self.before_replace()
        await super().replace(key, body)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
async def s3_bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> AsyncIterator[Bucket]:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    bucket = open_bucket(settings(url=f"s3://archive/{tmp_path.name}", endpoint_url=s3.endpoint_url))
    yield bucket
    await bucket.close()
    s3.heal()


def log_reads(s3: S3Server) -> list[int]:
    return [int(request.key.rpartition("/")[2][:16]) for request in s3.seen("GET", "log/00")]


async def test_only_what_is_new_is_read(s3: S3Server, s3_bucket: Bucket) -> None:
    sink = await begun(s3_bucket)
    first = await prove(s3_bucket)
    assert (first.since, first.segments_read, first.report.segments) == (None, 6, 6)
    await write(sink, 5, 6)
    s3.forget()
    second = await prove(s3_bucket)
    assert sorted(log_reads(s3)) == [5, 6, 7]  # the remembered one and the two after it
    assert s3.seen("GET", "base/") == []
    assert second.since is not None
    assert (second.since.seq, second.segments_read) == (5, 2)
    s3.forget()
    third = await prove(s3_bucket)
    assert (log_reads(s3), third.segments_read) == ([7], 0)
    assert third.report == second.report
    s3.forget()
    whole = await prove(s3_bucket, full=True)
    assert sorted(log_reads(s3)) == list(range(8))
    assert len(s3.seen("GET", "base/")) == 2
    assert whole.report == second.report == await verify(s3_bucket)
    assert whole.whole_since > third.whole_since == first.whole_since


async def test_the_totals_are_those_of_a_whole_proof_wherever_it_was_cut() -> None:
    """Parts, snapshots, a gap and its repair: a proof may stop behind any of them."""
    bucket = MemoryBucket()
    sink = await begun(bucket)
    for piece in [*pieces(5, 9, of=3), *pieces(6, 9, of=3)[:2]]:
        await sink.write(batch(piece))
    sink = await opened(bucket)  # which abandons the second series
    await write(sink, 6)
    await sink.write_gap(650, "slot lost")
    await take_snapshot(sink, 900)
    await write(sink, 10)
    await sink.write_coverage(5000)
    whole = await verify(bucket)
    assert whole.intact
    assert (whole.abandoned_parts, len(whole.gaps), whole.base_chunks) == (2, 1, 4)
    for cut in range(whole.segments):
        part = MemoryBucket()
        part.objects = {key: body for key, body in bucket.objects.items() if number_in(key) <= cut}
        await prove(part)
        part.objects |= bucket.objects
        run = await prove(part)
        assert run.since is not None
        assert run.since.seq == cut
        assert run.report == whole


@pytest.mark.parametrize("seq", [6, 7])
async def test_damage_after_the_remembered_segment_is_found_and_nothing_moves(seq: int) -> None:
    bucket = MemoryBucket()
    sink = await begun(bucket)
    await prove(bucket)
    await write(sink, 5, 6)
    before = flip(bucket, seq)
    for _ in range(2):
        run = await prove(bucket)
        assert log_key(seq) in problems(run)
        assert await remembered(bucket) == (False, 5)
    proof = await read_proof(bucket)
    assert proof is not None
    assert log_key(seq) in proof.failure
    bucket.objects[log_key(seq)] = before
    assert (await prove(bucket)).report.intact
    assert await remembered(bucket) == (True, 7)


async def test_damage_before_it_is_what_full_is_for_and_stays_red_until_it_is_mended() -> None:
    bucket = MemoryBucket()
    sink = await begun(bucket)
    await prove(bucket)
    before = flip(bucket, 3)
    assert (await prove(bucket)).report.intact  # documented: nothing behind the remembered segment is looked at
    run = await prove(bucket, full=True)
    assert log_key(3) in problems(run)
    assert await remembered(bucket) == (False, -1)
    await write(sink, 5)
    again = await prove(bucket)  # which must not go on behind the damage
    assert again.restarted == "the last one found damage"
    assert log_key(3) in problems(again)
    bucket.objects[log_key(3)] = before
    assert (await prove(bucket)).report.intact
    assert await remembered(bucket) == (True, 6)


async def test_damage_to_new_snapshot_rows_is_found() -> None:
    bucket = MemoryBucket()
    sink = await begun(bucket)
    await prove(bucket)
    await take_snapshot(sink, 900)
    key = max(key for key in bucket.objects if key.startswith("base/"))
    bucket.objects[key] = bucket.objects[key][:-1]
    assert f"{key} does not have the bytes" in problems(await prove(bucket))
    assert await remembered(bucket) == (False, 5)


async def test_the_remembered_segment_itself_is_looked_at() -> None:
    bucket = MemoryBucket()
    await begun(bucket)
    await prove(bucket)
    flip(bucket, 5)
    run = await prove(bucket)
    assert "segment 5" in run.restarted
    assert log_key(5) in problems(run)


async def test_an_archive_that_has_lost_its_end_is_damaged_until_somebody_proves_it_afresh() -> None:
    bucket = MemoryBucket()
    await begun(bucket)
    await prove(bucket)
    del bucket.objects[log_key(5)]
    assert (await verify(bucket)).intact
    for _ in range(2):
        assert "the archive was proved up to segment 5" in problems(await prove(bucket))
        assert not (await remembered(bucket))[0]
    assert (await prove(bucket, full=True)).report.intact
    assert await remembered(bucket) == (True, 4)


async def test_the_proof_of_another_archive_proves_nothing() -> None:
    bucket, other = MemoryBucket(), MemoryBucket()
    await begun(bucket)
    await begun(other)
    await prove(other)
    bucket.objects[VERIFY_KEY] = other.objects[VERIFY_KEY]
    flip(bucket, 3)
    run = await prove(bucket)
    assert "of another archive" in run.restarted
    assert log_key(3) in problems(run)


FORGED: list[tuple[dict[str, Any], str]] = [
    ({"sha256": "0" * 64}, "is not the one that the remembered proof names"),
    ({"covered_upto": "FF/0"}, "is not the one that the remembered proof names"),
    ({"next_ordinal": 77}, "is not the one that the remembered proof names"),
    ({"seq": 4}, "is not the one that the remembered proof names"),
    ({"seq": 99}, "segment 99, up to which it was proved, is missing"),
    ({"seq": -1}, "cannot be read"),
    ({"covered_upto": "nonsense"}, "cannot be read"),
    ({"time": "yesterday"}, "cannot be read"),
    ({"kinds": 5}, "cannot be read"),
]


@pytest.mark.parametrize(("forged", "said"), FORGED)
async def test_a_forged_proof_hides_nothing(forged: dict[str, Any], said: str) -> None:
    bucket = MemoryBucket()
    await begun(bucket)
    await prove(bucket)
    facts = json.loads(bucket.objects[VERIFY_KEY])
    bucket.objects[VERIFY_KEY] = json.dumps(facts | {"proved": facts["proved"] | forged}).encode()
    flip(bucket, 3)
    run = await prove(bucket)
    assert said in run.restarted
    assert log_key(3) in problems(run)


@pytest.mark.parametrize("body", [b"", b"{}", b"[" * 5000, b"\xff", b'{"cdc":2}', b"null"])
async def test_what_is_no_proof_is_read_as_none(body: bytes) -> None:
    bucket = MemoryBucket()
    await begun(bucket)
    bucket.objects[VERIFY_KEY] = body
    run = await prove(bucket)
    assert (run.since, run.report.intact, run.restarted) == (None, True, "the remembered proof cannot be read")
    assert await remembered(bucket) == (True, 5)


async def test_a_success_never_takes_the_place_of_a_failure_that_it_has_not_seen() -> None:
    bucket = Watched()
    sink = await begun(bucket)
    await prove(bucket)
    await write(sink, 5)
    has_read, go_on = bucket.gate(log_key(6))
    first = asyncio.create_task(prove(bucket))
    await has_read.wait()
    before = flip(bucket, 6)
    assert not (await prove(bucket)).report.intact
    bucket.objects[log_key(6)] = before
    go_on.set()
    assert (await first).report.intact
    assert await remembered(bucket) == (False, 5)
    assert (await prove(bucket)).report.intact
    assert await remembered(bucket) == (True, 6)


async def test_of_two_successes_the_one_that_reaches_further_stays() -> None:
    bucket = Watched()
    sink = await begun(bucket)
    await prove(bucket)
    await write(sink, 5)
    has_read, go_on = bucket.gate(log_key(6))
    first = asyncio.create_task(prove(bucket))
    await has_read.wait()
    await write(sink, 6)
    assert (await prove(bucket)).report.last_seq == 7
    go_on.set()
    assert (await first).report.last_seq == 6
    assert await remembered(bucket) == (True, 7)


async def test_many_at_once_on_a_bucket_that_takes_a_key_once_a_second(s3: S3Server, s3_bucket: Bucket) -> None:
    sink = await begun(s3_bucket)
    await write(sink, 5)
    runs = await asyncio.gather(*(prove(s3_bucket) for _ in range(3)))
    assert [(run.report.intact, run.unremembered) for run in runs] == [(True, "")] * 3
    assert await remembered(s3_bucket) == (True, 6)


class Killed(Exception):
    pass


async def test_killed_in_the_middle_it_goes_on_from_what_it_had_noted() -> None:
    bucket = Watched()
    await begun(bucket)
    writes = iter(range(100))

    def die_at_the_third() -> None:
        if next(writes) == 3:
            raise Killed

    bucket.before_replace = die_at_the_third
    with pytest.raises(Killed):
        await prove(bucket, note_s=0)
    assert await remembered(bucket) == (True, 2)
    run = await prove(bucket)
    assert run.since is not None
    assert run.since.seq == 2
    assert run.report == await verify(bucket)


async def test_killed_before_it_noted_anything_what_was_remembered_stands() -> None:
    bucket = Watched()
    sink = await begun(bucket)
    await prove(bucket)
    await write(sink, 5)

    def die() -> None:
        raise Killed

    bucket.before_replace = die
    with pytest.raises(Killed):
        await prove(bucket)
    assert await remembered(bucket) == (True, 5)


async def test_what_is_noted_on_the_way_never_turns_red_to_green() -> None:
    bucket = MemoryBucket()
    sink = await begun(bucket)
    await prove(bucket)
    await write(sink, 5, 6)
    flip(bucket, 7)
    run = await prove(bucket, note_s=0)
    assert log_key(7) in problems(run)
    assert await remembered(bucket) == (False, 6)
    assert not (await prove(bucket, note_s=0)).report.intact
    assert await remembered(bucket) == (False, 6)


async def test_red_stays_red_though_it_was_killed_beyond_what_it_had_noted() -> None:
    bucket = Watched()
    sink = await begun(bucket)
    await prove(bucket)
    await write(sink, 5, 6)
    flip(bucket, 7)
    await prove(bucket)
    writes = iter(range(100))

    def die_at_the_second() -> None:
        if next(writes) == 1:
            raise Killed

    bucket.before_replace = die_at_the_second
    with pytest.raises(Killed):
        await prove(bucket, note_s=0)
    assert await remembered(bucket) == (False, 6)


async def test_a_full_proof_on_its_way_does_not_forget_the_one_before() -> None:
    bucket = Watched()
    await begun(bucket)
    await prove(bucket)
    seen: list[bytes] = []
    bucket.before_replace = lambda: seen.append(bucket.objects[VERIFY_KEY])
    await prove(bucket, full=True, note_s=0)
    assert len(seen) == 1
    assert json.loads(seen[0])["proved"]["seq"] == 5


class ReadOnly(MemoryBucket):
    async def replace(self, key: str, body: bytes) -> None:
        raise Invalid("the bucket refuses: AccessDenied")


async def test_a_result_that_cannot_be_remembered_is_a_result_all_the_same() -> None:
    bucket = ReadOnly()
    sink = ArchiveSink(bucket, settings())
    await sink.open()
    await sink.fence(SOURCE)
    run = await prove(bucket)
    assert (run.report.intact, run.unremembered) == (True, "the bucket refuses: AccessDenied")


async def test_nothing_is_remembered_of_an_archive_that_cannot_be_read(s3: S3Server, s3_bucket: Bucket) -> None:
    await begun(s3_bucket)
    s3.fail(503, times=None, methods="GET", key_contains="log/0000000000000003")
    with pytest.raises(Unavailable):
        await prove(s3_bucket)
    s3.heal()
    assert await read_proof(s3_bucket) is None


async def test_the_object_in_a_directory(tmp_path: Any) -> None:
    bucket = DirectoryBucket(tmp_path)
    await begun(bucket)
    await prove(bucket)
    run = await prove(bucket)
    assert run.segments_read == 0
    facts = json.loads((tmp_path / VERIFY_KEY).read_bytes())
    assert (facts["cdc"], facts["ok"], facts["proved"]["seq"]) == (1, True, 5)
    assert facts["proved"]["sha256"] == sha256((tmp_path / log_key(5)).read_bytes()).hexdigest()


async def test_a_fork_behind_the_remembered_segment_is_told_again() -> None:
    bucket = MemoryBucket()
    sink = await begun(bucket)
    source = replace(SOURCE, epoch=replace(SOURCE.epoch, timeline=2))
    await sink.close()
    sink = ArchiveSink(bucket, settings())
    await sink.open()
    await sink.write_fork(source, 448, "promoted")
    first = await prove(bucket)
    assert len(first.report.forks) == 1
    assert (await prove(bucket)).report == first.report


def test_a_proof_without_a_segment_never_held() -> None:
    proof = Proof(archive="a", ok=False, time="2026-11-22T18:07:13Z", command="cdc archive verify")
    assert proof.held is None
