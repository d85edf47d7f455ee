"""One contract, every bucket: a directory, memory, moto, and an S3 that refuses what R2 refuses, over HTTP and TLS.

`--services=external` adds a real bucket: CDC_TEST_ARCHIVE_URL, CDC_TEST_ARCHIVE_ENDPOINT_URL, and the AWS variables.
"""

import asyncio
import os
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from cdc.archive.bucket.bucket import PROBE_KEY, AlreadyExists, Bucket, prove_conditional_put
from cdc.archive.bucket.directory import DirectoryBucket
from cdc.archive.bucket.memory import MemoryBucket
from cdc.archive.bucket.opening import open_bucket
from cdc.archive.bucket.s3 import S3Bucket
from cdc.config import ArchiveSettings
from cdc.errors import Invalid, Unavailable
from tests.support.s3 import S3Server

KINDS = ["directory", "memory", "moto", "r2", "r2-tls"]
EXTERNAL = ["external"] if "CDC_TEST_ARCHIVE_URL" in os.environ else []


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    # CreateBucket signed for the region "auto" is refused there, so the bucket is made with a plain request.
    urllib.request.urlopen(urllib.request.Request(f"{url}/archive", method="PUT")).close()
    yield url
    server.stop()


@pytest.fixture(scope="session")
def r2_servers() -> Iterator[dict[str, S3Server]]:
    with S3Server(tls=False) as plain, S3Server(tls=True) as tls:
        yield {"r2": plain, "r2-tls": tls}


def settings(url: str, endpoint_url: str | None = None, put_timeout_s: float = 10.0) -> ArchiveSettings:
    return ArchiveSettings.model_validate({"url": url, "endpoint_url": endpoint_url, "put_timeout_s": put_timeout_s})


@pytest.fixture(params=KINDS + EXTERNAL)
async def bucket(
    request: pytest.FixtureRequest, services: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bucket]:
    made = make_bucket(request, services, tmp_path, monkeypatch)
    yield made
    await made.close()


