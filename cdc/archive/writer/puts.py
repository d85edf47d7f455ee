"""PUTs objects that are created once: it sends the same bytes again and again until they are there.

A lost answer, or a bucket that is away, leaves open whether an attempt was applied. The next one tells. If the key is
taken, the bytes are compared: ours mean that an earlier attempt had succeeded, others mean that another writer was
faster.
"""

import asyncio
import random
import time

import structlog

from cdc import metrics
from cdc.archive.bucket.bucket import AlreadyExists, Bucket
from cdc.errors import Fenced, Unavailable

log = structlog.get_logger()

_STRUGGLING_S = 5.0


class Puts:
    """PUTs objects, and retries. `retry_s` is the pause after a first failure, doubled up to `max_retry_s`."""

    def __init__(self, bucket: Bucket, retry_s: float, max_retry_s: float) -> None:
        self._bucket = bucket
        self._retry_s = retry_s
        self._max_retry_s = max_retry_s
        self._failing = False
        self._since: float | None = None

    @property
    def struggling(self) -> bool:
        """True while a PUT has failed and is tried again, or takes suspiciously long."""
        since = self._since
        return self._failing or (since is not None and time.monotonic() - since > _STRUGGLING_S)

    async def try_once(self, key: str, body: bytes) -> bool:
        """PUT once; False if other bytes are under the key. Raises Unavailable or Invalid."""
        metrics.puts.inc()
        try:
            await self._bucket.create(key, body)
        except AlreadyExists:
            return await self._bucket.get(key) == body
        return True

    async def settle(self, key: str, body: bytes) -> None:
        """PUT these bytes until they are there. Raises Fenced if others are, Invalid if the bucket refuses."""
        self._since, attempt = time.monotonic(), 0
        try:
            while not await self._settled(key, body):
                attempt += 1
                await asyncio.sleep(self._pause_s(attempt))
        finally:
            self._since, self._failing = None, False

    async def _settled(self, key: str, body: bytes) -> bool:
        """Try once; False if the bucket is away for now. Raises Fenced."""
        metrics.puts.inc()
        try:
            await self._bucket.create(key, body)
        except AlreadyExists:
            return await self._compare(key, body)
        except Unavailable as error:
            self._note_failure(key, error)
            return False
        return True

    async def _compare(self, key: str, body: bytes) -> bool:
        try:
            existing = await self._bucket.get(key)
        except Unavailable as error:
            self._note_failure(key, error)
            return False
        if existing == body:
            return True
        if existing is None:
            self._note_failure(key, Unavailable("the bucket says both that the key is taken and that it is not"))
            return False
        raise Fenced(
            f"another writer owns the archive: {key} holds other bytes than ours",
            detail=f"The archive is {self._bucket.url}. This process has changed nothing in it since it lost it.",
            hint="cdc archive ls   # the writer's id is in each header; run only one service per archive",
        )

    def _note_failure(self, key: str, error: Unavailable) -> None:
        metrics.retries.labels(sink="archive").inc()
        metrics.errors.labels("archive", type(error).__name__).inc()
        event = log.info if self._failing else log.warning
        event("put_failed", key=key, error=error.message, detail=error.detail)
        self._failing = True

    def _pause_s(self, attempt: int) -> float:
        pause_s = min(self._retry_s * 2 ** min(attempt - 1, 16), self._max_retry_s)
        return float(pause_s) * random.uniform(1.0, 1.25)  # noqa: S311 - spreads attempts, guards nothing
