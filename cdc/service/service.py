"""`cdc run`: wires the rooms, keeps a session going, and ends with an exit code that tells a supervisor what to do.

`start.py` makes a start, and `cdc.pipeline.session` runs a session. This file decides what follows when one ends.

`Unavailable` anywhere means: wait, with backoff, and start again. `ChangesLost` is first written down as a gap. Then,
with `archive.on_gap = "resnapshot"`, it means the same, and the next start closes the gap. Every other error ends the
service.
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
from cdc.archive.proof.proofs import watch
from cdc.archive.writer.sink import ArchiveSink
from cdc.config import Settings
from cdc.errors import CdcError, ChangesLost, DataError, Diverged, Fenced, Invalid, Unavailable
from cdc.health.vitals import Phase, SourceFacts, Vitals
from cdc.lsn import format_lsn
from cdc.pgoutput.assembler import Assembler
from cdc.pipeline.archive_feed import ArchiveFeed
from cdc.pipeline.cache_feed import CacheFeed
from cdc.pipeline.progress import Progress
from cdc.pipeline.session import Incoming, Session
from cdc.pipeline.silence import Silence
from cdc.postgres.publication import type_names
from cdc.postgres.server import Server
from cdc.postgres.session import check_dsn, connect
from cdc.postgres.slot import read_slot
from cdc.postgres.stream.sentinel import Sentinel
from cdc.service.companions import companions
from cdc.service.feeding import Feeding
from cdc.service.gap import record_gap
from cdc.service.start import Lifetime, Started, start
from cdc.service.tables import PublicationWatch

log = structlog.get_logger()

_Result = TypeVar("_Result")

BACKOFF_FIRST_S, BACKOFF_LAST_S = 0.2, 10.0
# An attempt that lasted so long was a working service. The error that ends it starts a new series of attempts.
SETTLED_S = 30.0

_GRAVITY = (Fenced, Diverged, DataError, Invalid, Unavailable)


async def run(settings: Settings, *, only_repair: bool = False) -> int:
    """Run until SIGTERM or SIGINT; return the exit code. Errors are logged here, once, with their hints.

    `only_repair` ends before the first change would flow. By then the start has mended what it must.
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
        log.error("service_failed", **error.log_fields(), exit_code=error.exit_code)
        return error.exit_code
    log.info("service_stopped")
    return 0


