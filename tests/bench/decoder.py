"""The package pgoutput-decoder over the first part of the same WAL, as its own manual shows how to use it.

Run as a program: `python -m tests.bench.decoder HOST PORT USER DATABASE SLOT PUBLICATION CHANGES`. It reads that many
changes, or stops when none has come for some seconds. Prints one line of JSON: changes, seconds.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

_SILENCE_S = 20


async def _read(reader: AsyncIterator[Any], wanted: int) -> tuple[int, float]:
    changes = 0
    stream = aiter(reader)
    started = last = time.monotonic()
    while changes < wanted:
        try:
            message = await asyncio.wait_for(anext(stream), _SILENCE_S)
        except (TimeoutError, StopAsyncIteration):
            break
        last = time.monotonic()
        if message.op in ("c", "u", "d"):
            changes += 1
    return changes, last - started


async def _main() -> None:
    from pgoutput_decoder import LogicalReplicationReader

    host, port, user, database, slot, publication, wanted = sys.argv[1:8]
    reader = LogicalReplicationReader(
        publication_name=publication,
        slot_name=slot,
        host=host,
        database=database,
        port=int(port),
        user=user,
        password="",
    )
    changes, seconds = await _read(reader, int(wanted))
    print(json.dumps({"changes": changes, "seconds": seconds}), flush=True)
    # Not `reader.stop()` and a proper end: version 0.1.0 aborts the interpreter as it ends.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(_main())
