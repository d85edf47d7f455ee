"""Looks into the Redis that holds the cache: at a sample of its keys, the time an answer takes, and its clock."""

import time
from dataclasses import dataclass
from typing import Any, Final

from cdc.cache.checkpoint import META_KEY
from cdc.cache.connection import Connection
from cdc.cache.projection import Template
from cdc.config import CacheSettings
from cdc.errors import Invalid

# The sample is one SCAN, which answers at once. Only some of our keys are asked for their expiry.
_SAMPLE: Final = b"1000"
_ASKED: Final = 50
_PINGS: Final = 3


@dataclass(frozen=True, slots=True)
class Contents:
    """A sample of keys. `foreign` of them fit none of our templates; `immortal` of up to 50 others have no expiry."""

    sampled: int
    foreign: int
    immortal: int
    round_trip_s: float


async def read_contents(settings: CacheSettings) -> Contents:
    """Read a sample of keys, and the round trip in seconds. Raises Unavailable or Invalid."""
    connection = Connection(settings)
    try:
        round_trip_s = min([await _ping_s(connection) for _ in range(_PINGS)])
        keys = [key for key in await _sample(connection) if key != META_KEY]
        templates = [Template(projection.key) for projection in settings.projections]
        ours = [key for key in keys if any(template.regex.fullmatch(key) for template in templates)]
        immortal = [key for key in ours[:_ASKED] if await connection.call(b"TTL", key) == -1]
        return Contents(len(keys), len(keys) - len(ours), len(immortal), round_trip_s)
    finally:
        await connection.close()


async def _ping_s(connection: Connection) -> float:
    begun = time.perf_counter()
    await connection.call(b"PING")
    return time.perf_counter() - begun


async def _sample(connection: Connection) -> list[bytes]:
    """Read a page of keys; empty if the user may not SCAN, which the cache itself needs for TRUNCATE only."""
    try:
        _, keys = await connection.call(b"SCAN", b"0", b"COUNT", _SAMPLE)
    except Invalid:
        return []
    found: list[bytes] = keys
    return found


async def read_cache_time(settings: CacheSettings) -> float | None:
    """Read Redis's clock in seconds since 1970; None if the user may not ask. Raises Unavailable or Invalid."""
    connection = Connection(settings)
    try:
        answer: Any = await connection.call(b"TIME")
    except Invalid:
        return None
    finally:
        await connection.close()
    return int(answer[0]) + int(answer[1]) / 1e6
