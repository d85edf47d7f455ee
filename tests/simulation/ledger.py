"""Checks the archive: reads every object at the moment it is created, by the documented format alone.

It shares no code with the program: it reads zstd and JSON as docs/archive-format.md describes them. Object by object
it asserts P2 and P3: dense numbers, an intact chain, dense ordinals, and the committed history, in order and whole. It
asserts P8: what is left out stands between a gap and the snapshot after it, and a fork names the timeline that was left
and the LSN. `lacks` is asked whenever a position is acknowledged, which is P1.
"""

import io
import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import zstandard

from cdc.archive.format.object_key import seq_of
from tests.simulation.history import Committed, History, State
from tests.simulation.world import World


def _lsn(text: str) -> int:
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def _lines(body: bytes) -> list[Any]:
    text = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(body), read_across_frames=True).read()
    return [json.loads(line) for line in text.splitlines()]


class Ledger:
    """One archive. Its first segment names the epoch whose history it tells; each fork names the next epoch.

    `losses` returns how often something was lost so far: that many gaps are allowed, and no more.
    """

    def __init__(self, world: World, histories: list[History], losses: Callable[[], int]) -> None:
        self.begun = False
        self.history = histories[-1]
        self.first = self.next = -1
        self.covered_upto = 0
        self.begins_lsn = 0
        self.writers: list[int] = []
        self.ordinal = 0
        self.kind = ""
        self.gap_open = False
        self.gaps = self.forks = 0
        self.log: list[int] = []
        self.base_lost = False
        self._base_lsn = 0
        self._losses = losses
        self._losses_before = losses()
        self._world = world
        self._histories = histories
        self._bases: dict[str, bytes] = {}
        self._digest: str | None = None
        self._parts: list[Any] = []
        self._part_index = 0

    def created(self, key: str, body: bytes) -> None:
        seq = seq_of(key)
        if key.startswith("base/"):
            self._bases[key] = body
        elif seq is not None:
            self._segment(seq, body)

    def _expect(self, true: bool, what: str) -> None:
        if not true:
            raise self._world.fail(what)

    def _segment(self, seq: int, body: bytes) -> None:
        self._expect(seq == len(self.writers), f"P2: segment {seq} was created when {len(self.writers)} were there")
        header, *lines = _lines(body)
        self._expect(header["prev_sha256"] == self._digest, f"P2: the chain is broken at segment {seq}")
        self._digest = sha256(body).hexdigest()
        self.writers.append(header["writer"]["epoch"])
        timeline = header["source"]["timeline"]
        if not self.begun:
            self.begun, self.history = True, self._histories[timeline - 1]
        elif header["kind"] == "fork":
            self._fork(header["fork"], timeline)
        self._expect(
            timeline == self.history.epoch.timeline,
            f"P8: segment {seq} is of timeline {timeline}, the archive of {self.history.epoch.timeline}",
        )
        self.kind = kind = header["kind"]
        if kind == "snapshot":
            self._begin(header["base"])
        elif kind == "gap":
            self._gap(header["gap"])
        elif kind == "data":
            self._drop_parts()
            self._transactions(lines)
        elif kind == "part":
            self._part(header["part"], lines)
        covered_upto = _lsn(header["covered_upto"])
        self._expect(covered_upto >= self.covered_upto, f"P2: coverage goes back at segment {seq}")
        lacking = self.lacks(covered_upto) if self.next >= 0 else None
        self._expect(lacking is None, f"P1: segment {seq} ({kind}) claims to cover {covered_upto:X}, without {lacking}")
        self.covered_upto = covered_upto

    def _begin(self, base: Any) -> None:
        consistent_lsn = _lsn(base["consistent_lsn"])
        rows: State = {}
        for chunk in base["chunks"]:
            rows |= {line["after"]["id"]: line["after"] for line in _lines(self._bases[chunk["key"]])[1:]}
        self._expect(rows == self.history.state_at(consistent_lsn), "P4: the base is not the tables at its position")
        self._expect(self.next < 0 or self.gap_open, "P8: a second snapshot, and no gap that says why")
        self._expect(consistent_lsn >= self.covered_upto, "P8: a snapshot of before what is covered")
        self.first = self.next = self.history.count_upto(consistent_lsn)
        self.begins_lsn = self.begins_lsn or consistent_lsn
        self._base_lsn = consistent_lsn
        self.gap_open = False

    def _gap(self, gap: Any) -> None:
        """Check that something was lost indeed, and that this is its first record."""
        self._drop_parts()
        self._expect(not self.gap_open, "P8: a gap inside a gap")
        self._expect(_lsn(gap["from"]) <= self.covered_upto, "P8: a gap that begins beyond what is covered")
        self.gap_open, self.base_lost = True, False
        self.gaps += 1
        lost = self._losses() - self._losses_before
        self._expect(self.gaps <= lost, f"P8: {self.gaps} gaps are recorded, and {lost} times something was lost")

    def _fork(self, fork: Any, timeline: int) -> None:
        """Check the timeline that was left, and the LSN. The archive beyond it is a lost tail; its LSNs come again."""
        self._drop_parts()
        left, entered = self.history, self._histories[timeline - 1]
        self._expect(fork["timeline"] == left.epoch.timeline, f"P8: a fork from {fork['timeline']}")
        switch_lsn = _lsn(fork["switch_lsn"])
        if self._base_lsn > switch_lsn and not self.gap_open:
            self._losses_before -= 1  # a snapshot, with the tail
            self.base_lost = True
        self._expect(
            entered.ancestors.get(left.epoch.timeline) == switch_lsn,
            f"P8: a fork at {switch_lsn:X}, but timeline {timeline} left others at {entered.ancestors}",
        )
        self.history = entered
        self.next = min(self.next, entered.count_upto(switch_lsn))
        self.covered_upto = min(self.covered_upto, switch_lsn)
        self.forks += 1

    def _transactions(self, lines: list[Any]) -> None:
        at = 0
        while at < len(lines):
            end = at + 1
            while end < len(lines) and lines[end]["ord"] == lines[at]["ord"]:
                end += 1
            self._transaction(lines[at:end])
            at = end

    def _part(self, part: Any, lines: list[Any]) -> None:
        if part["index"] == 0:
            self._drop_parts()
        self._expect(part["index"] == self._part_index, "P3: parts are not in order")
        self._expect(part["first_seq"] == len(self._parts), "P3: a part does not follow from the one before")
        self._parts += lines
        self._part_index += 1
        if part["last"]:
            lines = self._parts
            self._drop_parts()
            self._transaction(lines)

    def _drop_parts(self) -> None:
        self._parts, self._part_index = [], 0

    def _transaction(self, lines: list[Any]) -> None:
        """Check that this is the next transaction of the history, whole and with its ordinal."""
        self._expect(not self.gap_open, "P8: a transaction inside a gap")
        expected = self._awaited()
        what = f"ordinal {lines[0]['ord']}, lsn {lines[0]['lsn']}"
        self._expect(expected is not None, f"phantom: {what} was never committed")
        assert expected is not None
        self._expect(
            _lsn(lines[0]["lsn"]) == expected.commit_lsn,
            f"P2: {what} was archived where {expected.commit_lsn:X} comes next",
        )
        self._expect({line["ord"] for line in lines} == {self.ordinal}, f"P2: {what} where {self.ordinal} is next")
        self._expect([line["seq"] for line in lines] == list(range(len(expected.changes))), f"P3: {what} is torn")
        same = all(change.is_line(line) for change, line in zip(expected.changes, lines, strict=True))
        self._expect(same and {line["xid"] for line in lines} == {expected.xid}, f"P3: {what} is altered")
        self.ordinal += 1
        self.next += 1
        self.log.append(expected.commit_lsn)

    def _awaited(self) -> Committed | None:
        """Return the next transaction that has changes; those without take no ordinal."""
        while self.next < len(self.history.transactions):
            if self.history.transactions[self.next].changes:
                return self.history.transactions[self.next]
            self.next += 1
        return None

    def lacks(self, lsn: int) -> str | None:
        """Describe a transaction that ends at or before this position and is not here; None if there is none."""
        expected = self._awaited() if self.next >= 0 else next(iter(self.history.transactions), None)
        if expected is None or expected.end_lsn > lsn:
            return None
        return f"{expected.commit_lsn:X}, which ends at {expected.end_lsn:X}"

    @property
    def complete(self) -> bool:
        return self.next >= 0 and not self.gap_open and self._awaited() is None
