"""Puts the models behind the production service's only doors to Postgres, Redis, the bucket, the clock and chance.

Everything behind these names is modelled; everything before them is the program as it is. `time` is patched rather than
the program, which reads `time.monotonic()`, the clock of the real event loop too.
"""

import functools
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any
from unittest import mock

import structlog

import cdc.cache.sink
import cdc.postgres.server
import cdc.service.backfill
import cdc.service.service
import cdc.service.start
from cdc.config import ArchiveSettings, CacheSettings
from cdc.pgoutput.assembler import Assembler
from cdc.postgres.publication import Publication
from cdc.postgres.slot import ExportedSnapshot
from cdc.postgres.stream.replication import ReplicationStream
from cdc.service import backfill as snapshot
from cdc.service import fork, gap, start, tables
from tests.simulation import redis, sessions
from tests.simulation.bucket import ModelBucket
from tests.simulation.clock import LIFE, Life
from tests.simulation.history import TIME_US
from tests.simulation.postgres import ModelPostgres
from tests.simulation.world import World
from tests.support.cache_model import TURNS

# So small that even short histories have transactions in pieces.
PIECE_BYTES = 4_000


class Doors:
    """The doors of one world. `bucket` is configured now; `buckets` has the one that each service was started with."""

    def __init__(self, world: World, server: ModelPostgres, cache: redis.ModelRedis) -> None:
        self.world = world
        self.server = server
        self.cache = cache
        self.bucket: ModelBucket | None = None
        self.buckets: dict[Life, ModelBucket] = {}

    async def connect(self, *_: object, **__: object) -> sessions.ModelConnection:
        await self.world.travel(0.01)
        self.server.reach()
        return sessions.ModelConnection(self.server)

    async def open_stream(self, *_: object) -> sessions.ModelStream:
        return sessions.ModelStream(await self.connect())

    async def read_switch_points(self, _settings: object, timeline: int) -> dict[int, int]:
        async with await self.connect() as connection:
            return await connection.read_switch_points(timeline)

    def open_bucket(self, _settings: ArchiveSettings) -> ModelBucket:
        life = LIFE.get()
        assert life is not None
        return self.buckets[life]

    def open_cache(self, _settings: CacheSettings) -> redis.ModelConnection:
        return redis.ModelConnection(self.cache)

    def open_sentinel(self, _settings: object) -> sessions.ModelSentinel:
        return sessions.ModelSentinel(self.server)

    @asynccontextmanager
    async def create_slot(
        self, _settings: object, _name: str, *, temporary: bool = False
    ) -> AsyncIterator[ExportedSnapshot]:
        async with await self.connect() as connection, connection.create_slot(temporary=temporary) as exported:
            yield exported

    @asynccontextmanager
    async def open_snapshot(
        self, _settings: object, exported: ExportedSnapshot
    ) -> AsyncIterator[sessions.ModelSnapshot]:
        async with await self.connect() as connection:
            yield sessions.ModelSnapshot(connection, exported)


async def _read_publication(connection: sessions.ModelConnection, _name: str) -> Publication:
    await connection.ask()
    return sessions.PUBLICATION


async def _type_names(connection: sessions.ModelConnection) -> dict[int, str]:
    await connection.ask()
    return {column.type_oid: column.type_name for column in TURNS.columns}


async def _check_server(*_: object, **__: object) -> None:
    pass


async def _watch_nothing(*_: object) -> None:
    """Replace the slot watch, which only sets gauges."""


@contextmanager
def opened(doors: Doors) -> Iterator[None]:
    """Put the models behind the doors, and let the seed decide chance and time."""
    loop, dice = doors.world.loop, random.Random(doors.world.seed)
    service: Any = cdc.service.service
    patches: list[tuple[Any, str, Any]] = [
        (start, "connect", doors.connect),
        (service, "connect", doors.connect),
        (tables, "connect", doors.connect),
        (tables, "read_publication", _read_publication),
        (start, "open_bucket", doors.open_bucket),
        (ReplicationStream, "open", doors.open_stream),
        (service, "Sentinel", doors.open_sentinel),
        (service, "Assembler", functools.partial(Assembler, piece_bytes=PIECE_BYTES)),
        (service, "check_dsn", lambda _: None),
        (service, "watch", _watch_nothing),
        (service, "read_slot", lambda connection, _: connection.read_slot()),
        (start, "current_wal_lsn", lambda connection: connection.wal_insert_lsn()),
        (service, "type_names", _type_names),
        (start, "read_server", lambda connection: connection.read_server()),
        (start, "check_server", _check_server),
        (start, "read_switch_points", doors.read_switch_points),
        (start, "read_publication", _read_publication),
        (start, "read_slot", lambda connection, _: connection.read_slot()),
        (start, "drop_slot", lambda connection, _: connection.drop_slot()),
        (fork, "read_switch_points", doors.read_switch_points),
        (cdc.postgres.server, "read_server", lambda connection: connection.read_server()),
        (gap, "connect", doors.connect),
        (gap, "read_server", lambda connection: connection.read_server()),
        (gap, "read_slot", lambda connection, _: connection.read_slot()),
        (gap, "try_lock", lambda connection, _: connection.try_lock()),
        (gap, "drop_slot", lambda connection, _: connection.drop_slot()),
        (snapshot, "connect", doors.connect),
        (snapshot, "read_server", lambda connection: connection.read_server()),
        (snapshot, "create_slot", doors.create_slot),
        (snapshot, "open_snapshot", doors.open_snapshot),
        (cdc.cache.sink, "Connection", doors.open_cache),
        (time, "monotonic", loop.time),
        (time, "time_ns", lambda: TIME_US * 1000 + int(loop.time() * 1e9)),
        (uuid, "uuid4", lambda: uuid.UUID(int=dice.getrandbits(128), version=4)),
        (random, "uniform", dice.uniform),
    ]
    with ExitStack() as stack:
        for target, name, value in patches:
            stack.enter_context(mock.patch.object(target, name, value))
        stack.enter_context(_traced(doors.world))
        yield


@contextmanager
def _traced(world: World) -> Iterator[None]:
    """Write the program's log events into the trace, between those of the models."""

    def tell(_logger: Any, _method: str, event: Any) -> Any:
        name = event.pop("event")
        world.tell(f"{name} " + " ".join(f"{key}={value}" for key, value in event.items() if value != ""))
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(
        processors=[tell],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)
