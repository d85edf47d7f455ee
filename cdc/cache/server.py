"""Reads the facts that the Redis server tells of itself, and checks whether the cache can be kept on it. Read only."""

from dataclasses import dataclass
from typing import Final

import structlog

from cdc.cache.checkpoint import META_KEY
from cdc.cache.connection import Connection
from cdc.config import CacheSettings
from cdc.errors import Invalid, Unavailable
from cdc.lsn import parse_lsn
from cdc.position import Epoch

log = structlog.get_logger()

OLDEST_VERSION: Final = (6, 2)


@dataclass(frozen=True, slots=True)
class CachedPosition:
    """The position in `cdc:meta`: the cache is complete up to `lsn` of `epoch`."""

    lsn: int
    epoch: Epoch
    updated_at: str


@dataclass(frozen=True, slots=True)
class CacheServer:
    """The facts of a server. `version` is the Redis version, which Valkey tells too. An unknown text is ''."""

    software: str
    version: tuple[int, ...]
    role: str
    cluster: bool
    maxmemory_bytes: int
    maxmemory_policy: str
    append_only: bool
    checkpoint: CachedPosition | None
    used_bytes: int = 0
    loading: bool = False


async def read_cache_server(settings: CacheSettings) -> CacheServer:
    """Ask the server once. Raises Unavailable or Invalid."""
    connection = Connection(settings)
    try:
        info = await connection.call(b"INFO")
        meta = await connection.call(b"HMGET", META_KEY, b"lsn", b"epoch", b"updated_at")
    finally:
        await connection.close()
    return describe(info, *meta)


def describe(info: bytes, *meta: bytes | None) -> CacheServer:
    """Parse a server's answer to INFO. `meta` is the checkpoint's `lsn`, `epoch` and `updated_at`, if it was read."""
    facts = _parse_info(info)
    return CacheServer(
        software=facts.get("server_name", "redis"),
        version=tuple(int(part) for part in facts.get("redis_version", "0").split(".") if part.isdecimal()),
        role=facts.get("role", ""),
        cluster=facts.get("cluster_enabled") == "1",
        maxmemory_bytes=int(facts.get("maxmemory", 0)),
        maxmemory_policy=facts.get("maxmemory_policy", ""),
        append_only=facts.get("aof_enabled") == "1",
        checkpoint=_reached(*meta) if meta else None,
        used_bytes=int(facts.get("used_memory", 0)),
        loading=facts.get("loading") == "1",
    )


def check_server(server: CacheServer) -> None:
    """Raise Invalid if the cache cannot be kept on this server, Unavailable if it cannot be kept there for now."""
    if server.version < OLDEST_VERSION:
        version = ".".join(map(str, server.version))
        raise Invalid(f"Redis {version} is too old", hint="use Redis 6.2 or later, or Valkey")
    if server.cluster:
        raise Invalid(
            "cache.url leads to a cluster",
            hint="use one server (or one primary with replicas): the checkpoint and the keys change together",
        )
    if server.role == "slave":
        raise Unavailable("cache.url leads to a replica", hint="point cache.url to the primary")
    if server.loading:
        raise Unavailable("Redis is loading its data")
    if server.maxmemory_policy.startswith("allkeys"):
        log.warning(
            "cache_eviction_hits_checkpoint",
            policy=server.maxmemory_policy,
            hint="CONFIG SET maxmemory-policy volatile-lru",
        )


def _parse_info(info: bytes) -> dict[str, str]:
    """Parse INFO's lines `name:value`; headings and empty lines have no colon."""
    return dict(line.split(":", 1) for line in info.decode(errors="replace").splitlines() if ":" in line)


def _reached(lsn: bytes | None, epoch: bytes | None, updated_at: bytes | None) -> CachedPosition | None:
    """The checkpoint's position; None for a cache that was not warmed, or for a checkpoint that is not ours."""
    try:
        system_identifier, _, timeline = (epoch or b"").decode().partition("/")
        position = parse_lsn((lsn or b"").decode())
        return CachedPosition(position, Epoch(system_identifier, int(timeline)), (updated_at or b"").decode())
    except ValueError:
        return None
