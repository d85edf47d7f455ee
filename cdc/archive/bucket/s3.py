"""A bucket on S3 or Cloudflare R2. Requests keep to what R2 accepts.

- The SDK never retries. Suppose that a PUT succeeded and its answer was lost: the retry would be answered 412, and only
  the sink can tell that 412 from another writer's. (aiohttp below sends a request once more, at once, when a kept
  connection turns out to be dead. That stays: it is the same bytes, and the sink compares either way.)
- No checksum trailer: botocore's default (aws-chunked with CRC, over TLS) is refused by R2. Content-MD5 instead.
- No `Expect: 100-continue`: where it goes unanswered it costs a second a PUT.
- One client is kept open. A call has a time limit of its own, because a connection may hang in more places than the SDK
  counts.

Errors: 412 is AlreadyExists. 5xx, 429, timeouts and lost connections are Unavailable. Faults that a person must mend
(rights, a missing bucket, a clock) are Invalid, with the command that mends them.
"""

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aioboto3
import aiobotocore.config
import aiobotocore.session
import aiohttp
import botocore.exceptions as boto
from botocore.handlers import add_expect_header

from cdc.archive.bucket.bucket import AlreadyExists
from cdc.config.credentials import aws_credentials_file
from cdc.errors import CdcError, Invalid, Unavailable

_CONNECT_TIMEOUT_S = 10
_REWRITE_PAUSE_S = 1.1  # R2 takes one write a second to a key, and answers 429 to the second

_HINTS = {
    "NoSuchBucket": "aws s3api create-bucket --bucket {bucket}   # R2: npx wrangler r2 bucket create {bucket}",
    "InvalidAccessKeyId": "export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...   # the key is not known there",
    "SignatureDoesNotMatch": "export AWS_SECRET_ACCESS_KEY=...   # and look at archive.region (R2 wants auto)",
    "RequestTimeTooSkewed": "timedatectl set-ntp true   # this machine's clock is wrong",
    "ExpiredToken": "aws sso login   # or renew AWS_SESSION_TOKEN",
    "PermanentRedirect": "archive.region = '...'   # the bucket is in another region",
    "AuthorizationHeaderMalformed": "archive.region = '...'   # the bucket is in another region",
    "InvalidRegionName": 'archive.region = "auto"   # what R2 wants',
}
_RIGHTS_HINT = "allow the key GetObject and PutObject on {bucket}/*, ListBucket on {bucket}   # R2: Object Read & Write"
_CREDENTIALS_HINT = "export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...   # systemd: LoadCredential=aws:FILE"

# A 4xx that may be gone at the next attempt.
_PASSING = {
    "RequestTimeout",
    "SlowDown",
    "ConditionalRequestConflict",
    "OperationAborted",
    "IncompleteBody",
    "BadDigest",
}
_ABSENT = {"NoSuchKey", "NotFound", "404", "NoSuchLifecycleConfiguration", "ObjectLockConfigurationNotFoundError"}


