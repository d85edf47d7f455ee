"""What changed across a gap: the same as two plain dictionaries give, and never an obstacle to closing the gap."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from cdc.archive.bucket.memory import MemoryBucket
from cdc.archive.format.header import ChangeCounts, Repair
from cdc.archive.format.object_key import log_key
from cdc.archive.format.segment import decode_segment
from cdc.archive.proof.audit import verify
from cdc.archive.state.gap_diff import GapDiff
from cdc.archive.state.sorted_runs import Sorter
from cdc.archive.writer.sink import ArchiveSink
from cdc.change import Change, Column, Relation, RowChange, Transaction, Truncate
from cdc.metrics import REGISTRY
from cdc.position import Epoch
from cdc.row import ABSENT, Row
from tests.support.transactions import (
    EPOCH,
    SOURCE,
    TIME_US,
    TURNS,
    batch,
    in_batches,
    opened,
    pieces,
    right_after,
    transaction,
)

NOTES = Relation(
    16500, "public", "notes", "d",
    [Column("id", "int8", 20, -1, True), Column("text", "text", 25, -1, False), Column("doc", "json", 114, -1, False)],
)  # fmt: skip
LOOSE = Relation(
    16600, "public", "loose", "f", [Column("a", "text", 25, -1, True), Column("b", "text", 25, -1, True)]
)  # fmt: skip
WIDER_NOTES = Relation(16500, "public", "notes", "d", [*NOTES.columns, Column("mood", "text", 25, -1, False)])
REKEYED_NOTES = Relation(
    16500, "public", "notes", "d",
    [Column("id", "int8", 20, -1, False), Column("text", "text", 25, -1, True), Column("doc", "json", 114, -1, False)],
)  # fmt: skip


def note(number: int, text: bytes = b"text", doc: bytes | None = b"{}") -> Row:
    return [b"%d" % number, text, doc]


async def base(sink: ArchiveSink, consistent_lsn: int, rows: dict[Relation, list[Row]]) -> None:
    chunks = []
    for relation, of_table in rows.items():
        chunks += await sink.write_base(relation, in_batches(of_table, 2), consistent_lsn)
    await sink.write_snapshot(consistent_lsn, chunks, list(rows))


async def compare(
    bucket: MemoryBucket, sink: ArchiveSink, after: dict[Relation, list[Row]], *, memory_bytes: int = 1
) -> Repair:
    """Close the gap as `close_gap` does; what the snapshot's record then says."""
    assert sink.tail is not None
    assert sink.tail.open_gap is not None
    lsn = sink.covered_upto + 1000
    diff = GapDiff(sink.tail.open_gap, Sorter(memory_bytes))
    await diff.replay(bucket, sink.tail.seq)
    chunks = []
    for relation, rows in after.items():
        for at in range(0, len(rows), 3):
            diff.see(relation, rows[at : at + 3])
        chunks += await sink.write_base(relation, in_batches(rows, 2), lsn)
    repair = await diff.conclude(sink, list(after), lsn)
    await sink.write_snapshot(lsn, chunks, list(after), repair)
    diff.close()
    report = await verify(bucket)
    assert report.findings == []
    assert report.gaps[-1].repair == repair
    assert report.uncommitted_chunks == 0
    return repair


def deleted_rows(bucket: MemoryBucket, repair: Repair, relation: Relation) -> list[Row]:
    found: list[Row] = []
    for chunk in repair.deleted:
        if chunk.table == relation.qualified_name:
            rows = decode_segment(bucket.objects[chunk.key]).rows()
            assert {row.op for row in rows} <= {"d"}
            found += [row.old for row in rows if row.old is not None]
    return found


def ids(rows: Sequence[Row]) -> list[int]:
    return sorted(int(bytes(row[0])) for row in rows if isinstance(row[0], bytes))


