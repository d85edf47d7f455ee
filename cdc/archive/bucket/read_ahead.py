"""Reading many objects of a bucket, several at a time."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from cdc.archive.bucket.bucket import Bucket

# Enough to hide a bucket's latency, few enough that their bytes stay small.
_READ_AHEAD: Final = 8


async def read_ahead(bucket: Bucket, keys: Sequence[str]) -> AsyncGenerator[tuple[str, bytes | None]]:
    """Objects in the order of the keys, eight of them asked for ahead; None where there is none.

    Close it (`aclosing`), and what was asked for ahead is cancelled. Raises Unavailable or Invalid.
    """
    ahead: deque[tuple[str, asyncio.Task[bytes | None]]] = deque()
    waiting = iter(keys)
    try:
        while True:
            while len(ahead) < _READ_AHEAD and (key := next(waiting, None)) is not None:
                ahead.append((key, asyncio.create_task(bucket.get(key), name=f"read {key}")))
            if not ahead:
                return
            key, task = ahead.popleft()
            yield key, await task
    finally:
        for _, task in ahead:
            task.cancel()
        await asyncio.gather(*(task for _, task in ahead), return_exceptions=True)
