"""A bucket with the private keys to its objects. Only code that reads rows asks for them (`keys_of`)."""

from collections.abc import AsyncIterator

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.format.encryption import NO_KEYS, Keys


class UnlockedBucket:
    """Passes every call to another bucket unchanged: objects come and go as they are stored."""

    def __init__(self, bucket: Bucket, keys: Keys) -> None:
        self._bucket = bucket
        self.keys = keys

    @property
    def url(self) -> str:
        return self._bucket.url

    @property
    def rewrite_pause_s(self) -> float:
        return self._bucket.rewrite_pause_s

    async def create(self, key: str, body: bytes) -> None:
        await self._bucket.create(key, body)

    async def get(self, key: str) -> bytes | None:
        return await self._bucket.get(key)

    async def head(self, key: str) -> int | None:
        return await self._bucket.head(key)

    async def replace(self, key: str, body: bytes) -> None:
        await self._bucket.replace(key, body)

    def list(self, prefix: str, after: str = "") -> AsyncIterator[str]:
        return self._bucket.list(prefix, after)

    async def close(self) -> None:
        await self._bucket.close()


def keys_of(bucket: Bucket) -> Keys:
    """The private keys to a bucket's objects; none if none were given."""
    return bucket.keys if isinstance(bucket, UnlockedBucket) else NO_KEYS
