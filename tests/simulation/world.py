"""Gives all models the dice, the clock, the trace, and the way of a request.

A request leaves a process, is carried out by a server some time later, and is answered some time after that. Each of
the three can fail by itself. A request that was sent is carried out even if its sender has died meanwhile.
"""

import asyncio
import contextvars
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cdc.errors import Unavailable
from tests.simulation.clock import LIFE, Life, VirtualLoop

_Result = TypeVar("_Result")


class Violation(Exception):
    """A promise was broken; the text says which and how."""


@dataclass
class Weather:
    """How a server's network and the server itself behave: probabilities for one request, and delays in seconds."""

    refused: float = 0.0
    unanswered: float = 0.0
    late: float = 0.0
    slow: float = 0.0
    away: bool = False
    delay_s: float = 0.01
    late_s: float = 6.0

    def calm(self) -> None:
        self.refused = self.unanswered = self.late = self.slow = 0.0
        self.away = False


@dataclass
class World:
    """One seed's world. `fail` records the first violation, which ends the story."""

    seed: int
    loop: VirtualLoop
    dice: random.Random = field(init=False)
    trace: list[str] = field(default_factory=list)
    violation: str = ""
    faults: dict[str, int] = field(default_factory=dict)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    outside: contextvars.Context = field(default_factory=contextvars.Context)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    def tell(self, what: str) -> None:
        life = LIFE.get()
        self.trace.append(f"{self.loop.time() - 1000:9.4f} {life.name if life else '-':>3}  {what}")

    def fault(self, kind: str, what: str = "") -> None:
        self.faults[kind] = self.faults.get(kind, 0) + 1
        self.tell(f"FAULT {kind} {what}")

    def fail(self, what: str) -> Violation:
        if not self.violation:
            self.violation = what
            self.tell(f"VIOLATION {what}")
        self.over.set()
        return Violation(what)

    def later(self, seconds: float, action: Callable[..., object], *args: object) -> None:
        """Do something later in the world, whichever processes live or die meanwhile."""
        self.loop.call_at(self.loop.time() + seconds, self._guarded, action, args, context=self.outside)

    def _guarded(self, action: Callable[..., object], args: tuple[object, ...]) -> None:
        try:
            action(*args)
        except Violation:
            pass
        except Exception as error:
            self.fail(f"a model failed: {type(error).__name__}: {error}")

    def chance(self, probability: float) -> bool:
        return self.dice.random() < probability

    def moment(self, seconds: float) -> float:
        return self.dice.random() * seconds

    async def travel(self, seconds: float) -> None:
        """Wait the time that an answer takes; a dead process gets none."""
        self.alive()
        await asyncio.sleep(self.moment(seconds))
        self.alive()

    def alive(self) -> Life | None:
        life = LIFE.get()
        if life is not None and life.dead:
            raise Unavailable("this process is dead")
        return life

    async def request(self, weather: Weather, what: str, apply: Callable[[], _Result], timeout_s: float) -> _Result:
        """Let a server carry out `apply`. Raises Unavailable, which does not tell whether it was, or still will be."""
        self.alive()
        dice, answer = self.dice, self.loop.create_future()
        fate = dice.random()
        there = self.moment(weather.delay_s) + (dice.random() * 8 if self.chance(weather.slow) else 0)
        back = self.moment(weather.delay_s)
        if weather.away:
            await self.travel(weather.delay_s)
            raise Unavailable(f"{what}: away")
        if fate < weather.refused:
            self.fault("refused", what)
            await self.travel(weather.delay_s)
            raise Unavailable(f"{what}: refused")
        fate -= weather.refused
        lost = fate < weather.unanswered
        if lost:
            self.fault("unanswered", what)
        elif fate - weather.unanswered < weather.late:
            self.fault("late", what)
            there, lost = there + self.moment(weather.late_s), True
        self.later(there, self._carry_out, apply, answer, None if lost else back)
        try:
            async with asyncio.timeout(min(timeout_s, self.moment(0.5)) if lost else timeout_s):
                result: _Result = await answer
        except TimeoutError:
            raise Unavailable(f"{what}: no answer") from None
        self.alive()
        return result

    def _carry_out(self, apply: Callable[[], object], answer: asyncio.Future[Any], back: float | None) -> None:
        try:
            result = apply()
        except Violation:
            raise
        except Exception as error:
            deliver, value = answer.set_exception, error
        else:
            deliver, value = answer.set_result, result  # type: ignore[assignment]
        if back is not None:
            self.later(back, self._deliver, answer, deliver, value)

    @staticmethod
    def _deliver(answer: asyncio.Future[Any], deliver: Callable[[Any], None], value: object) -> None:
        if not answer.done():
            deliver(value)
