"""Plants bugs in the production code, for the self-test: a simulation that finds nothing must be able to find one."""

import asyncio
import copy
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import cdc.archive.reader.history
import cdc.archive.writer.sink
from cdc.archive.format.segment import compress_frame
from cdc.archive.reader.tail import read_tail
from cdc.archive.writer.puts import Puts
from cdc.archive.writer.sink import ArchiveSink
from cdc.cache.calls import ScriptCalls
from cdc.cache.checkpoint import Checkpoint
from cdc.cache.gathering import Gathering
from cdc.cache.plan import Plan
from cdc.cache.sink import CacheSink
from cdc.change import Batch, Transaction
from cdc.errors import Fenced
from cdc.pipeline.cache_feed import CacheFeed
from cdc.pipeline.progress import Progress
from cdc.service import start

Patch = tuple[Any, str, Any]


def taken_is_success() -> list[Patch]:
    """A 412 is taken for the success of our own earlier attempt, without comparing bytes."""

    async def compare(_self: Puts, _key: str, _body: bytes) -> bool:
        return True

    return [(Puts, "_compare", compare)]


def retry_with_other_bytes() -> list[Patch]:
    """Every attempt makes other bytes of the segment's same lines."""
    settled = Puts._settled

    async def settle(self: Puts, key: str, body: bytes) -> None:
        while not await settled(self, key, body):
            body += compress_frame(b"", 1)
            await asyncio.sleep(self._pause_s(1))

    return [(Puts, "settle", settle)]


def two_puts_in_flight() -> list[Patch]:
    """The segments of one batch are PUT side by side; all are waited for."""
    settle, write = Puts.settle, ArchiveSink.write

    async def settle_aside(self: Any, key: str, body: bytes) -> None:
        flying = getattr(self, "flying", None)
        if flying is None:
            await settle(self, key, body)
            return
        flying.append(asyncio.create_task(settle(self, key, body)))
        if len(flying) > 1:
            await flying.pop(0)

    async def write_all(self: Any, batch: Batch) -> int:
        self._puts.flying = []
        try:
            lsn = await write(self, batch)
            await asyncio.gather(*self._puts.flying)
        finally:
            self._puts.flying = None
        return lsn

    return [(Puts, "settle", settle_aside), (ArchiveSink, "write", write_all)]


def no_epoch() -> list[Patch]:
    """Positions of two timelines are compared as if they were of one."""

    async def follow(*_: object) -> bool:
        return False

    return [
        (cdc.archive.writer.sink, "check_source", lambda *_: None),
        (start, "follow_timeline", follow),
    ]


def keepalive_acknowledged_early() -> list[Patch]:
    """A keepalive's position is acknowledged between transactions, though transactions before it are not durable."""

    def acknowledged_lsn(self: Progress) -> int:
        return max(self.archived_lsn, 0 if self._in_transaction else self._server_lsn)

    return [(Progress, "acknowledged_lsn", property(acknowledged_lsn))]


def checkpoint_outside_the_script() -> list[Patch]:
    """The rows are applied by one call, and the checkpoint is moved by the next."""
    send_now = ScriptCalls.send_now

    async def send_twice(self: ScriptCalls, plan: Plan, target: Checkpoint) -> None:
        await send_now(self, plan, self.checkpoint)
        await send_now(self, Plan(), target)

    return [(ScriptCalls, "send_now", send_twice)]


def fork_keeps_positions() -> list[Patch]:
    """A fork is recorded, but what is at or before the old timeline's last LSN is still taken for a duplicate."""
    first_header = ArchiveSink._first_header

    def header(self: ArchiveSink, kind: Any, source: Any, switch_lsn: int, reason: str) -> Any:
        made, tail = first_header(self, kind, source, switch_lsn, reason), self._tail
        if kind != "fork" or tail is None:
            return made
        return replace(made, last_lsn=tail.last_commit_lsn, covered_upto=tail.covered_upto)

    return [(ArchiveSink, "_first_header", header)]


