"""The writer of the archive on a directory, and on an S3 that refuses what R2 refuses and fails in R2's ways."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.bucket.directory import DirectoryBucket
from cdc.archive.bucket.opening import open_bucket
from cdc.archive.proof.audit import verify
from cdc.archive.writer.sink import ArchiveSink
from cdc.errors import Fenced
from tests.support.s3 import S3Server
from tests.support.transactions import SOURCE, archived, batch, facts, lsns, opened, pieces, settings, transaction


@pytest.fixture(scope="module", params=["http", "https"])
def server(request: pytest.FixtureRequest) -> Iterator[S3Server]:
    with S3Server(tls=request.param == "https") as server:
        yield server


@pytest.fixture
async def bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bucket]:
    server.heal()
    server.forget()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    url = f"s3://archive/{uuid.uuid4().hex}"
    made = open_bucket(settings(url=url, endpoint_url=server.endpoint_url, put_timeout_s=3.0))
    yield made
    await made.close()
    server.heal()


async def writer(bucket: Bucket) -> ArchiveSink:
    """With the retries of the real service, for R2 takes a key once a second."""
    sink = ArchiveSink(bucket, settings())
    await sink.open()
    await sink.fence(SOURCE)
    return sink


async def test_one_put_at_a_time_and_nothing_that_r2_refuses(server: S3Server, bucket: Bucket) -> None:
    sink = await writer(bucket)
    history = [transaction(number, 3) for number in range(1, 30)]
    for one in history:
        await sink.write(batch(one))
    for piece in pieces(30, 9, of=3):
        await sink.write(batch(piece))
    await sink.close()
    assert facts(await archived(bucket)) == facts([*history, transaction(30, 9)])
    assert (await verify(bucket)).findings == []
    assert (server.violations, server.most_puts_in_flight) == ([], 1)
    assert len(server.seen("GET", "list-type")) == 0


@pytest.mark.parametrize("server", ["http", pytest.param("https", marks=pytest.mark.wide)], indirect=True)
async def test_every_fault_of_a_bucket_leaves_the_archive_intact(server: S3Server, bucket: Bucket) -> None:
    sink = await writer(bucket)
    await sink.write(batch(transaction(1)))
    server.fail(503, times=2)
    await sink.write(batch(transaction(2)))
    server.lose_answer(times=2)
    await sink.write(batch(transaction(3)))
    server.delay(after_s=4.0, times=1)  # applied, and answered when we no longer listen
    await sink.write(batch(transaction(4)))
    server.delay(before_s=4.0, times=1)  # applied when we no longer listen
    await sink.write(batch(transaction(5)))
    server.lose_answer(times=2)
    server.fail(500, times=1, methods="GET")  # and when we ask, it is away again
    await sink.write(batch(transaction(6)))
    assert await sink.write(batch(transaction(7))) == 748
    assert lsns(await archived(bucket)) == [1, 2, 3, 4, 5, 6, 7]
    assert (await verify(bucket)).findings == []


async def test_an_outage_is_waited_out(server: S3Server, bucket: Bucket) -> None:
    sink = await writer(bucket)
    server.refuse_connections()
    writing = asyncio.create_task(sink.write(batch(transaction(1))))
    while not sink.struggling:
        await asyncio.sleep(0.05)
    server.accept_connections()
    assert await writing == 148
    assert (await verify(bucket)).findings == []


async def test_a_zombie_on_s3_is_fenced(bucket: Bucket) -> None:
    old = await writer(bucket)
    await old.write(batch(transaction(1)))
    new = await writer(bucket)
    with pytest.raises(Fenced):
        await old.write(batch(transaction(2)))
    await new.write(batch(transaction(2)))
    assert lsns(await archived(bucket)) == [1, 2]


async def test_a_directory_holds_an_archive(tmp_path: Path) -> None:
    bucket = DirectoryBucket(tmp_path / "archive")
    old = await opened(bucket)
    await old.write(batch(transaction(1), transaction(2)))
    new = await opened(bucket)
    await new.write(batch(transaction(2), transaction(3)))
    with pytest.raises(Fenced):
        await old.write(batch(transaction(3)))
    assert lsns(await archived(bucket)) == [1, 2, 3]
    report = await verify(bucket)
    assert (report.findings, report.segments) == ([], 4)
