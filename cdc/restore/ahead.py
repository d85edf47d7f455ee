"""Decodes ahead: makes the next piece while the target is at work on the one before.

One thread is enough for both: a socket's buffers hold what the target takes during some milliseconds of decoding.
`cdc/archive/bucket/read_ahead.py` fetches the objects, several at a time. Here one task makes pieces of them, one after
another.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

Item = TypeVar("Item")


async def ahead(items: AsyncGenerator[Item], count: int) -> AsyncGenerator[Item]:
    """Yield the items, and make up to `count` of them before they are asked for. Raises what `items` raises."""
    ready: asyncio.Queue[Item | BaseException | None] = asyncio.Queue(count)

    async def make() -> None:
        try:
            async with aclosing(items):
                async for item in items:
                    await ready.put(item)
                    await asyncio.sleep(0)  # a put into a queue that has room does not let others run
            await ready.put(None)
        except Exception as error:
            await ready.put(error)

    task = asyncio.create_task(make(), name="make ahead")
    try:
        while (item := await ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