def _spare_the_collector() -> None:
    """Make the garbage collector look for cycles less often. Changes hold none (measured: 5-8 % of our CPU)."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


class GapRecorded(Unavailable):
    """The gap is in the archive, and the next attempt closes it."""


def _source_facts(server: Server, settings: Settings) -> SourceFacts:
    return SourceFacts(
        server.epoch.system_identifier,
        server.epoch.timeline,
        server.database,
        server.server_version,
        settings.postgres.slot,
        settings.postgres.publication,
    )


def gravest(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Pick the error of a task group that decides how the service ends. A bug goes before every CdcError."""
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
        tables, vitals = PublicationWatch(settings), vitals or Vitals()
        self._settings = settings
        self._life = Lifetime(settings, stop, vitals, only_repair, tables)
        self._feeding = Feeding(settings, tables, vitals)
        self._watching: asyncio.Task[None] | None = None
        self._in_session = False

    async def run(self) -> None:
        """Work until stopped. Raises the error that a person or a supervisor must see, of any kind."""
        check_dsn(self._settings.postgres)
        try:
            async with asyncio.TaskGroup() as tasks:
                await tasks.create_task(self._keep_going(tasks), name="sessions")
                await self._feeding.finish()
                if self._watching is not None:
                    self._watching.cancel()
        except BaseExceptionGroup as group:
            raise gravest(group) from None
        finally:
            await self._life.close()

    async def _keep_going(self, tasks: asyncio.TaskGroup) -> None:
        backoff_s = BACKOFF_FIRST_S
        while not self._life.stop.is_set():
            started = time.monotonic()
            self._life.vitals.enter(Phase.STARTING)
            try:
                await self._unless_stopped(self._attempt(tasks))
                if self._life.only_repair and not self._life.stop.is_set():
                    return
            except (CdcError, BaseExceptionGroup) as raised:
                error = gravest(raised) if isinstance(raised, BaseExceptionGroup) else raised
                if isinstance(error, ChangesLost):
                    error = await self._unless_stopped(self._write_down(error)) or Unavailable("stopped meanwhile")
                if not isinstance(error, GapRecorded if self._life.only_repair else Unavailable):
                    raise error from None
                if time.monotonic() - started > SETTLED_S:
                    backoff_s = BACKOFF_FIRST_S
                self._life.vitals.interrupted(error)
                log.warning("interrupted", **error.log_fields(), retry_s=backoff_s)
                metrics.reconnects.inc()
                metrics.errors.labels("service", type(error).__name__).inc()
                await self._pause(backoff_s)
                backoff_s = min(backoff_s * 2, BACKOFF_LAST_S)
        if self._life.only_repair:
            raise Unavailable("stopped before the gap was closed", hint="cdc repair   # begins again")

    async def _write_down(self, lost: ChangesLost) -> BaseException:
        """Record what is lost as a gap; return the error that then decides how the service goes on."""
        self._life.writer_epoch = 0  # the fences since ours may be our own: the next holder of the slot is the writer
        try:
            archive = ArchiveSink(await self._life.open_bucket(), self._settings.archive)
            try:
                seen = None if self._life.archive is None else self._life.archive.tail
                await record_gap(self._settings, archive, lost, seen)
            finally:
                await archive.close()
        except CdcError as error:
            return error
        if self._settings.archive.on_gap == "stop":
            return lost
        return GapRecorded(lost.message, detail=lost.detail, hint="nothing: a new slot and a new snapshot follow")

    async def _unless_stopped(self, work: Coroutine[Any, Any, _Result]) -> _Result | None:
        """Run `work` and return its result; None if a stop request comes first, which cancels it.

        A session, once it has begun, stops by itself. Everything before it may wait for a bucket without limit, and may
        be left at any point, as by a crash.
        """
        self._in_session = False
        task = asyncio.create_task(work, name="attempt")
        stopping = asyncio.create_task(self._life.stop.wait(), name="stop while starting")
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
                await self._life.stop.wait()
        except TimeoutError:
            pass

    async def _attempt(self, tasks: asyncio.TaskGroup) -> None:
        """Run one start and the session that it leads to."""
        async with AsyncExitStack() as stack:
            started = await start(self._life, stack)
            if started is None or self._life.only_repair:
                return
            self._life.tables.publication = started.upstream.publication
            sentinel = await self._open_sentinel(stack)
            feed = await self._begin_to_stream(tasks, started)
            session = await self._make_session(started, feed)
            self._in_session = True
            await session.run(self._life.stop, sentinel)

    async def _begin_to_stream(self, tasks: asyncio.TaskGroup, started: Started) -> CacheFeed | None:
        """Start what outlives the session; return the cache's feed."""
        archive, server, confirmed_lsn = started.archive, started.upstream.server, started.confirmed_lsn
        if self._watching is None and archive.tail is not None:
            self._watching = tasks.create_task(watch(started.bucket, archive.tail.archive), name="proofs")
        feed = await self._feeding.start(tasks, server.epoch, started.bucket, confirmed_lsn)
        self._life.vitals.stream(_source_facts(server, self._settings), archive.covered_upto)
        log.info("streaming", confirmed=format_lsn(confirmed_lsn), archived=format_lsn(archive.covered_upto))
        return feed

    async def _make_session(self, started: Started, feed: CacheFeed | None) -> Session:
        settings, upstream, continuity = self._settings, started.upstream, started.continuity
        assembler = Assembler(await type_names(upstream.connection), upstream.publication.primary_keys)
        progress, vitals = Progress(started.confirmed_lsn), self._life.vitals

        async def recheck() -> None:
            await self._life.tables.recheck(started.archive)

        async def still_served() -> bool:
            return await _is_served(settings, started.stream.backend_pid)

        return Session(
            Incoming(started.stream, assembler, continuity),
            progress,
            ArchiveFeed(started.archive, progress, continuity, settings.archive, recheck, vitals),
            feed,
            Silence(settings.postgres.silence_s, still_served),
            vitals,
            status_interval_s=_status_interval_s(settings, upstream.server),
        )

    async def _open_sentinel(self, stack: AsyncExitStack) -> Sentinel | None:
        try:
            return await stack.enter_async_context(Sentinel(self._settings.postgres))
        except Unavailable as error:
            log.warning("sentinel_unavailable", **error.log_fields())
            return None


def _status_interval_s(settings: Settings, server: Server) -> float:
    """Choose an interval well inside `wal_sender_timeout`, in seconds, even if a longer one is configured."""
    interval_s, timeout_s = settings.postgres.status_interval_s, server.wal_sender_timeout_s
    return min(interval_s, timeout_s / 4) if timeout_s else interval_s


async def _is_served(settings: Settings, wal_sender_pid: int) -> bool:
    """Ask the server, over a connection of its own, whether our WAL sender still has the slot."""
    async with await connect(settings.postgres) as connection:
        slot = await read_slot(connection, settings.postgres.slot)
    return slot is not None and slot.active_pid == wal_sender_pid
