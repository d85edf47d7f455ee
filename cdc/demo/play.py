"""Runs the demo in this order.

1. set the stage: Postgres, Valkey, sql/, a cdc.toml, and some rows from before;
2. start the service, as production does, and wait until it streams;
3. the application works for some seconds, or until Ctrl-C, while the screen shows what a reader sees;
4. drain: wait until the archive and the cache have it all;
5. stop the service with SIGTERM;
6. compare, print what was found, and where to look further.

The servers end with this process in every case, SIGKILL included.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Iterable, Iterator

from rich.console import Console
from rich.markup import escape

from cdc import log
from cdc.archive.bucket.opening import open_bucket
from cdc.cache.reader import CacheReader
from cdc.demo.commands import Command, later_commands, live_commands
from cdc.demo.meter import ArchiveMeter, CacheMeter, percentile
from cdc.demo.screen import Moment, Screen, latency, open_screen
from cdc.demo.stage import ServiceProcess, Stage, ask_ready, running_service, set_up
from cdc.demo.summary import Summary, summarise
from cdc.demo.workload import Commit, Workload
from cdc.errors import CdcError, Unavailable
from cdc.lsn import parse_lsn
from cdc.postgres.session import Connection, connect
from cdc.postgres.slot import read_slot

# The service proves the bucket and copies existing rows first, which takes its time on a loaded machine.
_START_S = 60.0
# What is in flight when the application stops is archived within the linger and a PUT; anything longer is a fault.
_DRAIN_S = 30.0
_POLL_S = 0.05
_BEFORE_S = 0.5


async def run(seconds: float = 20, rate: int = 200) -> int:
    """Run the whole demo for `seconds` at `rate` transactions a second. Returns 0 if every check is good, else 1."""
    log.to_stderr("warning")
    console = Console(highlight=False, soft_wrap=True)
    with _interruptible() as stop:
        console.print("starting Postgres, Valkey and the service ...")
        async with set_up() as stage:
            summary, play = await _perform(stage, console, stop, seconds, rate)
            _print_summary(console, summary, play)
    _print_farewell(console, stage)
    return 0 if summary.good else 1


async def _perform(
    stage: Stage, console: Console, stop: asyncio.Event, seconds: float, rate: int
) -> tuple[Summary, "Play"]:
    await _live_before(stage, rate)
    async with contextlib.AsyncExitStack() as open_things, running_service(stage) as service:
        play = await _prepare(stage, service, open_things, seconds, rate)
        await play.wait_streaming()
        _print_live_commands(console, stage)
        await play.run(stop)
        await play.drain()
        verdict = await ask_ready(stage)
        await service.stop()
        bucket = open_bucket(stage.settings.archive)
        projections = stage.settings.cache.projections
        summary = await summarise(play.onlooker, bucket, play.cache, projections, play.workload.tally)
        summary.note_service(service.exit_code, stage.address, verdict)
        return summary, play


async def _live_before(stage: Stage, rate: int) -> None:
    """Write the rows of a time before the service, which it must find when it starts."""
    enough = asyncio.Event()
    asyncio.get_running_loop().call_later(_BEFORE_S, enough.set)
    await Workload(stage.application, rate).run(enough)


async def _prepare(
    stage: Stage, service: ServiceProcess, open_things: contextlib.AsyncExitStack, seconds: float, rate: int
) -> "Play":
    onlooker = await connect(stage.application, application_name="demo-onlooker")
    open_things.push_async_callback(onlooker.close)
    readers = [CacheReader(stage.settings.cache) for _ in range(2)]
    for reader in readers:
        open_things.push_async_callback(reader.close)
    return Play(stage, service, onlooker, readers[0], CacheMeter(readers[1]), seconds, rate)


class Play:
    """The application at work, the meters, and the screen."""

    def __init__(
        self,
        stage: Stage,
        service: ServiceProcess,
        onlooker: Connection,
        cache: CacheReader,
        cache_meter: CacheMeter,
        seconds: float,
        rate: int,
    ) -> None:
        self.onlooker = onlooker
        self.cache = cache
        self.cache_meter = cache_meter
        self.archive_meter = ArchiveMeter(stage.archive)
        self.workload = Workload(stage.application, rate, self._on_commit)
        self._slot = stage.settings.postgres.slot
        self._service = service
        self._seconds = seconds
        self._started = time.monotonic()
        self._worked_s = 0.0

    def _on_commit(self, commit: Commit) -> None:
        self.cache_meter.offer(commit)
        self.archive_meter.offer(commit)

    async def wait_streaming(self) -> None:
        """2. Wait until the service has its slot and has begun its archive. Raises Unavailable if it does not."""
        deadline = time.monotonic() + _START_S
        while True:
            slot = await read_slot(self.onlooker, self._slot)
            if slot is not None and slot.active_pid is not None and await self.cache.lsn():
                return
            self._service.check_running()
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"the service does not stream after {_START_S:.0f} s", detail=self._service.last_words()
                )
            await asyncio.sleep(_POLL_S)

    async def run(self, stop: asyncio.Event) -> None:
        """3. Run the workload until the time is over or `stop` is set."""
        try:
            with open_screen() as screen:
                async with self._metering():
                    self._started = time.monotonic()
                    await self._work(stop, screen)
        except BaseExceptionGroup as group:
            foreseen = group.subgroup(CdcError)
            raise (foreseen or group).exceptions[0] from None

    @contextlib.asynccontextmanager
    async def _metering(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            meters = [
                tasks.create_task(self.cache_meter.run(), name="cache-meter"),
                tasks.create_task(self.archive_meter.run(), name="archive-meter"),
            ]
            yield
            for meter in meters:
                meter.cancel()

    async def _work(self, stop: asyncio.Event, screen: Screen) -> None:
        enough = asyncio.Event()
        working = asyncio.create_task(self.workload.run(enough), name="workload")
        try:
            while not stop.is_set() and not working.done() and self._elapsed_s < self._seconds:
                screen.show(await self._moment("running"))
                left_s = self._seconds - self._elapsed_s
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), max(0.0, min(screen.interval_s, left_s)))
                self._service.check_running()
        finally:
            enough.set()
            await working
            self._worked_s = self._elapsed_s
        screen.show(await self._moment("draining"))

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started

    async def _moment(self, phase: str) -> Moment:
        slot = await read_slot(self.onlooker, self._slot)
        wal_lsn = parse_lsn((await self.onlooker.one("SELECT pg_current_wal_lsn()::text"))[0])
        tally, archive = self.workload.tally, self.archive_meter
        elapsed_s = self._worked_s or self._elapsed_s
        return Moment(
            elapsed_s=elapsed_s,
            seconds=self._seconds,
            phase=phase,
            rate=(tally.transactions + tally.rolled_back) / max(elapsed_s, 0.001),
            committed=tally.transactions,
            rolled_back=tally.rolled_back,
            cache_p50_s=percentile(self.cache_meter.latencies_s, 50),
            cache_p99_s=percentile(self.cache_meter.latencies_s, 99),
            cache_keys=await self.cache.count(),
            archive_p50_s=percentile(archive.latencies_s, 50),
            archive_p99_s=percentile(archive.latencies_s, 99),
            archive_segments=archive.segments,
            archive_bytes=archive.bytes,
            archive_lsn=archive.tail.covered_upto if archive.tail else 0,
            confirmed_lsn=slot.confirmed_flush_lsn if slot else None,
            lag_bytes=slot.lag_bytes(wal_lsn) if slot else float("inf"),
            retained_bytes=slot.retained_bytes(wal_lsn) if slot else float("inf"),
        )

    async def drain(self) -> None:
        """4. Wait until both have everything, `_DRAIN_S` at most: then the summary says what is missing."""
        deadline = time.monotonic() + _DRAIN_S
        while time.monotonic() < deadline and not await self._all_there():
            self._service.check_running()
            await asyncio.sleep(_POLL_S)

    async def _all_there(self) -> bool:
        while self.archive_meter.look():
            pass
        if self.archive_meter.transactions < self.workload.tally.transactions or self.archive_meter.tail is None:
            return False
        return await self.cache.lsn() >= self.archive_meter.last_commit_lsn


def _print_live_commands(console: Console, stage: Stage) -> None:
    console.print(f"\nThe service answers at {stage.address}\nOpen it in a browser: the page shows what goes on.")
    console.print("\nWhile it runs, look for yourself from another terminal:\n")
    _print_commands(console, live_commands(stage))


def _print_summary(console: Console, summary: Summary, play: Play) -> None:
    console.print("\nChecked after the service was stopped:\n")
    for check in summary.checks:
        word = "[green]ok    [/]" if check.good else "[red]NOT OK[/]"
        console.print(f"  {word}  {check.what:18}{escape(check.found)}")
    for what, meter in (("commit → Redis", play.cache_meter), ("commit → archive", play.archive_meter)):
        p50, p99 = (latency(percentile(meter.latencies_s, percent)) for percent in (50, 99))
        console.print(f"          {what:18}p50 {p50}, p99 {p99}, {len(meter.latencies_s)} commits sampled")
    verdict = "[green]0 lost, 0 duplicate[/]" if summary.good else "[red]something is off; see above[/]"
    console.print(f"\n{verdict}\n")


def _print_farewell(console: Console, stage: Stage) -> None:
    console.print("The servers have ended; the archive stays. Look further:\n")
    _print_commands(console, later_commands(stage))


def _print_commands(console: Console, commands: Iterable[Command]) -> None:
    for command in commands:
        console.print(f"  {command.what:24}{escape(command.text)}", style=None)
    console.print()


@contextlib.contextmanager
def _interruptible() -> Iterator[asyncio.Event]:
    """Yield an event that the first Ctrl-C (or SIGTERM) sets, so that the demo ends in order; the second interrupts."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def ask_to_stop(number: signal.Signals) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask_to_stop, number)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
