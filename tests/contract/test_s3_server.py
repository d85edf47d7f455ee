"""Our S3 server against plain aioboto3 and plain HTTP: it must be an S3, and it must refuse what R2 refuses."""

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aioboto3
import pytest
from aiobotocore.config import AioConfig
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError, HTTPClientError
from botocore.handlers import add_expect_header

from tests.support.s3 import S3Server


@pytest.fixture(scope="module", params=["http", "https"])
def server(request: pytest.FixtureRequest) -> Iterator[S3Server]:
    with S3Server(tls=request.param == "https") as server:
        yield server


@pytest.fixture
def s3(server: S3Server) -> Iterator[S3Server]:
    server.heal()
    server.forget()
    yield server
    server.heal()


@asynccontextmanager
async def client(s3: S3Server, *, region: str = "auto", checksums: str = "when_required") -> AsyncIterator[Any]:
    session = aioboto3.Session(aws_access_key_id=s3.access_key, aws_secret_access_key=s3.secret_key, region_name=region)
    config = AioConfig(
        request_checksum_calculation=checksums,
        response_checksum_validation="when_required",
        retries={"total_max_attempts": 1},
        s3={"addressing_style": "path"},
    )
    verify = str(s3.ca_file) if s3.tls else None
    async with session.client("s3", endpoint_url=s3.endpoint_url, verify=verify, config=config) as made:
        made.meta.events.unregister("before-call.s3", add_expect_header)
        yield made
    await asyncio.sleep(0.25 if s3.tls else 0)  # aiohttp closes TLS connections behind our back; let it


async def put(made: Any, key: str, body: bytes = b"body", **more: Any) -> None:
    await made.put_object(Bucket="archive", Key=key, Body=body, **more)


def code_of(error: pytest.ExceptionInfo[ClientError]) -> tuple[int, str]:
    answer: Any = error.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


async def test_an_object_is_put_got_headed_listed_and_deleted(s3: S3Server) -> None:
    async with client(s3) as made:
        await put(made, "a b/ü+1", b"hello")
        answer = await made.get_object(Bucket="archive", Key="a b/ü+1")
        async with answer["Body"] as stream:
            assert await stream.read() == b"hello"
        assert (await made.head_object(Bucket="archive", Key="a b/ü+1"))["ContentLength"] == 5
        assert [o["Key"] for o in (await made.list_objects_v2(Bucket="archive", Prefix="a b/"))["Contents"]] == [
            "a b/ü+1"
        ]
        assert s3.objects()["a b/ü+1"] == b"hello"
        await asyncio.sleep(1.1)
        await made.delete_object(Bucket="archive", Key="a b/ü+1")
        with pytest.raises(ClientError) as error:
            await made.get_object(Bucket="archive", Key="a b/ü+1")
        assert code_of(error) == (404, "NoSuchKey")
    assert s3.violations == []


async def test_a_listing_goes_on_where_it_stopped(s3: S3Server) -> None:
    for number in range(1200):
        s3.put_object(f"many/{number:04}", b"")
    async with client(s3) as made:
        pages = made.get_paginator("list_objects_v2").paginate(Bucket="archive", Prefix="many/")
        keys = [entry["Key"] async for page in pages for entry in page["Contents"]]
    assert keys == [f"many/{number:04}" for number in range(1200)]


async def test_a_key_is_created_only_once(s3: S3Server) -> None:
    async with client(s3) as made:
        s3.put_object("once", b"first")
        with pytest.raises(ClientError) as error:
            await put(made, "once", b"second", IfNoneMatch="*")
        assert code_of(error) == (412, "PreconditionFailed")
        assert s3.objects()["once"] == b"first"


async def test_a_server_may_be_told_to_ignore_if_none_match(s3: S3Server) -> None:
    s3.put_object("ignored", b"first")
    s3.ignore_if_none_match = True
    async with client(s3) as made:
        await put(made, "ignored", b"second", IfNoneMatch="*")
    assert s3.objects()["ignored"] == b"second"


