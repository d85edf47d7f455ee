"""Bugs to plant in the production code, for the self-test: a simulation that finds nothing must be able to."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import cdc.archive.sink
import cdc.service
from cdc.archive.segment import compress_frame
from cdc.archive.sink import ArchiveSink
from cdc.cache.plan import Plan
from cdc.cache.sink import CacheSink, Checkpoint
from cdc.change import Batch
from cdc.progress import Progress

Patch = tuple[Any, str, Any]


def taken_is_success() -> list[Patch]:
    """A 412 is taken for our own earlier attempt, without comparing bytes."""

    async def compare(_self: ArchiveSink, _key: str, _body: bytes) -> bool:
        return True

    return [(ArchiveSink, "_compare", compare)]


def retry_with_other_bytes() -> list[Patch]:
    """Every attempt makes the segment's bytes anew: the same lines, other bytes."""
    settled = ArchiveSink._settled

    async def put(self: ArchiveSink, key: str, body: bytes) -> None:
        while not await settled(self, key, body):
            body += compress_frame(b"", 1)
            await asyncio.sleep(self._pause_s(1))

    return [(ArchiveSink, "_put", put)]


def two_puts_in_flight() -> list[Patch]:
    """The segments of one batch are PUT side by side; all are waited for."""
    put, write = ArchiveSink._put, ArchiveSink.write

    async def put_aside(self: Any, key: str, body: bytes) -> None:
        flying = getattr(self, "flying", None)
        if flying is None:
            await put(self, key, body)
            return
        flying.append(asyncio.create_task(put(self, key, body)))
        if len(flying) > 1:
            await flying.pop(0)

    async def write_all(self: Any, batch: Batch) -> int:
        self.flying = []
        try:
            lsn = await write(self, batch)
            await asyncio.gather(*self.flying)
        finally:
            self.flying = None
        return lsn

    return [(ArchiveSink, "_put", put_aside), (ArchiveSink, "write", write_all)]


def no_epoch() -> list[Patch]:
    """Positions of two timelines are compared as if they were of one."""

    async def follow(*_: object) -> bool:
        return False

    return [(cdc.archive.sink, "_check_identity", lambda *_: None), (cdc.service, "follow_timeline", follow)]


def keepalive_acknowledged_early() -> list[Patch]:
    """A keepalive's position is acknowledged between transactions, whatever is still undurable."""

    def acknowledged_lsn(self: Progress) -> int:
        return max(self.archived_lsn, 0 if self._in_transaction else self._server_lsn)

    return [(Progress, "acknowledged_lsn", property(acknowledged_lsn))]


def checkpoint_outside_the_script() -> list[Patch]:
    """The rows are applied by one call, and the checkpoint is moved by the next."""
    call = CacheSink._call

    async def call_twice(self: CacheSink, plan: Plan, target: Checkpoint) -> None:
        await call(self, plan, self._checkpoint)
        await call(self, Plan(), target)

    return [(CacheSink, "_call", call_twice)]


BUGS: dict[str, Callable[[], list[Patch]]] = {
    bug.__name__: bug
    for bug in (
        taken_is_success,
        retry_with_other_bytes,
        two_puts_in_flight,
        no_epoch,
        keepalive_acknowledged_early,
        checkpoint_outside_the_script,
    )
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    with ExitStack() as stack:
        for target, attribute, value in BUGS[name]():
            stack.enter_context(mock.patch.object(target, attribute, value))
        yield
