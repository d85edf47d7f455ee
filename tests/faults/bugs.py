"""Bugs to plant in a service, for the nemesis's self-test: besides the simulation's, those that only kills show."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from cdc.archive.writer.sink import ArchiveSink
from cdc.cache.calls import ScriptCalls
from cdc.cache.checkpoint import FIELDS, META_KEY, Checkpoint
from cdc.pipeline.progress import Progress
from tests.simulation import bugs as simulated
from tests.support.cdc_process import PROGRAM

Patch = tuple[Any, str, Any]


def acknowledged_on_receipt() -> list[Patch]:
    """What was received is acknowledged, whether the archive has it or not."""

    def acknowledged_lsn(self: Progress) -> int:
        return max(self.archived_lsn, self._last_end_lsn)

    return [(Progress, "acknowledged_lsn", property(acknowledged_lsn))]


def archived_again() -> list[Patch]:
    """What Postgres sends again after a crash is archived again."""
    write = ArchiveSink.write

    async def write_all(self: Any, batch: Any) -> int:
        if self._tail is not None and not getattr(self, "written", False):
            self._tail = replace(self._tail, last_commit_lsn=0)
        self.written = True
        return await write(self, batch)

    return [(ArchiveSink, "write", write_all)]


def flushed_cache_is_taken_for_warm() -> list[Patch]:
    """Where the checkpoint is gone, the one of before is put in its place."""
    look = ScriptCalls._look

    async def look_and_mend(self: Any) -> Checkpoint:
        found, known = await look(self), self.checkpoint
        if found.lsn or not known.lsn:
            return found
        await self._connection.call(b"HSET", META_KEY, *itertools.chain(*zip(FIELDS, known, strict=True)))
        return cast(Checkpoint, known)

    return [(ScriptCalls, "_look", look_and_mend)]


BUGS: dict[str, Callable[[], list[Patch]]] = {
    **simulated.BUGS,
    **{bug.__name__: bug for bug in (acknowledged_on_receipt, archived_again, flushed_cache_is_taken_for_warm)},
}


def plant(name: str) -> None:
    """For good, in this process."""
    for target, attribute, value in BUGS[name]():
        setattr(target, attribute, value)


def program_with(name: str) -> str:
    """What `tests.support.cdc_process.Service` runs for a service with this bug."""
    return f"from tests.faults.bugs import plant; plant({name!r}); {PROGRAM}"
