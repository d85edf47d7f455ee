"""What happens to the machine: its disk and its clock."""

import contextlib
import random
from collections.abc import Iterator

from tests.faults.kinds.kind import fault
from tests.faults.stage import Stage
from tests.faults.venue import Venue

_BLOCK = bytes(256 * 1024)


def on_disk(venue: Venue) -> bool:
    return venue.on_disk


def on_shifted_clock(venue: Venue) -> bool:
    return venue.clock


@fault("bucket", weight=20, where=on_disk)
def disk_full(stage: Stage, _dice: random.Random) -> Iterator[None]:
    """The archive's file system, filled by somebody to the last byte."""
    ballast = stage.disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(_BLOCK)
    yield
    ballast.unlink()


def _step(stage: Stage, seconds: float) -> None:
    """libfaketime looks at the file once a second."""
    stage.clock_file.write_text(f"{seconds:+.1f}")


@fault("clock", lasts_s=(1.5, 4.0), weight=10, where=on_shifted_clock)
def clock_steps_forward(stage: Stage, dice: random.Random) -> Iterator[None]:
    """And back again, which is a step too."""
    _step(stage, dice.choice([2.0, 90.0, 5_000.0]))
    yield
    _step(stage, 0.0)


@fault("clock", lasts_s=(1.5, 4.0), weight=10, where=on_shifted_clock)
def clock_steps_back(stage: Stage, dice: random.Random) -> Iterator[None]:
    _step(stage, -dice.choice([2.0, 90.0, 5_000.0]))
    yield
    _step(stage, 0.0)