class History:
    """Random changes of two tables, and what a plain dictionary makes of them."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.notes = {number: note(number, self._text()) for number in range(self.dice.randrange(30))}
        self.loose = [self._loose() for _ in range(self.dice.randrange(10))]
        self.first = self.rows()

    def rows(self) -> dict[Relation, list[Row]]:
        return {NOTES: [list(row) for row in self.notes.values()], LOOSE: [list(row) for row in self.loose]}

    def change(self, seq: int) -> Change:
        """One more change, as Postgres would send it."""
        match self.dice.choice("ccuuktddlLm"):
            case "u" if self.notes:
                number = self.dice.choice(list(self.notes))
                text = ABSENT if self.dice.random() < 0.4 else self._text()
                sent: Row = [b"%d" % number, text, b"[1]"]
                self.notes[number] = [sent[0], self.notes[number][1] if text is ABSENT else text, sent[2]]
                return RowChange("u", seq, NOTES, sent, None)
            case "k" if self.notes:
                old, new = self.dice.choice(list(self.notes)), self.dice.randrange(1000, 2000)
                if new not in self.notes:
                    row = [b"%d" % new, *self.notes.pop(old)[1:]]
                    self.notes[new] = row
                    return RowChange("u", seq, NOTES, list(row), [b"%d" % old, ABSENT, ABSENT])
            case "d" if self.notes:
                number = self.dice.choice(list(self.notes))
                del self.notes[number]
                return RowChange("d", seq, NOTES, None, [b"%d" % number, ABSENT, ABSENT])
            case "t" if self.dice.random() < 0.2:
                self.notes.clear()
                return Truncate(seq, NOTES, cascade=False, restart_identity=False)
            case "l" if self.loose:
                old_row = self.loose.pop(self.dice.randrange(len(self.loose)))
                return RowChange("d", seq, LOOSE, None, old_row)
            case "m" if self.loose:
                at, row = self.dice.randrange(len(self.loose)), self._loose()
                old_row, self.loose[at] = self.loose[at], row
                return RowChange("u", seq, LOOSE, row, old_row)
            case "L":
                self.loose.append(self._loose())
                return RowChange("c", seq, LOOSE, self.loose[-1], None)
            case _:
                pass
        number = self.dice.randrange(30)
        while number in self.notes:
            number += 1
        self.notes[number] = note(number, self._text())
        return RowChange("c", seq, NOTES, list(self.notes[number]), None)

    def transaction(self, number: int) -> Transaction:
        changes = [self.change(seq) for seq in range(self.dice.randrange(1, 5))]
        return Transaction(number, number * 100, TIME_US, changes, end_lsn=number * 100 + 48)

    def _text(self) -> bytes:
        return b"%d" % self.dice.randrange(4)

    def _loose(self) -> Row:
        return [self.dice.choice([b"x", b"y"]), self.dice.choice([b"1", None])]


@examples(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 25), st.integers(0, 25))
def test_the_counts_and_keys_are_those_of_two_dictionaries(seed: int, before: int, inside: int) -> None:
    history = History(seed)

    async def story() -> None:
        bucket = MemoryBucket()
        sink = await opened(bucket)
        await base(sink, 10, history.first)
        for number in range(1, before + 1):
            await sink.write(batch(history.transaction(number)))
        await sink.write_gap(sink.covered_upto, "for a test")
        notes, loose = dict(history.notes), Counter(map(tuple, history.loose))
        for number in range(before + 1, before + inside + 1):
            history.transaction(number)
        now, loose_now = history.notes, Counter(map(tuple, history.loose))
        repair = await compare(bucket, sink, history.rows(), memory_bytes=history.dice.choice([1, 3000, 10**8]))
        changed = sum(notes[number] != now[number] for number in notes.keys() & now.keys())
        assert repair.unknown == {}
        assert repair.tables["public.notes"] == ChangeCounts(len(notes.keys() - now), len(now.keys() - notes), changed)
        assert ids(deleted_rows(bucket, repair, NOTES)) == sorted(notes.keys() - now)
        gone, come = loose - loose_now, loose_now - loose
        assert repair.tables["public.loose"] == ChangeCounts(gone.total(), come.total(), 0)
        assert Counter(map(tuple, deleted_rows(bucket, repair, LOOSE))) == gone

    asyncio.run(story())


@pytest.fixture
async def bucket() -> MemoryBucket:
    return MemoryBucket()


async def test_parts_that_were_abandoned_do_not_count(bucket: MemoryBucket) -> None:
    sink = await opened(bucket)
    await base(sink, 10, {TURNS: []})
    large = pieces(1, 6, of=2)
    await sink.write(batch(large[0]))
    sink = await opened(bucket)
    for piece in large:
        await sink.write(batch(piece))
    await sink.write(batch(pieces(2, 4, of=2)[0]))
    await sink.write_gap(sink.covered_upto, "for a test")
    repair = await compare(bucket, sink, {TURNS: []})
    assert repair.tables == {"public.turns": ChangeCounts(6, 0, 0)}


async def test_a_lost_tail_was_never_in_the_state_before_the_gap(bucket: MemoryBucket) -> None:
    sink = await opened(bucket)
    await base(sink, 10, {TURNS: []})
    await sink.write(batch(transaction(1), transaction(2), transaction(3)))
    await sink.open()
    await sink.write_fork(replace(SOURCE, epoch=Epoch(EPOCH.system_identifier, 2)), 250, "promoted")
    await sink.write_gap(sink.covered_upto, "for a test")
    repair = await compare(bucket, sink, {TURNS: []})
    assert ids(deleted_rows(bucket, repair, TURNS)) == [1000, 2000]


async def test_a_snapshot_at_the_switch_point_is_none_of_a_lost_tail(bucket: MemoryBucket) -> None:
    sink = await opened(bucket)
    await base(sink, 250, {NOTES: [note(1)]})
    await sink.open()
    await sink.write_fork(replace(SOURCE, epoch=Epoch(EPOCH.system_identifier, 2)), 250, "promoted")
    await sink.write_gap(sink.covered_upto, "for a test")
    repair = await compare(bucket, sink, {NOTES: []})
    assert repair.tables == {"public.notes": ChangeCounts(1, 0, 0)}


async def test_a_commit_that_begins_at_a_bound_is_after_it(bucket: MemoryBucket) -> None:
    """The snapshot lacks it, and so does a timeline that leaves there."""
    sink = await opened(bucket)
    kept = transaction(1)
    await base(sink, kept.commit_lsn, {TURNS: []})
    await sink.write(batch(kept, right_after(kept, transaction(2))))
    await sink.open()
    await sink.write_fork(replace(SOURCE, epoch=Epoch(EPOCH.system_identifier, 2)), kept.end_lsn, "promoted")
    await sink.write_gap(sink.covered_upto, "for a test")
    repair = await compare(bucket, sink, {TURNS: []})
    assert ids(deleted_rows(bucket, repair, TURNS)) == [1000]


async def test_a_snapshot_within_a_lost_tail_says_nothing_of_the_state(bucket: MemoryBucket) -> None:
    sink = await opened(bucket)
    await base(sink, 300, {TURNS: []})
    await sink.open()
    await sink.write_fork(replace(SOURCE, epoch=Epoch(EPOCH.system_identifier, 2)), 250, "promoted")
    await sink.write_gap(sink.covered_upto, "for a test")
    repair = await compare(bucket, sink, {TURNS: []})
    assert "lost tail" in repair.unknown["public.turns"]


async def test_columns_that_one_side_does_not_know_are_not_compared(bucket: MemoryBucket) -> None:
    sink = await opened(bucket)
    await base(sink, 10, {NOTES: [note(1), note(2)]})
    await sink.write_gap(sink.covered_upto, "for a test")
    repair = await compare(bucket, sink, {WIDER_NOTES: [[*note(1), b"calm"], [*note(2, b"other"), b"calm"]]})
    assert repair.tables == {"public.notes": ChangeCounts(0, 0, 1)}


async def test_line_breaks_of_a_json_are_no_change(bucket: MemoryBucket) -> None:
    sink = await opened(bucket)
    await base(sink, 10, {NOTES: [note(1, doc=b'{\n"a": 1}')]})
    await sink.write_gap(sink.covered_upto, "for a test")
    repair = await compare(bucket, sink, {NOTES: [note(1, doc=b'{\n"a": 1}')]})
    assert repair.tables == {"public.notes": ChangeCounts(0, 0, 0)}


async def test_tables_of_which_nothing_can_be_said_are_named_with_the_reason(bucket: MemoryBucket) -> None:
    sink = await opened(bucket)
    await base(sink, 10, {NOTES: [note(1)], LOOSE: [[b"x", b"1"]], TURNS: []})
    await sink.write_gap(sink.covered_upto, "for a test")
    repair = await compare(bucket, sink, {REKEYED_NOTES: [note(1)], TURNS: []})
    assert repair.unknown == {"public.notes": "its key has changed", "public.loose": "it is no longer published"}
    assert repair.tables == {"public.turns": ChangeCounts(0, 0, 0)}


async def test_a_damaged_archive_does_not_keep_a_gap_open(bucket: MemoryBucket) -> None:
    sink = await opened(bucket)
    await base(sink, 10, {TURNS: []})
    await sink.write(batch(transaction(1)))
    await sink.write_gap(sink.covered_upto, "for a test")
    assert sink.tail is not None
    diff = GapDiff(sink.tail.open_gap or 0)
    whole = bucket.objects[log_key(2)]
    bucket.objects[log_key(2)] = whole[:-9] + b"\0" + whole[-8:]
    await diff.replay(bucket, sink.tail.seq)
    diff.see(TURNS, [])
    repair = await diff.conclude(sink, [TURNS], 2000)
    assert repair.tables == {}
    assert "frame" in repair.unknown["public.turns"]


async def test_verify_finds_a_deleted_key_that_was_tampered_with(bucket: MemoryBucket) -> None:
    sink = await opened(bucket)
    await base(sink, 10, {NOTES: [note(1), note(2)]})
    await sink.write_gap(sink.covered_upto, "for a test")
    repair = await compare(bucket, sink, {NOTES: [note(1)]})
    key = repair.deleted[0].key
    assert key.endswith("/public.notes/deleted/00000000.ndjson.zst")
    whole = bucket.objects[key]
    bucket.objects[key] = whole[:-1] + bytes([whole[-1] ^ 1])
    assert {finding.key for finding in (await verify(bucket)).findings} == {key}
    del bucket.objects[key]
    assert ["is missing" in finding.problem for finding in (await verify(bucket)).findings] == [True]


async def test_an_open_gap_is_a_metric_until_its_snapshot_closes_it(bucket: MemoryBucket) -> None:
    recorded = REGISTRY.get_sample_value("cdc_gaps_total") or 0
    sink = await opened(bucket)
    await base(sink, 10, {NOTES: []})
    assert REGISTRY.get_sample_value("cdc_gap_open") == 0
    await sink.write_gap(sink.covered_upto, "for a test")
    assert REGISTRY.get_sample_value("cdc_gap_open") == 1
    assert REGISTRY.get_sample_value("cdc_gaps_total") == recorded + 1
    await compare(bucket, sink, {NOTES: []})
    assert REGISTRY.get_sample_value("cdc_gap_open") == 0
