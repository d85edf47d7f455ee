"""Keeps the cache's feed over a service's life: it begins with the first stream, and survives every lost connection.

The cache stays open when a replication connection is lost: it may still have much to apply, or to catch up. Only a new
epoch ends a feed, because positions of the old one mean nothing in it.
"""

import asyncio

import structlog

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.reader.reader import ArchiveReader
from cdc.cache.sink import CacheSink
from cdc.config import Settings
from cdc.errors import Unavailable
from cdc.health.vitals import Vitals
from cdc.pipeline.cache_feed import CacheFeed
from cdc.position import Epoch, Position
from cdc.service.backfill import warm_up
from cdc.service.tables import PublicationWatch

log = structlog.get_logger()

# Seconds for the cache to apply what waits when the service stops. It catches up at the next start anyway.
CACHE_DRAIN_S = 5.0


class Feeding:
    """Keeps one service's feed. Without `cache.url` there is none."""

    def __init__(self, settings: Settings, tables: PublicationWatch, vitals: Vitals) -> None:
        self._settings = settings
        self._tables = tables
        self._vitals = vitals
        self._feed: CacheFeed | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, tasks: asyncio.TaskGroup, epoch: Epoch, bucket: Bucket, since_lsn: int) -> CacheFeed | None:
        """Give the feed, set to a connection that sends everything after `since_lsn`. Raises Invalid for a wrong cache.

        None without `cache.url`.
        """
        if self._settings.cache.url is None:
            return None
        if self._feed is not None and self._feed.epoch != epoch:
            await self.finish()
        if self._feed is None:
            sink = CacheSink(self._settings.cache, epoch)
            await _probe(sink)
            self._feed = CacheFeed(
                sink,
                ArchiveReader(bucket),
                lambda: self._warm_up(sink),
                self._settings.cache.queue_bytes,
                self._vitals,
            )
            self._feed.restart(since_lsn)
            self._task = tasks.create_task(self._feed.run(), name="cache feed")
        else:
            self._feed.restart(since_lsn)
        return self._feed

    async def finish(self) -> None:
        """Let the cache take what waits, within `CACHE_DRAIN_S`, and close it."""
        if self._feed is None or self._task is None:
            return
        self._feed.queue.close()
        await asyncio.wait([self._task], timeout=CACHE_DRAIN_S)
        self._task.cancel()
        await self._feed.close()
        self._feed = self._task = None

    async def _warm_up(self, sink: CacheSink) -> Position:
        if self._tables.publication is None:
            raise Unavailable("the publication is not known yet")
        return await warm_up(self._settings, self._tables.publication, sink)


async def _probe(sink: CacheSink) -> None:
    """Open the cache once. A mistake in the configuration ends the service; a cache that is away does not."""
    try:
        await sink.open()
    except Unavailable as error:
        log.warning("cache_unavailable", **error.log_fields())
