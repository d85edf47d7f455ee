"""What the Redis server says of itself: facts for `cdc doctor` and `cdc status`. Nothing is written here."""

from dataclasses import dataclass
from typing import Any

from cdc.cache.connection import Connection
from cdc.config import CacheSettings
from cdc.lsn import parse_lsn
from cdc.sink import Epoch

META_KEY = "cdc:meta"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What `cdc:meta` holds: the cache is complete up to `lsn` of `epoch`."""

    lsn: int
    epoch: Epoch
    updated_at: str


@dataclass(frozen=True, slots=True)
class CacheServer:
    """`version` is that of Redis, whose commands Valkey speaks too. A fact that the server does not tell is ''."""

    software: str
    version: tuple[int, ...]
    role: str
    cluster: bool
    maxmemory_bytes: int
    maxmemory_policy: str
    append_only: bool
    checkpoint: Checkpoint | None
    used_bytes: int = 0


async def read_cache_server(settings: CacheSettings) -> CacheServer:
    """Ask the server once. Raises Unavailable or Invalid."""
    connection = Connection(settings)
    try:
        info = await connection.call(b"INFO")
        meta = await connection.call(b"HMGET", META_KEY.encode(), b"lsn", b"epoch", b"updated_at")
    finally:
        await connection.close()
    return _facts(_parse_info(info), meta)


def _parse_info(info: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in info.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def _facts(info: dict[str, str], meta: list[Any]) -> CacheServer:
    return CacheServer(
        software=info.get("server_name", "redis"),
        version=tuple(int(part) for part in info.get("redis_version", "0").split(".") if part.isdecimal()),
        role=info.get("role", ""),
        cluster=info.get("cluster_enabled") == "1",
        maxmemory_bytes=int(info.get("maxmemory", 0)),
        maxmemory_policy=info.get("maxmemory_policy", ""),
        append_only=info.get("aof_enabled") == "1",
        checkpoint=_checkpoint(*meta),
        used_bytes=int(info.get("used_memory", 0)),
    )


def _checkpoint(lsn: bytes | None, epoch: bytes | None, updated_at: bytes | None) -> Checkpoint | None:
    """None for a cache that has not been warmed, or whose checkpoint is not one of ours."""
    try:
        system_identifier, _, timeline = (epoch or b"").decode().partition("/")
        position = parse_lsn((lsn or b"").decode())
        return Checkpoint(position, Epoch(system_identifier, int(timeline)), (updated_at or b"").decode())
    except ValueError:
        return None
