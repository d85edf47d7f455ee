"""Runs an event loop without sockets in virtual time, with processes that can be stopped, continued and killed.

Waiting costs nothing: when nothing is ready the clock jumps to the next timer. Everything that runs in a `Life`'s
context belongs to that process; a stopped one's callbacks are parked and all run when it goes on, late timers too, as
with SIGSTOP and SIGCONT. Tasks are numbered, so that sets of them have the same order each time and a seed replays
exactly.
"""

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Callable
from typing import Any


class Stuck(Exception):
    """Nothing can ever happen again, or too much happens before time goes on."""


class Life:
    """One process of the service. `die_at` is the step (one callback of its loop) at which it is killed.

    `repairs` says that it is `cdc repair`.
    """

    def __init__(self, name: str, die_at: int | None = None) -> None:
        self.name = name
        self.steps = 0
        self.die_at = die_at
        self.stopped = False
        self.dead = False
        self.repairs = False
        self.task: asyncio.Task[None] | None = None
        self.at_death: Callable[[], None] = lambda: None
        self._parked: list[asyncio.Handle] = []

    def may_run(self, handle: asyncio.Handle) -> bool:
        """Count a step; False if the process cannot take it now."""
        if self.stopped and not self.dead:
            self._parked.append(handle)
            return False
        self.steps += 1
        if self.steps == self.die_at:
            self.kill()
        return True

    def stop(self) -> None:
        self.stopped = True

    def go_on(self, loop: "VirtualLoop") -> None:
        self.stopped = False
        parked, self._parked = self._parked, []
        loop.again(parked)

    def kill(self) -> None:
        """Kill the process: nothing it does reaches the models any more, and its tasks are cancelled."""
        if self.dead:
            return
        self.dead = True
        self.at_death()
        if self.task is not None:
            loop = self.task.get_loop()
            assert isinstance(loop, VirtualLoop)
            self.go_on(loop)
            self.task.cancel()


LIFE: contextvars.ContextVar[Life | None] = contextvars.ContextVar("LIFE", default=None)


class _Handle(asyncio.Handle):
    def _run(self) -> None:
        life = self._context.get(LIFE)  # type: ignore[attr-defined]
        if life is None or life.may_run(self):
            super()._run()


class _Timer(asyncio.TimerHandle):
    def _run(self) -> None:
        life = self._context.get(LIFE)  # type: ignore[attr-defined]
        if life is None or life.may_run(self):
            super()._run()


class _NumberedTask(asyncio.Task[Any]):
    """A task that is hashed by its number instead of its address, which differs in every run."""

    _count = 0
    _number: int

    def __new__(cls, *_args: Any, **_kwargs: Any) -> "_NumberedTask":
        task = super().__new__(cls)
        cls._count += 1
        task._number = cls._count
        return task

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop in virtual time. It raises Stuck after `limit_s` or `limit_turns`: a healthy story takes less."""

    _scheduled: list[asyncio.TimerHandle]
    _ready: deque[asyncio.Handle]

    def __init__(self, limit_s: float, limit_turns: int = 200_000) -> None:
        super().__init__()
        self._now = 1000.0
        self._limit = self._now + limit_s
        self._turns_left = limit_turns
        self._selector = self
        _NumberedTask._count = 0
        self.set_debug(False)
        self.set_task_factory(lambda loop, coro, **kw: _NumberedTask(coro, loop=loop, **kw))

    def time(self) -> float:
        return self._now

    def again(self, handles: list[asyncio.Handle]) -> None:
        """Queue these callbacks again, in their order."""
        self._ready.extend(handles)

    def revive(self) -> None:
        """Grant more time, in which the last tasks are cleared away."""
        self._limit, self._turns_left = self._now + 1000, 100_000

    def select(self, timeout: float | None) -> list[object]:
        """Move the clock on instead of waiting, as a selector would. Raises Stuck."""
        self._turns_left -= 1
        if timeout is None:
            raise Stuck("nobody waits for anything that could still happen")
        if timeout > 0:
            self._now += timeout
        if self._now > self._limit or self._turns_left < 0:
            raise Stuck(f"not at its end after {self._now - 1000:.0f} virtual seconds, {self._turns_left} turns left")
        return []

    def run_in_executor(self, _executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Do the work at once, because no seed could replay threads."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def _call_soon(self, callback: Any, args: Any, context: Any) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        timer = _Timer(when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def _process_events(self, _events: object) -> None:
        pass

    def _write_to_self(self) -> None:
        pass
