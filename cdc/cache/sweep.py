"""Removes many keys at once: SCAN finds those that fit the configured templates."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

from cdc.cache.calls import ScriptCalls
from cdc.cache.connection import Connection
from cdc.cache.plan import Plan
from cdc.cache.projection import Template
from cdc.config import Projection

_SCAN_COUNT: Final = b"2000"
_UNLINK_AT_ONCE: Final = 1000


async def scan(connection: Connection, pattern: bytes) -> AsyncGenerator[list[bytes]]:
    """Yield the keys that fit a pattern, in pages of about 2,000 examined keys; a page may be empty.

    Raises Unavailable or Invalid.
    """
    cursor = b"0"
    while True:
        cursor, keys = await connection.call(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _SCAN_COUNT)
        yield keys
        if cursor == b"0":
            return


class Sweep:
    """Unlinks the keys of projections in script calls that leave the cache's position as it is."""

    def __init__(self, projections: Sequence[Projection], connection: Connection, calls: ScriptCalls) -> None:
        self._templates = [(Template(projection.key), projection.table) for projection in projections]
        self._connection = connection
        self._calls = calls

    async def unlink_all(self, table: str | None) -> None:
        """Remove every key of a table's projections, or of all projections (None). Raises as `ScriptCalls.send_now`."""
        for template, owner in self._templates:
            if table is None or owner == table:
                await self._unlink_matching(template.pattern, table)

    async def _unlink_matching(self, pattern: bytes, table: str | None) -> None:
        async with aclosing(scan(self._connection, pattern)) as pages:
            async for keys in pages:
                mine = [key for key in keys if table is None or self._owner(key) == table]
                for first in range(0, len(mine), _UNLINK_AT_ONCE):
                    plan = Plan()
                    plan.unlinked = mine[first : first + _UNLINK_AT_ONCE]
                    await self._calls.send_now(plan, self._calls.next_step())

    def _owner(self, key: bytes) -> str | None:
        """The table of the template that fits the key: of `user:{id}` and `user:{id}:turns` the more literal one."""
        fitting = [(template.weight, table) for template, table in self._templates if template.regex.fullmatch(key)]
        return max(fitting)[1] if fitting else None