def confirmed_flush_unchecked() -> list[Patch]:
    """The slot's position is not checked: Postgres silently goes on behind what another consumer has confirmed."""
    return [(start, "check_covered", lambda *_: None)]


def two_writers_without_a_fence() -> list[Patch]:
    """No writer fences, and a writer that meets a taken key writes the same lines under the next one."""
    fence, append = ArchiveSink.fence, ArchiveSink._append

    async def no_fence(self: Any, source: Any) -> None:
        if self._tail is None or not self._tail.covered_upto or self._tail.source.epoch != source.epoch:
            await fence(self, source)
        self._ours, self._series = True, None

    async def append_anyway(self: Any, kind: Any, body: Any = None, **facts: Any) -> None:
        try:
            await append(self, kind, body, **facts)
        except Fenced:
            self._tail, self._ours = await read_tail(self._bucket), True
            await append(self, kind, body, **facts)

    return [(ArchiveSink, "fence", no_fence), (ArchiveSink, "_append", append_anyway)]


def abandoned_parts_counted() -> list[Patch]:
    """The first part of a transaction counts as the whole: if the writer dies then, the rest is never sent."""
    append = ArchiveSink._append

    async def append_counting(self: ArchiveSink, kind: Any, body: Any = None, **facts: Any) -> None:
        if kind == "part":
            facts["last_lsn"] = facts["first_lsn"]
        await append(self, kind, body, **facts)

    return [(ArchiveSink, "_append", append_counting)]


def replay_prolongs_life() -> list[Patch]:
    """A key's expiry counts from when its row is applied, not from its commit."""
    project_whole, project_piecewise = CacheSink._project_whole, CacheSink._project_piecewise

    def of_now(transaction: Transaction) -> Transaction:
        now = copy.copy(transaction)
        now.commit_time_us = time.time_ns() // 1000
        return now

    def whole_of_now(self: CacheSink, transaction: Transaction, gathering: Any) -> bool:
        return project_whole(self, of_now(transaction), gathering)

    async def pieces_of_now(self: CacheSink, transaction: Transaction, gathering: Any) -> None:
        await project_piecewise(self, of_now(transaction), gathering)

    return [(CacheSink, "_project_whole", whole_of_now), (CacheSink, "_project_piecewise", pieces_of_now)]


def dropped_queue_is_forgotten() -> list[Patch]:
    """The cache's queue overflows and is emptied, and the cache goes on with the next change."""

    async def offer(self: CacheFeed, transactions: Iterable[Transaction]) -> None:
        self.queue.put(transactions)
        if self.queue.full:
            self.queue._clear()

    return [(CacheFeed, "offer", offer)]


def commit_right_after_is_covered() -> list[Patch]:
    """A commit that begins where the last one ends is taken for applied."""
    covers = Gathering.covers

    def covers_more(self: Gathering, transaction: Transaction) -> bool:
        return transaction.commit_lsn <= self.lsn or covers(self, transaction)

    return [(Gathering, "covers", covers_more)]


def lost_tail_is_restored() -> list[Patch]:
    """A restore leads across a fork, and takes along what the new timeline never had."""
    return [(cdc.archive.reader.history.History, "_switch_lsn_after", lambda _self, _seq: None)]


BUGS: dict[str, Callable[[], list[Patch]]] = {
    bug.__name__: bug
    for bug in (
        taken_is_success,
        retry_with_other_bytes,
        two_puts_in_flight,
        no_epoch,
        keepalive_acknowledged_early,
        checkpoint_outside_the_script,
        fork_keeps_positions,
        confirmed_flush_unchecked,
        two_writers_without_a_fence,
        abandoned_parts_counted,
        replay_prolongs_life,
        dropped_queue_is_forgotten,
        commit_right_after_is_covered,
        lost_tail_is_restored,
    )
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    with ExitStack() as stack:
        for target, attribute, value in BUGS[name]():
            stack.enter_context(mock.patch.object(target, attribute, value))
        yield