async def test_a_wrong_digest_is_refused(s3: S3Server) -> None:
    digest = base64.b64encode(hashlib.md5(b"other", usedforsecurity=False).digest()).decode()
    async with client(s3) as made:
        with pytest.raises(ClientError) as error:
            await put(made, "digest", ContentMD5=digest)
    assert code_of(error) == (400, "BadDigest")


async def test_a_checksum_trailer_is_refused_as_r2_refuses_it(s3: S3Server) -> None:
    async with client(s3, checksums="when_supported") as made:
        with pytest.raises(ClientError) as error:
            await put(made, "trailer")
    assert code_of(error)[0] == 501
    assert "trailer" in s3.violations[0]


async def test_a_foreign_region_is_refused(s3: S3Server) -> None:
    async with client(s3, region="eu-central-1") as made:
        with pytest.raises(ClientError) as error:
            await put(made, "region")
    assert code_of(error) == (400, "InvalidRegionName")


async def test_a_second_write_within_a_second_is_refused(s3: S3Server) -> None:
    async with client(s3) as made:
        await put(made, "hot")
        with pytest.raises(ClientError) as error:
            await put(made, "hot")
    assert code_of(error)[0] == 429


async def test_an_expect_header_is_recorded_and_never_answered(s3: S3Server) -> None:
    async with client(s3) as made:
        made.meta.events.register("before-call.s3", add_expect_header)
        with pytest.raises(TimeoutError):  # botocore gives up waiting after a second, aiohttp's client never
            await asyncio.wait_for(put(made, "expect"), 1.5)
    assert s3.violations == ["Expect: 100-continue on PUT /archive/expect"]


async def test_an_unsigned_request_and_an_unknown_bucket_are_refused(s3: S3Server) -> None:
    async with client(s3) as made:
        with pytest.raises(ClientError) as error:
            await made.get_object(Bucket="elsewhere", Key="x")
        assert code_of(error) == (404, "NoSuchBucket")
        s3.access_key, kept = "AKIAOTHER", s3.access_key
        try:
            with pytest.raises(ClientError) as error:
                await made.get_object(Bucket="archive", Key="x")
            assert code_of(error) == (403, "AccessDenied")
        finally:
            s3.access_key = kept


async def test_the_next_requests_fail_as_often_as_asked(s3: S3Server) -> None:
    s3.fail(503, times=1)
    async with client(s3) as made:
        with pytest.raises(ClientError) as error:
            await put(made, "fails")
        assert code_of(error)[0] == 503
        await put(made, "fails")
    assert [request.status for request in s3.seen("PUT", "fails")] == [503, 200]


async def test_a_lost_answer_leaves_the_object_behind(s3: S3Server) -> None:
    s3.lose_answer(times=2)
    async with client(s3) as made:
        with pytest.raises((HTTPClientError, ConnectionClosedError)):
            await put(made, "lost", b"there")
    assert s3.objects()["lost"] == b"there"


async def test_a_delayed_request_is_applied_after_its_client_has_gone(s3: S3Server) -> None:
    s3.delay(before_s=0.5, times=1)
    async with client(s3) as made:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(put(made, "late", b"late"), 0.1)
    assert "late" not in s3.objects()
    deadline_s = time.monotonic() + 10
    while "late" not in s3.objects() and time.monotonic() < deadline_s:
        await asyncio.sleep(0.05)
    assert s3.objects()["late"] == b"late"


async def test_connections_are_refused_and_accepted_again_on_the_same_port(s3: S3Server) -> None:
    async with client(s3) as made:
        s3.refuse_connections()
        with pytest.raises(EndpointConnectionError):
            await put(made, "refused")
        s3.accept_connections()
        await put(made, "refused")


async def test_puts_in_flight_are_counted(s3: S3Server) -> None:
    s3.delay(before_s=0.5, times=2)
    async with client(s3) as made:
        await asyncio.gather(put(made, "left"), put(made, "right"))
    assert s3.most_puts_in_flight == 2
