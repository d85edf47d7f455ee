"""Plays one seed: an application, a service under a supervisor, and faults; then calm, and the check.

The dice decide which kinds of fault this world has, so that each is often alone. After the faults everything heals.
Within a bound of virtual time archive, slot and cache must then all be where the database is: nothing may stay stuck.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pydantic import SecretStr

from cdc.archive.proof.audit import verify
from cdc.archive.reader.history import RestorePoint
from cdc.archive.reader.reader import ArchiveReader
from cdc.config import ArchiveSettings, CacheSettings, PostgresSettings, Settings
from cdc.errors import CdcError, ChangesLost, Diverged, Fenced, Invalid, Unavailable
from cdc.service.service import Service
from tests.simulation.application import Application
from tests.simulation.bucket import ModelBucket
from tests.simulation.clock import LIFE, Life, Stuck, VirtualLoop
from tests.simulation.doors import Doors, opened
from tests.simulation.history import History
from tests.simulation.ledger import Ledger
from tests.simulation.postgres import ModelPostgres
from tests.simulation.redis import ModelRedis
from tests.simulation.restored import difference
from tests.simulation.sessions import ModelStream
from tests.simulation.world import Violation, Weather, World
from tests.support.cache_model import PROJECTIONS

LIMIT_S = 900.0
STORM_S = 20.0
HEALING_S = 240.0
_MOMENTS = 3

FAULTS = (
    "bucket_refuses", "bucket_unanswered", "bucket_late", "bucket_slow", "bucket_away", "kill", "stop", "duel",
    "server_crash", "walsender_end", "half_open", "failover", "failover_without_slot", "slot_dropped", "slot_lost",
    "slot_advanced", "redis_unanswered", "redis_late", "redis_away",
    "redis_flush", "redis_failover", "redis_oom", "eviction",
)  # fmt: skip

_TO_THE_SLOT = {
    "slot_dropped": ModelPostgres.drop_slot_by_hand,
    "slot_lost": ModelPostgres.invalidate_slot,
    "slot_advanced": ModelPostgres.advance_slot,
}


@dataclass
class Outcome:
    """The end of one seed. `violation` is empty if every promise was kept."""

    seed: int
    violation: str
    trace: list[str]
    faults: dict[str, int]
    virtual_s: float
    commits: int = 0
    puts: int = 0
    forks: int = 0
    gaps: int = 0

    @property
    def digest(self) -> str:
        """A hash of the trace: equal each time that the seed is played, in any process."""
        return sha256("\n".join(self.trace).encode()).hexdigest()


def simulate(seed: int) -> Outcome:
    """Play one seed to its end."""
    loop = VirtualLoop(LIMIT_S)
    world = World(seed, loop)
    story = _Story(world)
    loop.set_exception_handler(story.unhandled)
    try:
        with opened(story.doors):
            try:
                loop.run_until_complete(story.live())
            except Stuck as stuck:
                world.fail(f"stuck: {stuck}")
            except Violation:
                pass
            finally:
                story.bury(loop)
    finally:
        loop.close()
    return story.outcome()


class _Story:
    def __init__(self, world: World) -> None:
        self.world = world
        self.dice = world.dice
        self.storming = True
        self.duellist: Life | None = None
        self.repairs_due = False
        self.ledgers: list[Ledger] = []
        self.puts = 0
        self.kinds = {kind for kind in FAULTS if self.dice.random() < (0.4 if kind == "duel" else 0.25)}
        self.bucket_weather, self.cache_weather = self._weather("bucket"), self._weather("redis")
        self.server = ModelPostgres(world, self.acknowledged)
        self.application = Application(world, self.server)
        self.cache = ModelRedis(world, self.cache_weather, lambda: self.server.histories)
        self.doors = Doors(world, self.server, self.cache)
        self.ledger = self._new_archive()
        self.lives: list[Life] = []
        self.settings = self._settings()
        world.tell(f"seed {world.seed}: " + " ".join(sorted(self.kinds)))

    def outcome(self) -> Outcome:
        world, ledgers = self.world, self.ledgers
        return Outcome(
            world.seed,
            world.violation,
            world.trace,
            world.faults,
            world.loop.time() - 1000,
            commits=self.server.commits,
            puts=self.puts,
            forks=sum(ledger.forks for ledger in ledgers),
            gaps=sum(ledger.gaps for ledger in ledgers),
        )

    def _weather(self, server: str) -> Weather:
        dice = self.dice
        return Weather(
            refused=dice.choice((0.05, 0.3)) if f"{server}_refuses" in self.kinds else 0.0,
            unanswered=dice.choice((0.05, 0.3)) if f"{server}_unanswered" in self.kinds else 0.0,
            late=dice.choice((0.05, 0.3)) if f"{server}_late" in self.kinds else 0.0,
            slow=0.1 if f"{server}_slow" in self.kinds else 0.0,
            delay_s=dice.choice((0.001, 0.02, 0.3)),
        )

    def _new_archive(self) -> Ledger:
        ledger = Ledger(self.world, self.server.histories, lambda: self.server.losses)
        self.ledgers.append(ledger)
        self.doors.bucket = ModelBucket(
            self.world, self.bucket_weather, lambda key, body: self._created(ledger, key, body), self._sending
        )
        return ledger

    def _created(self, ledger: Ledger, key: str, body: bytes) -> None:
        ledger.created(key, body)
        if ledger is self.ledger:
            self._hold_up_the_new_writer()

    def _settings(self) -> Settings:
        dice = self.dice
        archive = ArchiveSettings(
            url="file:///model", linger_s=dice.choice((0.0, 0.2, 1.0)), on_gap=dice.choice(("stop", "resnapshot"))
        ).model_copy(
            update={
                "segment_bytes": dice.choice((3_000, 20_000, 200_000)),
                "queue_bytes": dice.choice((20_000, 500_000)),
                "coverage_interval_s": dice.choice((1.0, 10.0)),
                "coverage_wal_bytes": 2_000,
                "compression_level": 1,
            }
        )
        cache = CacheSettings(
            url=SecretStr("redis://localhost"),
            projections=tuple(one.model_copy(update={"time_column": None}) for one in PROJECTIONS),
            batch_rows=dice.choice((3, 500)),
        ).model_copy(update={"queue_bytes": dice.choice((5_000, 200_000))})
        postgres = PostgresSettings(dsn=SecretStr("postgresql:///model"), silence_s=8.0, status_interval_s=1.0)
        return Settings(postgres=postgres, archive=archive, cache=cache)

    @property
    def bucket(self) -> ModelBucket:
        assert self.doors.bucket is not None
        return self.doors.bucket

    # checks all the time

    def acknowledged(self, history: History, consistent_lsn: int, flushed: int) -> None:
        """Check P1 at every status update."""
        if flushed <= consistent_lsn:
            return
        if history is not self.ledger.history:
            raise self.world.fail(f"P1: {flushed:X} of {history.epoch} was acknowledged to another archive")
        lacking = self.ledger.lacks(flushed)
        if lacking is not None:
            raise self.world.fail(f"P1: {flushed:X} was acknowledged, but the archive lacks {lacking}")

    # the service, under a supervisor

    async def _supervise(self, place: str) -> None:
        number = 0
        while not self.world.over.is_set():
            number += 1
            may_die = self.storming and "kill" in self.kinds and self.dice.random() < 0.7
            life = Life(f"{place}{number}", self.dice.choice((300, 1000, 3000)) if may_die else None)
            if life.die_at is not None:
                life.die_at = self.dice.randint(1, life.die_at)
            life.at_death = lambda life=life: self._died(life)  # type: ignore[misc]
            self.lives.append(life)
            await self._live(life)
            await asyncio.sleep(self.dice.choice((0.1, 1.0)))

    def _died(self, life: Life) -> None:
        self.world.fault("kill", f"{life.name} at step {life.steps}")
        self.server.forget(life)

    async def _live(self, life: Life) -> None:
        context = self.world.outside.copy()
        context.run(LIFE.set, life)
        ledger = self.ledger
        self.doors.buckets[life] = self.bucket
        life.repairs, self.repairs_due = self.repairs_due, False
        if life.repairs:
            self.world.tell("the operator repairs the gap: cdc repair")
        service = Service(
            self._repairing() if life.repairs else self.settings, asyncio.Event(), only_repair=life.repairs
        )
        life.task = self.world.loop.create_task(service.run(), context=context)
        try:
            await asyncio.wait([life.task])
        finally:
            if not life.dead:
                self.server.forget(life)
        if life.dead or self.world.over.is_set():
            return
        self._judge(life, ledger, None if life.task.cancelled() else life.task.exception())

    def _repairing(self) -> Settings:
        archive = self.settings.archive.model_copy(update={"on_gap": "resnapshot"})
        return self.settings.model_copy(update={"archive": archive})

    def _judge(self, life: Life, ledger: Ledger, error: BaseException | None) -> None:
        """Check that a service may end with this error, and do what the operator does then."""
        self.world.tell(f"{life.name} ended: {type(error).__name__}: {error}")
        if isinstance(error, Violation):
            return
        if isinstance(error, Fenced):
            if not self._fenced_by_another(life):
                raise self.world.fail("a service was fenced though nobody else had written")
        elif isinstance(error, Diverged) and ledger is not self.ledger:
            pass  # it was started before the operator named another archive
        elif isinstance(error, ChangesLost):
            if not self.ledger.gaps:
                raise self.world.fail(f"P8: {error} ends the service, and no gap is recorded")
            self.repairs_due = self.ledger.gap_open
        elif isinstance(error, Diverged) and self._unrelated():
            self._begin_another_archive()
        elif isinstance(error, Diverged) and self._is_slot_of_another_archive():
            self.world.tell("the operator drops the slot that a service of the archive before has made")
            self.server.slot = None
        elif life.repairs and (error is None or isinstance(error, Unavailable | Invalid)):
            pass  # done, or not possible for now: the operator tries again
        else:
            detail = error.detail if isinstance(error, CdcError) else ""
            raise self.world.fail(f"the service ended with {type(error).__name__}: {error} ({detail})")

    def _unrelated(self) -> bool:
        """True if the server's timeline does not come from the archive's: no fork leads across."""
        server, archived = self.server.history, self.ledger.history.epoch.timeline
        return archived != server.epoch.timeline and archived not in server.ancestors

    def _is_slot_of_another_archive(self) -> bool:
        """True if the slot was made by a service of the archive before, after the operator had named this one."""
        slot = self.server.slot
        return slot is not None and slot.maker is not None and self.doors.buckets[slot.maker] is not self.bucket

    def _fenced_by_another(self, life: Life) -> bool:
        bucket = self.doors.buckets[life]
        own = [seq for seq, author in bucket.authors.items() if author == life.name]
        return any(author != life.name for seq, author in bucket.authors.items() if seq > min(own, default=-1))

    def _begin_another_archive(self) -> None:
        """Do what the hint says after a failover: name another archive.url, and drop the slot."""
        self.world.tell("the operator begins another archive")
        self.server.slot = None
        self.ledger = self._new_archive()

    # faults

    async def _storm(self) -> None:
        dice, world = self.dice, self.world
        happenings = sorted(self.kinds & {
            "bucket_away", "kill", "stop", "server_crash", "walsender_end", "half_open", "failover",
            "failover_without_slot", "slot_dropped", "slot_lost", "slot_advanced", "redis_away", "redis_flush",
            "redis_failover", "redis_oom", "eviction",
        })  # fmt: skip
        until = world.loop.time() + STORM_S
        failovers = 0
        while world.loop.time() < until:
            await asyncio.sleep(dice.random() * 4)
            for action in (self.server.checkpoint, self.cache.keep):
                if dice.random() < 0.5:
                    action()
            kind = dice.choice(happenings) if happenings else ""
            lives = [life for life in self.lives if not life.dead and life.task is not None and not life.task.done()]
            if kind == "bucket_away":
                self._take_away(self.bucket_weather, kind, dice.choice((0.5, 5.0, 15.0)))
            elif kind == "redis_away":
                self._take_away(self.cache_weather, kind, dice.choice((0.5, 5.0, 15.0)))
            elif kind == "kill" and lives:
                dice.choice(lives).kill()
            elif kind == "stop" and lives:
                self._stop(dice.choice(lives))
            elif kind == "server_crash" and self.server.up:
                self.server.crash(dice.random() * 3)
            elif kind.startswith("failover") and self.server.up and failovers < 3 and dice.random() < 0.5:
                failovers += 1
                goes = kind == "failover_without_slot"
                self.server.fail_over(dice.choice((0, 1, 2, 5)), dice.random() * 3, slot_goes=goes)
            elif kind in _TO_THE_SLOT and self.server.losses < 4:
                _TO_THE_SLOT[kind](self.server)
            elif kind in ("walsender_end", "half_open") and self.server.streams:
                self._disturb(kind)
            elif kind == "redis_oom":
                self.cache.refuse(dice.choice((0.5, 5.0)))
            elif kind == "redis_flush":
                self.cache.flush()
            elif kind == "redis_failover":
                self.cache.fail_over()
            elif kind == "eviction":
                self.cache.evict()

    def _take_away(self, weather: Weather, kind: str, seconds: float) -> None:
        self.world.fault(kind, f"{seconds} s")
        weather.away = True
        self.world.later(seconds, setattr, weather, "away", False)

    def _stop(self, life: Life) -> None:
        seconds = self.dice.choice((0.5, 5.0, 20.0, 30.0))
        self.world.fault("stop", f"{life.name} for {seconds} s")
        life.stop()
        if self.dice.random() < 0.7:
            self.world.later(self.dice.random(), self.server.forget, life)  # so that another one can take its place
        self.world.later(seconds, life.go_on, self.world.loop)

    def _sending(self, life: Life | None) -> str:
        """Draw the fault of a PUT: the most delicate moment to be stopped, or to lose the slot to another service."""
        dice = self.dice
        self.puts += 1
        if not self.storming or life is None or life.stopped:
            return ""
        if "stop" in self.kinds and dice.random() < 0.05:
            self._stop(life)
            return dice.choice(("", "held"))
        if life is self.duellist:  # the network is as bad, until the other one has written
            return "lost"
        streams = [stream for stream in self.server.streams if stream.life is life]
        if "duel" in self.kinds and streams and self.server.up and self._rivals_of(life) and dice.random() < 0.3:
            return self._begin_duel(life, streams[0])
        return ""

    def _begin_duel(self, life: Life, stream: ModelStream) -> str:
        """Take the slot from a writer with a PUT in flight, unknown to it; another writer takes its place."""
        self.world.fault("duel", life.name)
        self.duellist = life
        for _ in range(self.dice.randint(1, 3)):
            self.application.commit()  # so that there is more to write for one who takes this for written
        self.world.later(self.dice.random() * 0.2, self.server.give_up, stream)
        self.world.later(6.0, self._end_duel, life)
        return self.dice.choice(("lost", "lost", "late"))

    def _end_duel(self, life: Life) -> None:
        if self.duellist is life:
            self.duellist = None

    def _rivals_of(self, life: Life) -> bool:
        others = [one for one in self.lives if one is not life and one.task is not None and not one.task.done()]
        return any(not (one.dead or one.stopped) for one in others)

    def _hold_up_the_new_writer(self) -> None:
        """Stop the writer that has just fenced another, so that the other one tries what it may no longer do."""
        if self.duellist is None or self.ledger.kind != "fence":
            return
        self.duellist = None
        if not self.storming or self.dice.random() < 0.2:
            return
        author = self.bucket.authors.get(len(self.ledger.writers) - 1)
        life = next((life for life in self.lives if life.name == author), None)
        if life is not None and not life.dead and not life.stopped:
            self.world.fault("held_up", life.name)
            life.stop()
            self.world.later(1 + self.dice.random() * 5, life.go_on, self.world.loop)

    def _disturb(self, kind: str) -> None:
        stream = self.dice.choice(self.server.streams)
        self.world.fault(kind, stream.life.name)
        if kind == "half_open":
            stream.muted = True
        else:
            self.server.drop(stream, "terminating connection due to administrator command")

    # the story

    async def live(self) -> None:
        """Play the world: 1. storm; 2. calm; 3. everything is where the database is; 4. the archive is read back."""
        for _ in range(self.dice.randint(0, 3)):
            self.application.commit()
        places = self.dice.choice(("ab", "abc")) if self.kinds & {"duel", "stop"} else "a"
        tasks = [self._start(self._supervise(place)) for place in places]
        try:
            await self._unless_over(
                asyncio.gather(self._start(self.application.work(STORM_S)), self._start(self._storm()))
            )  # 1
            self._calm()  # 2
            await self._unless_over(self._start(self._healed()))  # 3
            await self._check_archive()  # 4
        finally:
            self.world.over.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.world.loop.create_task(coroutine, context=self.world.outside.copy())
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Violation):
            self.world.fail(f"the simulation itself failed: {type(error).__name__}: {error}")

    async def _unless_over(self, task: asyncio.Future[Any]) -> None:
        over = self._start(self._until_over())
        await asyncio.wait([task, over], return_when=asyncio.FIRST_COMPLETED)
        task.cancel()
        over.cancel()
        await asyncio.gather(task, over, return_exceptions=True)
        if self.world.violation:
            raise Violation(self.world.violation)

    async def _until_over(self) -> None:
        await self.world.over.wait()

    def _calm(self) -> None:
        self.world.tell("calm")
        self.storming = False
        self.bucket_weather.calm()
        self.cache_weather.calm()
        for life in self.lives:
            life.die_at = None
            if life.stopped:
                life.go_on(self.world.loop)

    async def _healed(self) -> None:
        until = self.world.loop.time() + HEALING_S
        while (missing := self._missing()) and self.world.loop.time() < until:
            self.server.write_noise(100)  # as Postgres itself does, for running transactions
            await asyncio.sleep(0.5)
        if missing:
            raise self.world.fail(f"not healed {HEALING_S:.0f} s after the last fault: {missing}")

    def _missing(self) -> str:
        end_lsn = self.server.history.ends[-1] if self.server.history.ends else 0
        if self.ledger.history is not self.server.history or not self.ledger.complete:
            return "the archive is not complete"
        if self.ledger.base_lost:
            return "the snapshot was lost with a tail, and no gap says so"
        if self.ledger.covered_upto < end_lsn:
            return "the archive does not say that it covers the end"
        if self.server.slot is None or self.server.slot.confirmed < end_lsn:
            return "the slot is held (P6)"
        if not self.cache.meta.lsn or self.cache.lsn < end_lsn or self.cache.meta.part:
            return f"the cache is not live: {self.cache.meta.describe()}"
        return self.cache.oracle.difference(self.cache.keys)

    async def _check_archive(self) -> None:
        bucket = self.bucket
        report = await verify(bucket)
        if not report.intact:
            raise self.world.fail(f"verify: {report.findings}")
        read = [t.commit_lsn async for t in ArchiveReader(bucket).transactions(None) if t.last]
        if read != self.ledger.log:
            raise self.world.fail(f"the reader does not give what was archived: {read}, not {self.ledger.log}")
        await self._check_restores()

    async def _check_restores(self) -> None:
        """Restore the end, and moments before it unless they lie before a snapshot that a gap made necessary."""
        begins_lsn, transactions = self.ledger.begins_lsn, self.server.history.transactions
        commits = [one.commit_lsn for one in transactions if one.xid and one.commit_lsn >= begins_lsn]
        moments = [RestorePoint(lsn=lsn) for lsn in self.dice.sample(commits, min(_MOMENTS, len(commits)))]
        for until in (RestorePoint(), *moments):
            was_open = self.ledger.gap_open
            try:
                wrong = await difference(self.bucket, self.server.history, until)
            except (Diverged, Invalid) as error:
                meant = was_open or self.ledger.gap_open or (self.ledger.gaps and until != RestorePoint())
                wrong = "" if meant else f"{error.message}: {error.detail}"
            if wrong:
                raise self.world.fail(f"P4: {wrong}")

    def unhandled(self, _loop: object, context: dict[str, Any]) -> None:
        """Report a callback that failed: that is a bug. An error that is never retrieved, after the end, is none."""
        life, error = LIFE.get(), context.get("exception")
        self.world.tell(f"unhandled: {context.get('message')}: {type(error).__name__}: {error}")
        if "handle" in context and not (isinstance(error, Violation) or (life and life.dead)):
            self.world.fail(f"a callback failed: {type(error).__name__}: {error}")

    def bury(self, loop: VirtualLoop) -> None:
        """Let every task come to its end, so that nothing of this world outlives it."""
        self.world.over.set()
        for _ in range(50):
            tasks = [task for task in asyncio.all_tasks(loop) if not task.done()]
            if not tasks:
                break
            for life in self.lives:
                life.at_death = lambda: None
                life.dead = True
                life.go_on(loop)
            for task in tasks:
                task.cancel()
            loop.revive()
            loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
        loop.run_until_complete(loop.shutdown_asyncgens())
