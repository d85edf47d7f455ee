"""A bucket in memory, for tests, simulations and examples. It keeps the whole contract, but ends with the process."""

from collections.abc import AsyncIterator

from cdc.archive.bucket.bucket import AlreadyExists


class MemoryBucket:
    """Stores objects in a dict, which tests may look into and damage."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return "memory:"

    @property
    def rewrite_pause_s(self) -> float:
        return 0.0

    async def create(self, key: str, body: bytes) -> None:
        if key in self.objects:
            raise AlreadyExists(f"{key} exists")
        self.objects[key] = body

    async def get(self, key: str) -> bytes | None:
        return self.objects.get(key)

    async def head(self, key: str) -> int | None:
        body = self.objects.get(key)
        return None if body is None else len(body)

    async def replace(self, key: str, body: bytes) -> None:
        self.objects[key] = body

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[str]:
        for key in sorted(self.objects):
            if key.startswith(prefix) and key > after:
                yield key

    async def close(self) -> None:
        pass