def make_bucket(
    request: pytest.FixtureRequest, services: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Bucket:
    prefix = f"prefix/{uuid.uuid4().hex}"
    match request.param:
        case "directory":
            return open_bucket(settings(f"file://{tmp_path}/archive"))
        case "memory":
            return MemoryBucket()
        case "moto":
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            return open_bucket(settings(f"s3://archive/{prefix}", request.getfixturevalue("moto_url")))
        case "external":
            if services != "external":
                pytest.skip("wants --services=external")
            url, endpoint_url = os.environ["CDC_TEST_ARCHIVE_URL"], os.environ.get("CDC_TEST_ARCHIVE_ENDPOINT_URL")
            return open_bucket(settings(f"{url}/{prefix}", endpoint_url))
        case kind:
            server: S3Server = request.getfixturevalue("r2_servers")[kind]
            return use(server, prefix, monkeypatch)


def use(
    server: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch, bucket: str = "archive", put_timeout_s: float = 10.0
) -> S3Bucket:
    server.heal()
    server.forget()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    made = open_bucket(settings(f"s3://{bucket}/{prefix}", server.endpoint_url, put_timeout_s))
    assert isinstance(made, S3Bucket)
    return made


class TestEveryBucket:
    async def test_what_is_created_is_read_back(self, bucket: Bucket) -> None:
        body = os.urandom(100_000)
        await bucket.create("log/0", body)
        assert await bucket.get("log/0") == body
        assert await bucket.head("log/0") == len(body)

    async def test_an_empty_object_is_an_object(self, bucket: Bucket) -> None:
        await bucket.create("log/0", b"")
        assert await bucket.get("log/0") == b""
        assert await bucket.head("log/0") == 0

    async def test_what_is_not_there_is_none(self, bucket: Bucket) -> None:
        assert await bucket.get("log/0") is None
        assert await bucket.head("log/0") is None

    async def test_a_key_is_created_only_once(self, bucket: Bucket) -> None:
        await bucket.create("log/0", b"first")
        await asyncio.sleep(bucket.rewrite_pause_s)
        with pytest.raises(AlreadyExists):
            await bucket.create("log/0", b"second")
        assert await bucket.get("log/0") == b"first"

    async def test_of_many_writers_at_once_one_wins(self, bucket: Bucket) -> None:
        bodies = [b"writer %d" % number for number in range(16)]
        ends = await asyncio.gather(*(bucket.create("log/0", body) for body in bodies), return_exceptions=True)
        winners = [body for body, end in zip(bodies, ends, strict=True) if end is None]
        assert [await bucket.get("log/0")] == winners
        assert all(end is None or isinstance(end, AlreadyExists | Unavailable) for end in ends)

    async def test_replace_writes_over(self, bucket: Bucket) -> None:
        await bucket.replace("hint.json", b"first")
        await asyncio.sleep(bucket.rewrite_pause_s)
        await bucket.replace("hint.json", b"second")
        assert await bucket.get("hint.json") == b"second"

    async def test_listing_is_by_prefix_in_order_and_after_a_key(self, bucket: Bucket) -> None:
        keys = ["base/1/a", "log/1", "log/2", "log/3", "logs"]
        for key in reversed(keys):
            await bucket.create(key, b"body")
        assert [key async for key in bucket.list("log/")] == ["log/1", "log/2", "log/3"]
        assert [key async for key in bucket.list("log/", after="log/1")] == ["log/2", "log/3"]
        assert [key async for key in bucket.list("")] == keys
        assert [key async for key in bucket.list("nothing/")] == []

    async def test_keys_hold_letters_of_any_script(self, bucket: Bucket) -> None:
        key = "base/0/public.größe täglich %2F+&=/0.ndjson.zst"
        await bucket.create(key, b"body")
        assert await bucket.get(key) == b"body"
        assert [found async for found in bucket.list("base/")] == [key]

    async def test_it_proves_conditional_put_again_and_again(self, bucket: Bucket) -> None:
        await prove_conditional_put(bucket)
        await prove_conditional_put(bucket)
        assert [key async for key in bucket.list("")] == [PROBE_KEY]

    async def test_closing_twice_is_no_harm(self, bucket: Bucket) -> None:
        await bucket.create("log/0", b"body")
        await bucket.close()
        await bucket.close()


class TestConditionalPut:
    async def test_a_bucket_that_overwrites_is_refused(self) -> None:
        class Overwriting(MemoryBucket):
            async def create(self, key: str, body: bytes) -> None:
                self.objects[key] = body

        with pytest.raises(Invalid, match="overwrites"):
            await prove_conditional_put(Overwriting())

    async def test_a_bucket_that_always_refuses_is_refused(self) -> None:
        class Refusing(MemoryBucket):
            async def create(self, key: str, body: bytes) -> None:
                raise AlreadyExists("so it says")

        with pytest.raises(Invalid, match="refuses to create"):
            await prove_conditional_put(Refusing())


class TestDirectory:
    async def test_no_temporary_file_stays_or_is_listed(self, tmp_path: Path) -> None:
        bucket = DirectoryBucket(tmp_path)
        await bucket.create("log/0", b"body")
        (tmp_path / "log" / ".tmp-left-by-a-crash").write_bytes(b"half")
        with pytest.raises(AlreadyExists):
            await bucket.create("log/0", b"other")
        assert [key async for key in bucket.list("")] == ["log/0"]
        assert len(list((tmp_path / "log").iterdir())) == 2

    async def test_a_file_in_the_directorys_place_is_a_persons_matter(self, tmp_path: Path) -> None:
        (tmp_path / "archive").write_bytes(b"")
        with pytest.raises(Invalid) as caught:
            await DirectoryBucket(tmp_path / "archive").create("log/0", b"body")
        assert "mkdir" in caught.value.hint


@pytest.fixture(params=["r2", "r2-tls"])
def server(request: pytest.FixtureRequest, r2_servers: dict[str, S3Server]) -> Iterator[S3Server]:
    server = r2_servers[request.param]
    yield server
    server.heal()


class TestR2:
    """What R2 refuses, and how its errors come out."""

    @pytest.fixture
    async def open(self, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., S3Bucket]]:
        made: list[S3Bucket] = []

        def open_it(**more: Any) -> S3Bucket:
            made.append(use(server, uuid.uuid4().hex, monkeypatch, **more))
            return made[-1]

        yield open_it
        for bucket in made:
            await bucket.close()

    async def test_it_does_nothing_that_r2_refuses(self, server: S3Server, open: Callable[..., S3Bucket]) -> None:
        bucket = open()
        await prove_conditional_put(bucket)
        await bucket.create("log/0", os.urandom(1_000_000))
        await bucket.replace("hint.json", b"{}")
        assert server.violations == []
        puts = server.seen("PUT")
        assert all("Expect" not in put.headers and "Content-MD5" in put.headers for put in puts)

    @pytest.mark.parametrize("status", [500, 503, 429, 408, 409])
    async def test_a_passing_refusal_is_unavailable_and_not_retried(
        self, server: S3Server, open: Callable[..., S3Bucket], status: int
    ) -> None:
        bucket = open()
        server.fail(status)
        with pytest.raises(Unavailable):
            await bucket.create("log/0", b"body")
        assert len(server.seen("PUT")) == 1

    async def test_a_refused_connection_is_unavailable(self, server: S3Server, open: Callable[..., S3Bucket]) -> None:
        bucket = open()
        await bucket.create("log/0", b"body")
        server.refuse_connections()
        with pytest.raises(Unavailable):
            await bucket.create("log/1", b"body")
        with pytest.raises(Unavailable):
            await bucket.get("log/0")
        server.accept_connections()
        await bucket.create("log/1", b"body")

    async def test_an_answer_that_does_not_come_is_unavailable(
        self, server: S3Server, open: Callable[..., S3Bucket]
    ) -> None:
        bucket = open(put_timeout_s=2.0)
        assert await bucket.get("log/0") is None  # the client and its connection are made
        server.delay(after_s=5.0, times=1)
        with pytest.raises(Unavailable):
            await bucket.create("log/0", b"body")
        assert await bucket.get("log/0") == b"body"

    async def test_a_lost_answer_does_not_hide_the_object(
        self, server: S3Server, open: Callable[..., S3Bucket]
    ) -> None:
        bucket = open()
        server.lose_answer(times=2)
        with pytest.raises(Unavailable):
            await bucket.create("log/0", b"body")
        server.heal()
        await asyncio.sleep(bucket.rewrite_pause_s)
        with pytest.raises(AlreadyExists):
            await bucket.create("log/0", b"body")
        assert await bucket.get("log/0") == b"body"

    async def test_a_bucket_that_is_not_there_is_named(self, open: Callable[..., S3Bucket]) -> None:
        bucket = open(bucket="elsewhere")
        with pytest.raises(Invalid) as caught:
            await bucket.create("log/0", b"body")
        assert "NoSuchBucket" in caught.value.message
        assert "elsewhere" in caught.value.hint

    async def test_a_key_without_rights_is_told_which(
        self, open: Callable[..., S3Bucket], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bucket = open()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODY")
        with pytest.raises(Invalid) as caught:
            await bucket.create("log/0", b"body")
        assert "AccessDenied" in caught.value.message
        assert "PutObject" in caught.value.hint

    async def test_absent_credentials_are_a_matter_of_configuration(
        self, open: Callable[..., S3Bucket], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        bucket = open()
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(Invalid) as caught:
            await bucket.head("log/0")
        assert "AWS_ACCESS_KEY_ID" in caught.value.hint

    async def test_a_server_that_ignores_the_condition_is_refused(
        self, server: S3Server, open: Callable[..., S3Bucket]
    ) -> None:
        bucket = open()
        server.ignore_if_none_match = True
        with pytest.raises(Invalid, match="overwrites"):
            await prove_conditional_put(bucket)

    async def test_listing_goes_on_past_a_page(self, server: S3Server, open: Callable[..., S3Bucket]) -> None:
        bucket = open()
        prefix = bucket.url.removeprefix("s3://archive/")
        keys = [f"log/{number:016d}" for number in range(1500)]
        for key in keys:
            server.put_object(f"{prefix}/{key}", b"")
        assert [key async for key in bucket.list("log/")] == keys
        assert [key async for key in bucket.list("log/", after=keys[1200])] == keys[1201:]


async def test_an_authority_that_is_not_trusted_is_told_how_to_be(
    r2_servers: dict[str, S3Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = use(r2_servers["r2-tls"], "prefix", monkeypatch)
    monkeypatch.delenv("AWS_CA_BUNDLE")
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(Invalid) as caught:
        await bucket.create("log/0", b"body")
    await bucket.close()
    assert "AWS_CA_BUNDLE" in caught.value.hint
