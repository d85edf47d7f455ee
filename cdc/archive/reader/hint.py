"""The hint is an object that tells where the log's end was. It only shortens the next start's search for the end.
It is overwritten now and then, is never trusted, and may be absent or old.
"""

import asyncio
import contextlib
import time

import msgspec

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.format.object_key import HINT_KEY
from cdc.errors import CdcError

# A hint shortens the search from some twenty HEADs to a few. That is not worth a PUT a minute, and a log that hardly
# grows is found without it.
_INTERVAL_S = 60.0
_INTERVAL_SEGMENTS = 16
_SEGMENTS_A_MINUTE = 2
_TIMEOUT_S = 2.0


class _Hint(msgspec.Struct):
    seq: int


def encode_hint(seq: int) -> bytes:
    return msgspec.json.encode(_Hint(seq)) + b"\n"


async def read_hint(bucket: Bucket) -> int | None:
    """Read the hint's segment number; None if there is none, or none that can be. Raises Unavailable or Invalid."""
    body = await bucket.get(HINT_KEY)
    try:
        seq = None if body is None else msgspec.json.decode(body, type=_Hint).seq
    except (msgspec.MsgspecError, ValueError):
        return None
    return seq if seq is not None and 0 <= seq < 10**16 else None


class HintWriter:
    """Writes the hint beside the log, in a task of its own: no segment waits for it."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._task: asyncio.Task[None] | None = None
        self._seq = -1
        self._written_at = time.monotonic()

    def note(self, seq: int) -> None:
        """Note that segment `seq` is the last one now, and write a hint if one is due."""
        elapsed_s, segments = time.monotonic() - self._written_at, seq - self._seq
        many = max(_INTERVAL_SEGMENTS, _SEGMENTS_A_MINUTE * elapsed_s / 60)
        if elapsed_s >= _INTERVAL_S and segments >= many and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._write(seq), name="archive hint")

    async def close(self, seq: int | None) -> None:
        """Leave a hint for the next start, unless the last segment is not known (None) or the key must rest."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        rested = self._seq < 0 or time.monotonic() - self._written_at >= self._bucket.rewrite_pause_s
        if rested and seq is not None and seq != self._seq:
            await self._write(seq)

    async def _write(self, seq: int) -> None:
        self._seq, self._written_at = seq, time.monotonic()
        with contextlib.suppress(CdcError, TimeoutError):  # the next start searches a little longer
            async with asyncio.timeout(_TIMEOUT_S):
                await self._bucket.replace(HINT_KEY, encode_hint(seq))
