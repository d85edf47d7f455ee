"""Removes the cache's keys: first the checkpoint, then the keys that the configured projections write.

Without its checkpoint the cache is "not warmed". So a removal that stops half-way leaves no cache that claims to be
complete. Keys of projections that are no longer configured are not known here; they expire by themselves.
"""

from contextlib import aclosing

from cdc.cache.checkpoint import META_KEY
from cdc.cache.connection import Connection
from cdc.cache.projection import Template
from cdc.cache.sweep import scan
from cdc.config import CacheSettings


async def remove_keys(settings: CacheSettings) -> int:
    """Unlink all of the cache's keys; return their number. Raises Unavailable or Invalid."""
    connection = Connection(settings)
    try:
        removed = int(await connection.call(b"UNLINK", META_KEY))
        for pattern in {Template(projection.key).pattern for projection in settings.projections}:
            removed += await _remove_matching(connection, pattern)
        return removed
    finally:
        await connection.close()


async def _remove_matching(connection: Connection, pattern: bytes) -> int:
    removed = 0
    async with aclosing(scan(connection, pattern)) as pages:
        async for keys in pages:
            removed += int(await connection.call(b"UNLINK", *keys)) if keys else 0
    return removed
