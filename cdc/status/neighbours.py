"""Reads the state of Postgres, the archive and the cache. An error takes the place of a state that cannot be read."""

from dataclasses import dataclass, field

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.bucket.opening import open_bucket
from cdc.archive.format.header import Gap
from cdc.archive.format.object_key import log_key
from cdc.archive.format.segment import decode_segment_header
from cdc.archive.proof.proofs import Proofs, only_of, read_proofs
from cdc.archive.reader.tail import Tail, read_tail
from cdc.cache.server import CachedPosition, read_cache_server
from cdc.config import ArchiveSettings, CacheSettings, PostgresSettings
from cdc.errors import CdcError
from cdc.postgres.server import Server, current_wal_lsn, read_server
from cdc.postgres.session import connect
from cdc.postgres.slot import Slot, read_slot

# Fences and coverage carry no changes, and so no time. The last changes are rarely further back than this.
_LOOK_BACK_SEGMENTS = 8


@dataclass(frozen=True, slots=True)
class PostgresStatus:
    """The state of Postgres. `slot` is None if there is none. `error` says why Postgres could not answer everything."""

    slot_name: str
    server: Server | None = None
    slot: Slot | None = None
    current_lsn: int | None = None
    error: CdcError | None = None


@dataclass(frozen=True, slots=True)
class ArchiveStatus:
    """The state of the archive. `tail` is None if it is empty.

    `last_time_us` is the commit time of the newest change near the tail, in microseconds since 1970.
    """

    url: str
    tail: Tail | None = None
    last_time_us: int | None = None
    error: CdcError | None = None
    open_gap: Gap | None = None
    proofs: Proofs = field(default_factory=Proofs)


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """The state of the cache. `checkpoint` is None while the cache is empty or being warmed."""

    configured: bool
    checkpoint: CachedPosition | None = None
    error: CdcError | None = None


async def look_at_postgres(settings: PostgresSettings) -> PostgresStatus:
    """Read the state of the server and of our slot. A CdcError stands in the result, and is not raised."""
    server: Server | None = None
    try:
        async with await connect(settings) as connection:
            server = await read_server(connection)
            slot = await read_slot(connection, settings.slot)
            return PostgresStatus(settings.slot, server, slot, await current_wal_lsn(connection))
    except CdcError as error:
        return PostgresStatus(settings.slot, server, error=error)


async def look_at_archive(settings: ArchiveSettings) -> ArchiveStatus:
    """Read the tail, an open gap and the proofs. A CdcError stands in the result, and is not raised."""
    try:
        bucket = open_bucket(settings)
        try:
            tail = await read_tail(bucket)
            last_time_us = None if tail is None else await _last_time_us(bucket, tail.seq)
            open_gap = None if tail is None else await _open_gap(bucket, tail)
            proofs = Proofs() if tail is None else only_of(await read_proofs(bucket), tail.archive)
        finally:
            await bucket.close()
    except CdcError as error:
        return ArchiveStatus(settings.url, error=error)
    return ArchiveStatus(settings.url, tail, last_time_us, open_gap=open_gap, proofs=proofs)


async def _open_gap(bucket: Bucket, tail: Tail) -> Gap | None:
    body = None if tail.open_gap is None else await bucket.get(log_key(tail.open_gap))
    return None if body is None else decode_segment_header(body).gap


async def _last_time_us(bucket: Bucket, seq: int) -> int | None:
    for earlier in range(seq, max(-1, seq - _LOOK_BACK_SEGMENTS), -1):
        body = await bucket.get(log_key(earlier))
        header = None if body is None else decode_segment_header(body)
        if header is not None and header.to_time_us is not None:
            return header.to_time_us
    return None


async def look_at_cache(settings: CacheSettings) -> CacheStatus:
    """Read the cache's checkpoint. A CdcError stands in the result, and is not raised."""
    if settings.url is None:
        return CacheStatus(configured=False)
    try:
        return CacheStatus(True, (await read_cache_server(settings)).checkpoint)
    except CdcError as error:
        return CacheStatus(True, error=error)
