"""What a kind of fault is: a generator that injects it, yields while it lasts, and heals it.

    @fault("bucket", lasts_s=(0.5, 3))
    def bucket_answers_503(stage, dice):
        stage.s3.fail(503)
        yield
        stage.s3.heal()

Two faults that touch the same neighbour never overlap, and an `alone` one overlaps with none. `where` says in which
venues a kind makes sense. A kind that finds itself impossible just now (Postgres is restarting) raises one of MISSED,
and is not counted.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import psycopg
import redis

from tests.faults.stage import Stage
from tests.faults.venue import Venue


class Impossible(Exception):
    """Not now."""


MISSED = (Impossible, psycopg.OperationalError, redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError)

Script = Callable[[Stage, random.Random], Iterator[None]]


@dataclass(frozen=True)
class Kind:
    name: str
    touches: str
    lasts_s: tuple[float, float]
    alone: bool
    weight: int
    where: Callable[[Venue], bool]
    inject: Callable[[Stage, random.Random], AbstractContextManager[None]]


KINDS: dict[str, Kind] = {}


def everywhere(_venue: Venue) -> bool:
    return True


def fault(
    touches: str,
    *,
    lasts_s: tuple[float, float] = (0.3, 2.5),
    alone: bool = False,
    weight: int = 4,
    where: Callable[[Venue], bool] = everywhere,
) -> Callable[[Script], Script]:
    """Enter the generator among the kinds, under its own name."""

    def enter(script: Script) -> Script:
        KINDS[script.__name__] = Kind(script.__name__, touches, lasts_s, alone, weight, where, contextmanager(script))
        return script

    return enter
