"""What happens to the wires to Postgres and to Redis."""

import random
from collections.abc import Iterator

from tests.faults.kinds.kind import fault
from tests.faults.stage import Stage
from tests.support.proxy import Proxy


def _frozen(wire: Proxy, *, lost: bool) -> Iterator[None]:
    """Silence; then everything that was held back arrives, or the connections turn out to be dead."""
    wire.freeze()
    yield
    if lost:
        wire.cut()
    wire.thaw()


def _slow(wire: Proxy, seconds: float) -> Iterator[None]:
    wire.latency_s = seconds
    yield
    wire.latency_s = 0.0


def _byte_by_byte(wire: Proxy) -> Iterator[None]:
    wire.byte_s = 1.0
    yield
    wire.byte_s = 0.0


@fault("wire to Postgres", lasts_s=(0.0, 0.2), weight=5)
def postgres_wire_cut(stage: Stage, _dice: random.Random) -> Iterator[None]:
    stage.postgres_wire.cut()
    yield


@fault("wire to Postgres", lasts_s=(0.3, 5.0))
def postgres_wire_frozen(stage: Stage, _dice: random.Random) -> Iterator[None]:
    yield from _frozen(stage.postgres_wire, lost=False)


@fault("wire to Postgres", lasts_s=(0.3, 6.0), weight=3)
def postgres_wire_half_open(stage: Stage, _dice: random.Random) -> Iterator[None]:
    yield from _frozen(stage.postgres_wire, lost=True)


@fault("wire to Postgres", lasts_s=(0.5, 3.0))
def postgres_wire_slow(stage: Stage, dice: random.Random) -> Iterator[None]:
    yield from _slow(stage.postgres_wire, dice.uniform(0.01, 0.5))


@fault("wire to Postgres", lasts_s=(0.5, 4.0), weight=3)
def postgres_wire_a_byte_a_second(stage: Stage, _dice: random.Random) -> Iterator[None]:
    yield from _byte_by_byte(stage.postgres_wire)


@fault("redis", lasts_s=(0.0, 0.2), weight=5)
def redis_wire_cut(stage: Stage, _dice: random.Random) -> Iterator[None]:
    stage.redis_wire.cut()
    yield


@fault("redis", lasts_s=(0.3, 3.0))
def redis_wire_frozen(stage: Stage, _dice: random.Random) -> Iterator[None]:
    yield from _frozen(stage.redis_wire, lost=False)


@fault("redis", lasts_s=(0.3, 3.0), weight=3)
def redis_wire_half_open(stage: Stage, _dice: random.Random) -> Iterator[None]:
    yield from _frozen(stage.redis_wire, lost=True)


@fault("redis", lasts_s=(0.5, 3.0), weight=3)
def redis_wire_slow(stage: Stage, dice: random.Random) -> Iterator[None]:
    yield from _slow(stage.redis_wire, dice.uniform(0.01, 0.5))


@fault("redis", lasts_s=(0.5, 3.0), weight=3)
def redis_wire_a_byte_a_second(stage: Stage, _dice: random.Random) -> Iterator[None]:
    yield from _byte_by_byte(stage.redis_wire)
