"""`cdc run`: wires the rooms, keeps a session going, and ends with an exit code that tells a supervisor what to do.

The order of a start, which is the order in which things can be known to be wrong (DESIGN §4):

1. the server: version, wal_level, publication, replica identities;
2. the bucket refuses to overwrite, or we refuse to start;
3. the archive's tail: whose history it is, and how far it is covered; a new timeline of the same is a fork;
4. the slot: with a new archive it is created and existing rows are backfilled; otherwise it must be there;
5. START_REPLICATION, which is the lock: while another service has the slot we stand by;
6. with the slot held: the tail again, `confirmed_flush <= covered_upto`, the tables that were published before, the
   fence, and what the stream must show first. Only now data is written.

`Unavailable` anywhere means: wait, with backoff, and begin again at 1. `ChangesLost` is first written down as a gap;
then, with `archive.on_gap = "resnapshot"`, it means the same, and 4 closes the gap. Every other error ends the service.
"""

import asyncio
import gc
import signal
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import structlog

from cdc import metrics
from cdc.archive.bucket.bucket import Bucket, open_bucket, prove_conditional_put
from cdc.archive.proof.proofs import watch
from cdc.archive.reader.reader import ArchiveReader
from cdc.archive.reader.tail import check_wal_end
from cdc.archive.writer.sink import ArchiveSink
from cdc.cache.sink import CacheSink
from cdc.config import Settings
from cdc.crash import crash_point
from cdc.errors import CdcError, ChangesLost, DataError, Diverged, Fenced, Invalid, Unavailable
from cdc.health.vitals import Phase, Upstream, Vitals
from cdc.lsn import format_lsn
from cdc.pgoutput.assembler import Assembler
from cdc.pipeline.cache_feed import CacheFeed
from cdc.pipeline.continuity import Continuity
from cdc.pipeline.progress import Progress
from cdc.pipeline.session import Session
from cdc.position import Epoch, Position
from cdc.postgres.publication import Publication, read_publication, type_names
from cdc.postgres.publication_check import check_publication
from cdc.postgres.server import Server, current_wal_lsn, verdict_on
from cdc.postgres.session import check_dsn, connect
from cdc.postgres.slot import read_slot
from cdc.postgres.stream.replication import ReplicationStream
from cdc.postgres.stream.sentinel import Sentinel
from cdc.service import start
from cdc.service.backfill import warm_up
from cdc.service.companions import companions
from cdc.service.fork import check_snapshot, follow_timeline
from cdc.service.gap import check_tables, record_gap, source_of

log = structlog.get_logger()

_Result = TypeVar("_Result")

BACKOFF_FIRST_S, BACKOFF_LAST_S = 0.2, 10.0
# An attempt that lasted so long was a working service: what ends it starts a new series of attempts.
SETTLED_S = 30.0
# What the cache may take to apply what waits when the service stops; it catches up at the next start anyway.
CACHE_DRAIN_S = 5.0

_GRAVITY = (Fenced, Diverged, DataError, Invalid, Unavailable)


async def run(settings: Settings, *, only_repair: bool = False) -> int:
    """Run until SIGTERM or SIGINT; return the exit code. Errors are logged here, once, with their hints.

    `only_repair` ends before the first change would flow: what a start must mend is mended then.
    """
    _spare_the_collector()
    stop, vitals = asyncio.Event(), Vitals()

    def finish() -> None:
        vitals.enter(Phase.STOPPING)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, finish)
    for file in settings.exposed_files:
        log.warning("secret_exposed", file=str(file), hint=f"chmod o-rwx {file}")
    service = Service(settings, stop, vitals, only_repair=only_repair)
    try:
        if only_repair:
            await service.run()
        else:
            async with companions(settings, vitals):
                await service.run()
    except CdcError as error:
        log.error("service_failed", **_fields(error), exit_code=error.exit_code)
        return error.exit_code
    log.info("service_stopped")
    return 0