class S3Bucket:
    """Stores objects under `prefix` of an S3 bucket. Credentials come from the usual AWS chain, or from systemd."""

    def __init__(
        self, bucket: str, prefix: str = "", *, endpoint_url: str | None, region: str, put_timeout_s: float
    ) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._endpoint_url = endpoint_url
        # AWS itself has no region "auto"; without an endpoint the usual chain decides.
        self._region = None if endpoint_url is None and region == "auto" else region
        self._timeout_s = put_timeout_s
        self._stack = contextlib.AsyncExitStack()
        self._client: Any = None
        self._opening = asyncio.Lock()

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    @property
    def rewrite_pause_s(self) -> float:
        return _REWRITE_PAUSE_S

    async def create(self, key: str, body: bytes) -> None:
        await self._put(key, body, IfNoneMatch="*")

    async def replace(self, key: str, body: bytes) -> None:
        await self._put(key, body)

    async def get(self, key: str) -> bytes | None:
        try:
            async with self._call() as client:
                answer = await client.get_object(Bucket=self._bucket, Key=self._prefix + key)
                body: bytes = await answer["Body"].read()
                return body
        except _AbsentError:
            return None

    async def head(self, key: str) -> int | None:
        try:
            async with self._call() as client:
                answer = await client.head_object(Bucket=self._bucket, Key=self._prefix + key)
                return int(answer["ContentLength"])
        except _AbsentError:
            return None

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[str]:
        request = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        if after:
            request["StartAfter"] = self._prefix + after
        while True:
            async with self._call() as client:
                answer = await client.list_objects_v2(**request)
            for item in answer.get("Contents", ()):
                key: str = item["Key"].removeprefix(self._prefix)
                if key > after:
                    yield key
            if not answer.get("IsTruncated"):
                return
            request["ContinuationToken"] = answer["NextContinuationToken"]

    async def describe(self, operation: str) -> dict[str, Any] | None:
        """Ask about the bucket itself (`head_bucket`, ...); None if it has no such thing.

        Raises Unavailable or Invalid.
        """
        try:
            async with self._call() as client:
                answer: dict[str, Any] = await getattr(client, operation)(Bucket=self._bucket)
                return answer
        except _AbsentError:
            return None

    async def close(self) -> None:
        self._client = None
        await self._stack.aclose()

    async def _put(self, key: str, body: bytes, **condition: str) -> None:
        md5 = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        async with self._call() as client:
            await client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=body, ContentMD5=md5, **condition)

    @contextlib.asynccontextmanager
    async def _call(self) -> AsyncIterator[Any]:
        with self._translated():
            async with asyncio.timeout(self._timeout_s):
                yield await self._connected()

    async def _connected(self) -> Any:
        async with self._opening:
            if self._client is None:
                self._client = await self._stack.enter_async_context(self._make_client())
                self._client.meta.events.unregister("before-call.s3", add_expect_header)
        return self._client

    def _make_client(self) -> Any:
        config = aiobotocore.config.AioConfig(
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=self._timeout_s,
            s3={"addressing_style": "path" if self._endpoint_url else "auto"},
        )
        core = aiobotocore.session.AioSession()
        given = aws_credentials_file()
        if given is not None:
            core.set_config_variable("credentials_file", str(given))
        session = aioboto3.Session(botocore_session=core)
        return session.client("s3", endpoint_url=self._endpoint_url, region_name=self._region, config=config)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except boto.ClientError as error:
            raise self._explain(error) from error
        except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError) as error:
            raise Invalid(
                f"no credentials for the bucket {self._bucket}", detail=str(error), hint=_CREDENTIALS_HINT
            ) from error
        except (boto.SSLError, aiohttp.ClientSSLError) as error:
            raise self._explain_tls(error) from error
        except (
            boto.HTTPClientError,
            boto.ConnectionError,
            boto.ResponseStreamingError,
            boto.IncompleteReadError,
        ) as error:
            raise self._away(error) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._away(error) from error
        except (boto.BotoCoreError, ValueError) as error:
            raise Invalid(
                f"the bucket {self.url} cannot be used as it is configured",
                detail=str(error),
                hint="look at archive.url, archive.endpoint_url and archive.region",
            ) from error

    def _explain(self, error: boto.ClientError) -> CdcError:
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = str(error.response.get("Error", {}).get("Code", ""))
        detail = f"{error} (HTTP {status})"
        if status == 412:
            return AlreadyExists(f"the key exists in {self.url}")
        if code in _PASSING or status in {408, 409, 429} or status >= 500:
            return Unavailable(f"the bucket {self.url} refuses for now: {code}", detail=detail)
        if status == 404 and code in _ABSENT:
            return _AbsentError("no such object")
        hint = _HINTS.get(code, _RIGHTS_HINT if status in {401, 403} else "")
        return Invalid(
            f"the bucket {self.url} refuses: {code or status}", detail=detail, hint=hint.format(bucket=self._bucket)
        )

    def _explain_tls(self, error: Exception) -> CdcError:
        if "CERTIFICATE_VERIFY_FAILED" not in str(error):
            return self._away(error)
        return Invalid(
            f"the certificate of {self._endpoint_url or 'the S3 endpoint'} is not trusted here",
            detail=str(error),
            hint="export AWS_CA_BUNDLE=/path/to/ca.pem   # the authority that signed it",
        )

    def _away(self, error: BaseException) -> Unavailable:
        return Unavailable(
            f"the bucket {self.url} does not answer", detail=f"{type(error).__name__}: {error}".removesuffix(": ")
        )


class _AbsentError(CdcError):
    pass
