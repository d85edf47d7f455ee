"""Reads the cache as any reader does, with plain commands, for `cdc demo` and for tests. Nothing is written here."""

from cdc.cache.checkpoint import META_KEY
from cdc.cache.connection import Connection
from cdc.config import CacheSettings
from cdc.lsn import parse_lsn


class CacheReader:
    """Reads over one connection, for one task. Every method may raise Unavailable or Invalid."""

    def __init__(self, settings: CacheSettings) -> None:
        self._connection = Connection(settings)

    async def value(self, key: str) -> bytes | None:
        """The string at `key`: a row, or the latest of several; None if there is none."""
        value: bytes | None = await self._connection.call(b"GET", key.encode())
        return value

    async def members(self, key: str) -> list[bytes]:
        """The rows of a history, oldest first."""
        members: list[bytes] = await self._connection.call(b"ZRANGE", key.encode(), b"0", b"-1")
        return members

    async def exists(self, key: str) -> bool:
        return bool(await self._connection.call(b"EXISTS", key.encode()))

    async def keys(self) -> set[str]:
        """All keys but the checkpoint, in one blocking command: not for a large cache in use."""
        keys: list[bytes] = await self._connection.call(b"KEYS", b"*")
        return {key.decode() for key in keys} - {META_KEY.decode()}

    async def count(self) -> int:
        """The number of keys, the checkpoint included."""
        return int(await self._connection.call(b"DBSIZE"))

    async def lsn(self) -> int:
        """The LSN up to which the cache is complete; 0 if it is not warmed."""
        text: bytes | None = await self._connection.call(b"HGET", META_KEY, b"lsn")
        return 0 if text is None else parse_lsn(text.decode())

    async def close(self) -> None:
        await self._connection.close()
