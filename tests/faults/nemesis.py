"""The nemesis: one fault after another, as its dice say, now and then two at once, each healed after a bounded while.

The dice are seeded, so that a seed gives the same kinds for the same lengths in the same order; what they meet depends
on threads and processes, and is not repeated exactly.
"""

import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence

from tests.faults.kinds import KINDS, Kind
from tests.faults.kinds.kind import MISSED
from tests.faults.stage import Stage

# Two at once, with this probability.
_OVERLAP = 0.5
# Most rests are nothing at all; what a fault left half done meets the next one.
_REST_S, _RESTS = 0.5, 0.4
_POLL_S = 0.05


class Nemesis:
    """`counts` are the faults that were injected, by kind; `missed` those that were impossible just then."""

    def __init__(self, stage: Stage, dice: random.Random, *, most: int | None = None, only: Sequence[str] = ()) -> None:
        self.counts: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self._stage = stage
        self._dice = dice
        self._most = most
        self._kinds = [kind for kind in KINDS.values() if kind.where(stage.venue) and kind.name in (only or KINDS)]
        self._running: dict[threading.Thread, Kind] = {}

    def haunt(self, seconds: float) -> None:
        """Inject for so long, or so many; all are healed when this returns."""
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s and not self._enough():
            kind = self._dice.choices(self._kinds, weights=[kind.weight for kind in self._kinds])[0]
            lasts_s = self._dice.uniform(*kind.lasts_s)
            self._wait(0 if kind.alone else 1, kind.touches)
            self._begin(kind, lasts_s, random.Random(self._dice.getrandbits(64)))
            if self._dice.random() > _OVERLAP:
                self._wait(0, kind.touches)
            if self._dice.random() < _RESTS:
                time.sleep(self._dice.expovariate(1 / _REST_S))
        self._wait(0, "")

    def _enough(self) -> bool:
        return self._stage.crew.given_up or (self._most is not None and self.counts.total() >= self._most)

    def _begin(self, kind: Kind, lasts_s: float, dice: random.Random) -> None:
        thread = threading.Thread(target=self._inject, args=(kind, lasts_s, dice), name=kind.name)
        self._running[thread] = kind
        thread.start()

    def _inject(self, kind: Kind, lasts_s: float, dice: random.Random) -> None:
        injected = False
        try:
            with kind.inject(self._stage, dice):
                injected = True
                time.sleep(lasts_s)
        except MISSED:
            pass  # a server that another fault took away; its own healing brings it back
        except BaseException as error:  # pytest.fail among them: a fault that cannot be healed is a finding
            self._stage.findings.add(f"{kind.name}: {type(error).__name__}: {error}", traceback.format_exc())
        (self.counts if injected else self.missed)[kind.name] += 1

    def _wait(self, most: int, touches: str) -> None:
        """Until at most so many last, and none that touches this."""
        while True:
            self._running = {thread: kind for thread, kind in self._running.items() if thread.is_alive()}
            kinds = self._running.values()
            if len(self._running) <= most and all(kind.touches != touches and not kind.alone for kind in kinds):
                return
            time.sleep(_POLL_S)
