"""Reads many objects of a bucket, several at a time."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from cdc.archive.bucket.bucket import Bucket

# Enough to hide a bucket's latency, few enough that their bytes stay small.
_READ_AHEAD: Final = 8


async def read_ahead(bucket: Bucket, keys: Sequence[str]) -> AsyncGenerator[tuple[str, bytes | None]]:
    """Yield objects in the order of the keys, with eight requests ahead; None for an object that is not there.

    Close it (`aclosing`) to cancel the requests ahead. Raises Unavailable or Invalid.
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
