"""Rests shorter than a millisecond, during which the event loop runs on.

`asyncio.sleep` cannot: selectors round a timeout up to whole milliseconds (CPython, `selectors.EpollSelector.select`).
A Linux timerfd is a file that becomes readable when its time has come, to the microsecond. Python has it since 3.13 and
we support 3.11, so the C library is asked. Where there is no timerfd, a rest is as long as `asyncio.sleep` makes it.
"""

import asyncio
import contextlib
import ctypes
import os
import time
from typing import Final

_NONBLOCK_CLOEXEC: Final = os.O_NONBLOCK | os.O_CLOEXEC


class ShortSleep:
    """One timer, for one task, on one loop."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        create = getattr(self._libc, "timerfd_create", None)
        self._timer = -1 if create is None else int(create(time.CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC))
        self._elapsed: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def rest(self, rest_s: float) -> None:
        """Wait about this long; safe to cancel."""
        if self._timer < 0:
            await asyncio.sleep(rest_s)
            return
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._timer, self._wake)
        self._elapsed = self._loop.create_future()
        # struct itimerspec: no interval, then seconds and nanoseconds until it goes off.
        spec = (ctypes.c_long * 4)(0, 0, int(rest_s), int(rest_s % 1 * 1e9))
        self._libc.timerfd_settime(self._timer, 0, spec, None)
        await self._elapsed

    def close(self) -> None:
        """Give the timer back; may be called again. No rest may be under way."""
        if self._timer < 0:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._timer)
        os.close(self._timer)
        self._timer = -1

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._timer, 8)
        if self._elapsed is not None and not self._elapsed.done():
            self._elapsed.set_result(None)
