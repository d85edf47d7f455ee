"""The demo as a newcomer meets it, and its summary when something is off: every planted difference turns it red."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import redis

from cdc.archive.bucket.opening import open_bucket
from cdc.archive.format.object_key import log_key
from cdc.cache.reader import CacheReader
from cdc.demo import stage as stages
from cdc.demo.meter import CacheMeter
from cdc.demo.play import Play
from cdc.demo.summary import Summary, summarise
from cdc.postgres.session import Connection, connect
from tests.support.cdc_process import COMMAND

_ROOT = Path(__file__).parents[3]
_PATIENCE_S = 150


class Demo:
    """`cdc demo` in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        command = [*COMMAND, "demo", *arguments]
        # An address of the environment would lead to somebody's real servers; the demo must not look at it.
        environment = {**os.environ, "CDC_POSTGRES__DSN": "postgresql://nobody@192.0.2.1/production"}
        self.process = subprocess.Popen(
            command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.printed = ""

    def read_until(self, text: str) -> None:
        assert self.process.stdout is not None
        while text not in self.printed:
            line = self.process.stdout.readline()
            assert line, f"ended before it said {text!r}:\n{self.printed}"
            self.printed += line

    def finish(self) -> int:
        self.printed += self.process.communicate(timeout=_PATIENCE_S)[0]
        return self.process.returncode

    def command(self, what: str) -> str:
        """What was printed to paste."""
        (found,) = re.findall(rf"^  {re.escape(what)} +(.+)$", self.printed, re.MULTILINE)
        return str(found)

    @property
    def directory(self) -> Path:
        found = re.search(r"rm -r (\S+)", self.printed)
        assert found, self.printed
        return Path(found[1])


@pytest.fixture
def demos() -> Iterator[list[Demo]]:
    started: list[Demo] = []
    yield started
    for demo in started:
        if demo.process.poll() is None:
            demo.process.kill()
        demo.process.wait()
        if demo.process.stdout is not None:
            demo.process.stdout.close()
        if "rm -r" in demo.printed:
            shutil.rmtree(demo.directory, ignore_errors=True)


def _descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def run_from_elsewhere(command: str) -> None:
    """Run a pasted command as another terminal would."""
    done = subprocess.run(command, shell=True, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_demo_ends_by_itself_with_a_summary_that_is_good(demos: list[Demo]) -> None:
    demos.append(demo := Demo("--seconds", "3", "--rate", "100"))
    demo.read_until("running:")
    servers = _descendants(demo.process.pid)
    assert demo.finish() == 0, demo.printed
    assert "0 lost, 0 duplicate" in demo.printed
    assert "NOT OK" not in demo.printed
    (address,) = re.findall(r"The service answers at (http://127\.0\.0\.1:\d+/)\n", demo.printed)
    assert f"{address}readyz said ok; stopped by SIGTERM with exit code 0" in demo.printed
    for what in ("its segments", "verify again", "every change", "what the service said"):
        run_from_elsewhere(demo.command(what))
    gone, alive = psutil.wait_procs(servers, timeout=60)
    assert gone
    assert not alive
    assert (demo.directory / "archive" / log_key(0)).exists()
    assert not (demo.directory / "postgres").exists()


def test_ctrl_c_ends_the_demo_in_order_and_with_its_summary(demos: list[Demo]) -> None:
    demos.append(demo := Demo("--seconds", "600", "--rate", "100"))
    demo.read_until("running:")
    demo.process.send_signal(signal.SIGINT)
    assert demo.finish() == 0, demo.printed
    assert "0 lost, 0 duplicate" in demo.printed


def test_a_killed_demo_leaves_no_server_behind(demos: list[Demo]) -> None:
    demos.append(demo := Demo("--seconds", "600"))
    demo.read_until("running:")
    directory = re.search(r"--config (\S+)/cdc.toml", demo.printed)
    servers = _descendants(demo.process.pid)
    demo.process.kill()
    _, alive = psutil.wait_procs(servers, timeout=60)
    assert not alive
    assert directory
    shutil.rmtree(directory[1], ignore_errors=True)


class Finished:
    """A demo that has come to its end: the service is stopped, the servers still run."""

    def __init__(self, stage: stages.Stage, play: Play, onlooker: Connection, cache: CacheReader) -> None:
        self.stage = stage
        self.onlooker = onlooker
        self._play = play
        self._cache = cache

    async def summary(self) -> Summary:
        bucket = open_bucket(self.stage.settings.archive)
        projections = self.stage.settings.cache.projections
        return await summarise(self.onlooker, bucket, self._cache, projections, self._play.workload.tally)

    async def bad(self) -> set[str]:
        """What the summary finds to be off."""
        return {check.what for check in (await self.summary()).checks if not check.good}

    def count_one_more(self) -> None:
        self._play.workload.tally.committed["exchange"] += 1


@asynccontextmanager
async def _finished() -> AsyncIterator[Finished]:
    async with stages.set_up() as stage, stages.running_service(stage) as service:
        onlooker = await connect(stage.application)
        cache, meter = CacheReader(stage.settings.cache), CacheReader(stage.settings.cache)
        play = Play(stage, service, onlooker, cache, CacheMeter(meter), 1.5, 150)
        await play.wait_streaming()
        await play.run(asyncio.Event())
        await play.drain()
        await service.stop()
        yield Finished(stage, play, onlooker, cache)
        for thing in (cache, meter, onlooker):
            await thing.close()
    shutil.rmtree(stage.directory)


async def test_every_difference_that_is_planted_turns_the_summary_red() -> None:
    async with _finished() as demo:
        assert (await demo.summary()).good, (await demo.summary()).checks
        client = redis.Redis.from_url(demo.stage.valkey.url)
        execute = demo.onlooker.execute

        await execute("UPDATE public.turns SET content = 'planted' WHERE id = (SELECT max(id) FROM public.turns)")
        assert await demo.bad() == {"public.turns", "cache"}
        await execute("DELETE FROM public.turns WHERE content = 'planted'")
        assert "public.turns" in await demo.bad()
        await execute("INSERT INTO public.outbox (event_type, idempotency_key, payload) VALUES ('x', 'planted', '1')")
        assert "public.outbox" in await demo.bad()

        demo.count_one_more()
        assert "transactions" in await demo.bad()
        client.flushall()
        assert "cache" in await demo.bad()

        segment = demo.stage.archive / log_key(3)
        segment.write_bytes(segment.read_bytes()[:-7])
        assert "archive" in await demo.bad()
        client.close()


async def test_a_key_too_many_or_one_too_few_in_the_cache_is_found() -> None:
    async with _finished() as demo:
        client = redis.Redis.from_url(demo.stage.valkey.url)
        client.set("turn:of-nobody", "{}")
        assert await demo.bad() == {"cache"}
        client.delete("turn:of-nobody")
        assert await demo.bad() == set()
        history = next(iter(client.scan_iter("session:*:turns", count=1000)))
        client.zremrangebyrank(history, 0, 0)
        assert await demo.bad() == {"cache"}
        client.close()
