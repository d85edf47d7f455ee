"""What happens to our own process, and between two of them."""

import importlib
import random
import time
from collections.abc import Callable, Iterator
from typing import get_args

from tests.faults.kinds.kind import Impossible, fault
from tests.faults.stage import WAL_SENDER_TIMEOUT_S, Stage
from tests.support.cdc_process import Service

_TAKEOVER_S = 25.0
_OF_BEGINNINGS = ("archive_begun", "backfill", "base", "snapshot", "standing_by", "draining")
_OF_REPAIRS = ("gap", "repair", "fork", "restore", "drill", "verify")


@fault("service", lasts_s=(0.0, 0.2), weight=10)
def service_killed(stage: Stage, _dice: random.Random) -> Iterator[None]:
    stage.crew.kill(stage.crew.main)
    yield


@fault("service", lasts_s=(0.2, 2.0))
def service_killed_in_its_start(stage: Stage, _dice: random.Random) -> Iterator[None]:
    """Once as a fault, and once more while it comes up."""
    stage.crew.kill(stage.crew.main)
    yield
    stage.crew.kill(stage.crew.main)


@fault("service", lasts_s=(0.0, 0.2))
def service_terminated(stage: Stage, _dice: random.Random) -> Iterator[None]:
    yield
    stage.crew.terminate(stage.crew.main)


@fault("service", lasts_s=(0.1, 1.5), weight=6)
def service_suspended(stage: Stage, _dice: random.Random) -> Iterator[None]:
    service = stage.crew.main
    service.pause()
    yield
    service.resume()


@fault("service", lasts_s=(WAL_SENDER_TIMEOUT_S + 0.5, WAL_SENDER_TIMEOUT_S + 2.5), weight=2)
def service_suspended_beyond_its_slot(stage: Stage, _dice: random.Random) -> Iterator[None]:
    """Postgres gives the connection up meanwhile; nobody else takes the slot."""
    yield from service_suspended(stage, _dice)


@fault("service", lasts_s=(0.0, 2.0), alone=True, weight=2)
def second_service_takes_over(stage: Stage, _dice: random.Random) -> Iterator[None]:
    """It stands by until the first one is killed."""
    first = stage.crew.main
    second = stage.crew.recruit()
    _wait(second, lambda: second.events("standing_by") or second.events("streaming"))
    yield
    stage.crew.kill(first, restart=False)


@fault("service", lasts_s=(0.0, 2.0), alone=True, weight=2)
def zombie_wakes(stage: Stage, _dice: random.Random) -> Iterator[None]:
    """Suspended while a second one takes over: when it wakes it must end with 75 and change nothing."""
    zombie = stage.crew.main
    _wait(zombie, lambda: _is_streaming(zombie))
    zombie.pause()
    second = stage.crew.recruit()
    try:
        _wait(second, lambda: second.events("streaming"))
    except Impossible:
        stage.crew.kill(second, restart=False)
        zombie.resume()
        raise
    yield
    stage.crew.dismiss_zombie(zombie)


def crash_points() -> list[str]:
    """Those that a service passes while nothing is beginning, ending or being repaired; none where there are none."""
    try:
        points = get_args(importlib.import_module("cdc.crash").CrashPoint)
    except ImportError:
        return []
    return [point for point in points if not point.startswith(_OF_BEGINNINGS + _OF_REPAIRS)]


@fault("service", lasts_s=(1.5, 4.0), weight=8, where=lambda _: bool(crash_points()))
def service_dies_at_a_crash_point(stage: Stage, dice: random.Random) -> Iterator[None]:
    service = stage.crew.main
    stage.crew.arm(service, f"{dice.choice(crash_points())}:{dice.choice([1, 1, 2, 5, 20])}")
    yield
    stage.crew.disarm(service)


def _is_streaming(service: Service) -> bool:
    """Whether it fenced the archive in this life of its, so that it knows itself to be the writer."""
    events = [line.get("event") for line in service.log(of_this_life=True)]
    return next((event == "streaming" for event in reversed(events) if event in ("streaming", "interrupted")), False)


def _wait(service: Service, true: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + _TAKEOVER_S
    while not true():
        if time.monotonic() > deadline_s or not service.running:
            raise Impossible
        time.sleep(0.1)