def _spare_the_collector() -> None:
    """Changes hold no cycles, so looking for some costs time (measured: 5-8 % of our CPU) and finds nothing."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def _fields(error: CdcError) -> dict[str, str]:
    return {"kind": type(error).__name__, "reason": error.message, "detail": error.detail, "hint": error.hint}


class GapRecorded(Unavailable):
    """The gap is in the archive, and the next attempt closes it."""


def _upstream_of(server: Server, settings: Settings) -> Upstream:
    return Upstream(
        server.epoch.system_identifier,
        server.epoch.timeline,
        server.database,
        server.server_version,
        settings.postgres.slot,
        settings.postgres.publication,
    )


def gravest(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of a task group that decides how the service ends; a bug goes before all we foresaw."""
    leaves = list(_leaves(group))
    for error in leaves:
        if not isinstance(error, CdcError):
            return error
    return min(
        leaves, key=lambda error: next(i for i, kind in enumerate((*_GRAVITY, CdcError)) if isinstance(error, kind))
    )


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


class Service:
    """Keeps one session going until stopped. Everything it opens is closed when `run` ends."""

    def __init__(
        self, settings: Settings, stop: asyncio.Event, vitals: Vitals | None = None, *, only_repair: bool = False
    ) -> None:
        self._settings = settings
        self._stop = stop
        self._vitals = vitals or Vitals()
        self._only_repair = only_repair
        self._bucket: Bucket | None = None
        self._archive: ArchiveSink | None = None
        self._feed: CacheFeed | None = None
        self._feeding: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._publication: Publication | None = None
        self._tables: dict[str, int] = {}
        self._tables_lsn = 0
        self._writer_epoch = 0
        self._in_session = False

    async def run(self) -> None:
        """Work until stopped. Raises the error that a person or a supervisor must see."""
        check_dsn(self._settings.postgres)
        try:
            async with asyncio.TaskGroup() as tasks:
                await tasks.create_task(self._keep_going(tasks), name="sessions")
                await self._finish_feeding()
                if self._watching is not None:
                    self._watching.cancel()
        except BaseExceptionGroup as group:
            raise gravest(group) from None
        finally:
            if self._bucket is not None:
                await self._bucket.close()

    async def _keep_going(self, tasks: asyncio.TaskGroup) -> None:
        backoff_s = BACKOFF_FIRST_S
        while not self._stop.is_set():
            started = time.monotonic()
            self._vitals.enter(Phase.STARTING)
            try:
                await self._unless_stopped(self._attempt(tasks))
                if self._only_repair and not self._stop.is_set():
                    return
            except (CdcError, BaseExceptionGroup) as raised:
                error = gravest(raised) if isinstance(raised, BaseExceptionGroup) else raised
                if isinstance(error, ChangesLost):
                    error = await self._unless_stopped(self._write_down(error)) or Unavailable("stopped meanwhile")
                if not isinstance(error, GapRecorded if self._only_repair else Unavailable):
                    raise error from None
                if time.monotonic() - started > SETTLED_S:
                    backoff_s = BACKOFF_FIRST_S
                self._vitals.interrupted(error)
                log.warning("interrupted", **_fields(error), retry_s=backoff_s)
                metrics.reconnects.inc()
                metrics.errors.labels("service", type(error).__name__).inc()
                await self._pause(backoff_s)
                backoff_s = min(backoff_s * 2, BACKOFF_LAST_S)
        if self._only_repair:
            raise Unavailable("stopped before the gap was closed", hint="cdc repair   # begins again")

    async def _write_down(self, lost: ChangesLost) -> BaseException:
        """Make a gap of what is lost; return what that means for the service."""
        self._writer_epoch = 0  # the fences since ours may be our own: whoever gets the slot next is the writer
        try:
            archive = ArchiveSink(await self._open_bucket(), self._settings.archive)
            try:
                seen = None if self._archive is None else self._archive.tail
                await record_gap(self._settings, archive, lost, seen)
            finally:
                await archive.close()
        except CdcError as error:
            return error
        if self._settings.archive.on_gap == "stop":
            return lost
        return GapRecorded(lost.message, detail=lost.detail, hint="nothing: a new slot and a new snapshot follow")

    async def _unless_stopped(self, work: Coroutine[Any, Any, _Result]) -> _Result | None:
        """Its result; None if we are asked to stop before. Only a session, once it has begun, stops by itself.

        All before may wait for a bucket for ever, and may be left at any point, as by a crash.
        """
        self._in_session = False
        task = asyncio.create_task(work, name="attempt")
        stopping = asyncio.create_task(self._stop.wait(), name="stop while starting")
        try:
            await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
            return await task if task.done() or self._in_session else None
        finally:
            task.cancel()
            stopping.cancel()
            await asyncio.gather(task, stopping, return_exceptions=True)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            pass

    async def _attempt(self, tasks: asyncio.TaskGroup) -> None:
        """One start and the session it leads to. The numbers are those of the module's story."""
        settings = self._settings
        async with AsyncExitStack() as stack:
            connection = await stack.enter_async_context(await connect(settings.postgres))
            upstream = await start.examine_upstream(connection, settings)  # 1
            crash_point("server_examined")
            bucket = await self._open_bucket()  # 2
            archive = self._archive = ArchiveSink(bucket, settings.archive)
            stack.push_async_callback(archive.close)
            async with verdict_on(connection, upstream.server):
                position = await self._open_archive(upstream, archive)  # 3
                if self._only_repair:
                    await start.check_idle(upstream, settings, position)
                await start.ensure_slot(upstream, settings, archive, position, self._vitals)  # 4
                stream = await stack.enter_async_context(
                    await ReplicationStream.open(settings.postgres, upstream.server.encoding)
                )
                start.check_identity(await stream.identify(), upstream.server)
                if not await start.acquire_stream(
                    stream, settings, archive, self._stop, self._vitals, writer_epoch=self._writer_epoch
                ):  # 5
                    return
                crash_point("slot_held")
                confirmed_lsn, continuity = await self._take_over(upstream, archive)  # 6
            if self._only_repair:
                return
            self._publication = upstream.publication
            sentinel = await self._open_sentinel(stack)
            if self._watching is None and archive.tail is not None:
                self._watching = tasks.create_task(watch(bucket, archive.tail.archive), name="proofs")
            feed = await self._start_feed(tasks, upstream.server.epoch, bucket, confirmed_lsn)
            self._vitals.stream(_upstream_of(upstream.server, settings), archive.covered_upto)
            log.info("streaming", confirmed=format_lsn(confirmed_lsn), archived=format_lsn(archive.covered_upto))
            session = Session(
                stream,
                Assembler(await type_names(connection), upstream.publication.primary_keys),
                archive,
                feed,
                Progress(confirmed_lsn),
                continuity,
                settings.archive,
                self._vitals,
                recheck=lambda: self._recheck_publication(archive),
                still_served=lambda: self._is_served(stream.backend_pid),
                silence_s=settings.postgres.silence_s,
                status_interval_s=self._status_interval_s(upstream.server),
            )
            self._in_session = True
            await session.run(self._stop, sentinel)

    async def _open_archive(self, upstream: start.Upstream, archive: ArchiveSink) -> Position | None:
        """3. Where the archive stands, on the server's timeline."""
        source = source_of(upstream.server, self._settings, {})
        position = await archive.open()
        tail = archive.tail
        if tail is not None and (tail.source.epoch != source.epoch or tail.open_gap is not None):
            self._writer_epoch = 0  # a fork that we record is a fence, too, and a repair begins with one
        if await follow_timeline(upstream.connection, upstream.server, self._settings, archive):
            position = await archive.open()
        archive.check_source(source)
        check_wal_end(await current_wal_lsn(upstream.connection), archive.covered_upto)
        await check_snapshot(archive)
        return position

    async def _take_over(self, upstream: start.Upstream, archive: ArchiveSink) -> tuple[int, Continuity]:
        """6. Become the writer, which only the slot's holder does; return where the slot stands, and what is due."""
        connection, settings = upstream.connection, self._settings
        slot = await read_slot(connection, settings.postgres.slot)
        position = await archive.open()
        if slot is None or position is None or archive.tail is None:
            raise Unavailable("slot or archive changed hands during the start")
        archive.check_source(source_of(upstream.server, settings, {}))  # or the two positions cannot be compared
        start.check_covered(slot, position.lsn)
        publication = await read_publication(connection, settings.postgres.publication)
        self._tables = await check_tables(connection, publication, archive.tail.source.tables, archive)
        self._tables_lsn = position.lsn
        self._writer_epoch = 0  # until the fence is settled: one whose answer is lost is our own all the same
        crash_point("fence_unwritten")
        await archive.fence(source_of(upstream.server, settings, self._tables))
        crash_point("fence_written")
        self._writer_epoch = archive.tail.writer_epoch
        if archive.tail.open_gap is not None:
            raise Unavailable("another service recorded a gap during the start; looking again")
        continuity = await start.expect_replay(upstream, settings, slot, archive.tail)
        return slot.confirmed_flush_lsn or position.lsn, continuity

    async def _open_sentinel(self, stack: AsyncExitStack) -> Sentinel | None:
        try:
            return await stack.enter_async_context(Sentinel(self._settings.postgres))
        except Unavailable as error:
            log.warning("sentinel_unavailable", **_fields(error))
            return None

    def _status_interval_s(self, server: Server) -> float:
        """Well inside `wal_sender_timeout`, whatever the configuration says."""
        interval_s = self._settings.postgres.status_interval_s
        timeout_s = server.wal_sender_timeout_s
        return min(interval_s, timeout_s / 4) if timeout_s else interval_s

    async def _open_bucket(self) -> Bucket:
        if self._bucket is None:
            bucket = open_bucket(self._settings.archive)
            try:
                await prove_conditional_put(bucket)
            except BaseException:
                await bucket.close()
                raise
            self._bucket = bucket
        return self._bucket

    async def _recheck_publication(self, archive: ArchiveSink) -> None:
        """Before covering idle WAL, and now and then: an unpublished or recreated table loses rows without a word."""
        covered_upto = archive.covered_upto
        async with await connect(self._settings.postgres) as connection:
            publication = await read_publication(connection, self._settings.postgres.publication)
            self._tables = await check_tables(
                connection, publication, self._tables, archive, since_lsn=self._tables_lsn
            )
        self._tables_lsn = covered_upto
        known = self._publication
        if known is not None and publication.fingerprint != known.fingerprint:
            log.warning("publication_changed", publication=publication.name, tables=len(publication.tables))
            check_publication(publication, self._settings.cache.served)
        self._publication = publication

    async def _is_served(self, wal_sender_pid: int) -> bool:
        """Whether the server, asked over a connection of its own, still has our WAL sender on the slot."""
        async with await connect(self._settings.postgres) as connection:
            slot = await read_slot(connection, self._settings.postgres.slot)
        return slot is not None and slot.active_pid == wal_sender_pid

    # the cache ----------------------------------------------------------------------------------------------------

    async def _start_feed(
        self, tasks: asyncio.TaskGroup, epoch: Epoch, bucket: Bucket, since_lsn: int
    ) -> CacheFeed | None:
        """The feed lives as long as the service: a lost replication connection is no reason to let the cache go."""
        if self._settings.cache.url is None:
            return None
        if self._feed is not None and self._feed.epoch != epoch:
            await self._finish_feeding()
        if self._feed is None:
            sink = CacheSink(self._settings.cache, epoch)
            await self._probe(sink)
            self._feed = CacheFeed(
                sink, ArchiveReader(bucket), self._warm_up, self._settings.cache.queue_bytes, self._vitals
            )
            self._feed.restart(since_lsn)
            self._feeding = tasks.create_task(self._feed.run(), name="cache feed")
        else:
            self._feed.restart(since_lsn)
        return self._feed

    async def _probe(self, sink: CacheSink) -> None:
        """A mistake in the configuration ends the service at its start; a cache that is merely away never does."""
        try:
            await sink.open()
        except Unavailable as error:
            log.warning("cache_unavailable", **_fields(error))

    async def _warm_up(self, sink: CacheSink, epoch: Epoch) -> Position:
        if self._publication is None:
            raise Unavailable("the publication is not known yet")
        return await warm_up(self._settings, self._publication, epoch, sink)

    async def _finish_feeding(self) -> None:
        if self._feed is None or self._feeding is None:
            return
        self._feed.queue.close()
        await asyncio.wait([self._feeding], timeout=CACHE_DRAIN_S)
        self._feeding.cancel()
        await self._feed.close()
        self._feed = self._feeding = None
