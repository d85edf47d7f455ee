"""Finds the changes across a gap: it compares the state before the gap, by the archive's transactions, with a snapshot.

1. `replay` takes every change from the last snapshot before the gap on: a row's key, and digests of its values;
2. `see` takes the same of the rows that the new snapshot reads, on their way into the archive;
3. `conclude` compares both, sorted by key. Rows that are only in the first were deleted inside the gap: their keys are
   archived. All differences are counted for the record of the snapshot.

Both sides are sorted outside of memory (`sorted_runs.py`), so that memory stays bounded with tables of any size. A gap
must be closed even if the changes inside cannot be found: then the reason is recorded.
"""

import asyncio
import heapq
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from typing import Final

import structlog

from cdc.archive.bucket.bucket import Bucket, required
from cdc.archive.bucket.read_ahead import read_ahead
from cdc.archive.bucket.unlocked import keys_of
from cdc.archive.format.encryption import NO_KEYS, Sealed
from cdc.archive.format.header import Base, ChangeCounts, Chunk, Header, Part, Repair
from cdc.archive.format.object_key import log_key
from cdc.archive.format.parts import Series
from cdc.archive.format.segment import decode_segment, decode_segment_header
from cdc.archive.state.digests import UNKNOWN, WIDTH, as_archived, digest, digest_at
from cdc.archive.state.sorted_runs import Entry, Runs, Sorter
from cdc.archive.writer.sink import ArchiveSink
from cdc.change import Relation, RowChange, Truncate
from cdc.errors import DataError
from cdc.row import INTEGER_OIDS, Oid, Row

log = structlog.get_logger()

_GONE: Final = b"-"
_HERE: Final = b"+"

# The count of keys that are compared between two pauses, which let other tasks run.
_SLICE_KEYS: Final = 5000


class Unknown(Exception):
    """The changes cannot be found; the message says why."""


@dataclass(frozen=True, slots=True)
class _ChangedSegment:
    """A segment with changes. Transactions that end beyond `upto_lsn` are a lost tail."""

    seq: int
    part: Part | None
    upto_lsn: int | None


class GapDiff:
    """Finds the changes across one gap. `close` it when the gap is closed, or the attempt is over."""

    def __init__(self, gap_seq: int, sorter: Sorter | None = None) -> None:
        self._gap_seq = gap_seq
        self._sorter = sorter or Sorter()
        self._before: dict[str, _TableEntries] = {}
        self._after: dict[str, _TableEntries] = {}
        self._order = 0
        self._consistent_lsn = 0
        self._problem = ""
        self._keys = NO_KEYS

    async def replay(self, bucket: Bucket, last_seq: int) -> None:
        """1. Take the state before the gap, of an archive that ends with segment `last_seq`. Raises Unavailable."""
        self._keys = keys_of(bucket)
        try:
            base, steps = await _find_way(bucket, last_seq)
            self._consistent_lsn = base.consistent_lsn
            async for body in _read_chunks(bucket, base.chunks):
                await asyncio.to_thread(self._apply_chunk, body)
            keys = {log_key(step.seq): step for step in steps}
            async with aclosing(read_ahead(bucket, list(keys))) as objects:
                async for key, segment in objects:
                    await asyncio.to_thread(self._apply_segment, required(bucket, key, segment), keys[key].upto_lsn)
        except (Unknown, DataError, Sealed, OSError) as error:
            self._give_up(error)

    def see(self, relation: Relation, rows: Sequence[Row]) -> None:
        """2. Take rows of the new snapshot."""
        if self._problem:
            return
        try:
            table = self._after.get(relation.qualified_name) or self._begin(self._after, relation)
            for row in rows:
                self._order += 1
                table.put(relation, as_archived(relation, row), self._order)
        except OSError as error:
            self._give_up(error)

    async def conclude(self, archive: ArchiveSink, relations: Sequence[Relation], consistent_lsn: int) -> Repair:
        """3. Compare, archive the keys of deleted rows, and return the changes for the snapshot's record.

        Raises as `ArchiveSink.write_deleted` does.
        """
        tables: dict[str, ChangeCounts] = {}
        unknown: dict[str, str] = {}
        deleted: list[Chunk] = []
        for relation in relations:
            name = relation.qualified_name
            try:
                comparison = self._compare(relation)
                rows = _rows_of(comparison, relation)
                chunks = await archive.write_deleted(relation, rows, consistent_lsn)
            except (Unknown, OSError) as error:
                unknown[name] = _reason(error)
                continue
            tables[name] = comparison.tally
            deleted += chunks
        for name in self._before.keys() - {relation.qualified_name for relation in relations}:
            unknown[name] = "it is no longer published"
        return Repair(self._gap_seq, tables, tuple(deleted), unknown)

    def close(self) -> None:
        self._sorter.close()

    def _give_up(self, error: Exception) -> None:
        self._problem = _reason(error)
        log.warning("gap_not_compared", reason=self._problem)
        self._sorter.close()

    def _begin(self, tables: "dict[str, _TableEntries]", relation: Relation) -> "_TableEntries":
        table = tables[relation.qualified_name] = _TableEntries(relation, self._sorter.new_runs())
        return table

    def _apply_chunk(self, body: bytes) -> None:
        for row in decode_segment(body, self._keys).rows():
            self._apply(row)

    def _apply_segment(self, body: bytes, upto_lsn: int | None) -> None:
        for transaction in decode_segment(body, self._keys).iterate():
            if upto_lsn is not None and transaction.commit_lsn >= upto_lsn:
                continue  # lost. Not by end_lsn: a piece has none, and a switch point lies between two records
            if transaction.commit_lsn < self._consistent_lsn:
                continue  # the snapshot has it
            for change in transaction.changes:
                if isinstance(change, RowChange | Truncate):
                    self._apply(change)

    def _apply(self, change: RowChange | Truncate) -> None:
        relation = change.relation
        table = self._before.get(relation.qualified_name) or self._begin(self._before, relation)
        self._order += 2  # a change may make two entries: one key is gone, and another is there
        if isinstance(change, Truncate):
            table.truncated_at = self._order
        else:
            table.apply(change, self._order)

    def _compare(self, relation: Relation) -> "_Comparison":
        if self._problem:
            raise Unknown(self._problem)
        name = relation.qualified_name
        before = self._before.get(name) or self._begin(self._before, relation)
        after = self._after.get(name) or self._begin(self._after, relation)
        if not before.fits(after.relation):
            raise Unknown("its key has changed")
        if before.problem or after.problem:
            raise Unknown(before.problem or after.problem)
        return _Comparison(before, after)


class _TableEntries:
    """The rows of one table, as entries for each key: it is here with these digests, or it is gone.

    Without a key the whole row is the key. A column has its place from when it is first seen.
    """

    def __init__(self, relation: Relation, runs: Runs) -> None:
        self.relation = relation
        self.truncated_at = 0
        self.problem = ""
        self.places: dict[str, int] = {}
        self._runs = runs
        self._met: Relation | None = None

    @property
    def keyed(self) -> bool:
        return bool(_key_of(self.relation))

    def fits(self, relation: Relation) -> bool:
        """True if rows of this shape have the same key columns as those that came before."""
        if self.keyed or _key_of(relation):
            return _key_of(self.relation) == _key_of(relation)
        return [c.name for c in self.relation.columns] == [c.name for c in relation.columns]

    def apply(self, change: RowChange, order: int) -> None:
        """Note the rows that this change makes, changes or removes."""
        relation, new, old = change.relation, change.new, change.old
        old_key = None if old is None else self._key(relation, old)
        if new is None:
            self._add(relation, old_key or b"", order, _GONE)
            return
        if old_key is not None and (not self.keyed or old_key != self._key(relation, new)):
            self._add(relation, old_key, order - 1, _GONE)
        self.put(relation, new, order)

    def put(self, relation: Relation, row: Row, order: int) -> None:
        """Note that this row is there."""
        self._meet(relation)
        self._add(relation, self._key(relation, row), order, _HERE + self._digests(relation, row))

    def states(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the final rows in the order of keys, with their digests; without a key, one entry for each row."""
        for key, entries in groupby(self._runs, key=itemgetter(0)):
            said = [value for _, order, value in entries if order > self.truncated_at]
            if self.keyed:
                state = _fold(said)
                if state is not None:
                    yield key, state
            else:
                for _ in range(sum(1 if value[:1] == _HERE else -1 for value in said)):
                    yield key, b""

    def _add(self, relation: Relation, key: bytes, order: int, value: bytes) -> None:
        self._meet(relation)
        self._runs.add(Entry(key, order, value))

    def _meet(self, relation: Relation) -> None:
        if relation is self._met:
            return
        if not self.fits(relation):
            self.problem = "its key has changed"
        for column in relation.columns:
            self.places.setdefault(column.name, len(self.places))
        self._met = relation

    def _key(self, relation: Relation, row: Row) -> bytes:
        return relation.codec.encode_key(row, relation.key_indexes) if self.keyed else relation.codec.encode(row)

    def _digests(self, relation: Relation, row: Row) -> bytes:
        if not self.keyed:
            return b""
        digests = [UNKNOWN] * len(self.places)
        for column, value in zip(relation.columns, row, strict=True):
            digests[self.places[column.name]] = digest(value)
        return b"".join(digests)


class _Comparison:
    """Compares two states. Iterating gives the keys of rows that are only in the first, and counts on the way."""

    def __init__(self, before: _TableEntries, after: _TableEntries) -> None:
        self._before = before
        self._after = after
        shared = before.places.keys() & after.places.keys()
        self._places = [(before.places[name], after.places[name]) for name in shared]
        self._deleted = self._inserted = self._changed = 0

    @property
    def tally(self) -> ChangeCounts:
        return ChangeCounts(self._deleted, self._inserted, self._changed)

    def slices(self) -> Iterator[list[bytes]]:
        """Yield the keys in runs, one after each so many keys that were compared. So a run may be empty."""
        gone: list[bytes] = []
        both = heapq.merge(_tagged(self._before, 0), _tagged(self._after, 1))
        for looked_at, (key, sides) in enumerate(groupby(both, key=itemgetter(0))):
            gone += [key] * self._count(list(sides))
            if looked_at % _SLICE_KEYS == _SLICE_KEYS - 1:
                yield gone
                gone = []
        yield gone

    def _count(self, sides: list[tuple[bytes, int, bytes]]) -> int:
        """Count one key; return how many of its rows are gone (at most one, if the table has a key)."""
        before = [state for _, side, state in sides if side == 0]
        after = [state for _, side, state in sides if side == 1]
        if len(before) == len(after) == 1 and self._differs(before[0], after[0]):
            self._changed += 1
        gone = max(0, len(before) - len(after))
        self._deleted += gone
        self._inserted += max(0, len(after) - len(before))
        return gone

    def _differs(self, before: bytes, after: bytes) -> bool:
        """True if the two differ in a column that both know."""
        if not before and not after:
            return False
        for was, now in self._places:
            one, other = digest_at(before, was), digest_at(after, now)
            if one != other and UNKNOWN not in (one, other):
                return True
        return False


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"there was no room to sort its rows: {error.strerror}"
    return error.message if isinstance(error, DataError | Sealed) else str(error)


def _tagged(table: _TableEntries, side: int) -> Iterator[tuple[bytes, int, bytes]]:
    return ((key, side, state) for key, state in table.states())


async def _rows_of(comparison: _Comparison, relation: Relation) -> AsyncIterator[list[Row]]:
    """Yield the deleted rows' keys as rows, with ABSENT outside the key."""
    slices = comparison.slices()
    while (keys := await asyncio.to_thread(next, slices, None)) is not None:
        yield [relation.codec.decode(key) for key in keys]


def _fold(said: Sequence[bytes]) -> bytes | None:
    """Fold several entries of one key to the last state. A value that an update did not send stays as it was."""
    state: bytes | None = None
    for value in said:
        if value == _GONE:
            state = None
        elif state is None or UNKNOWN not in value:
            state = value[1:]
        else:
            count = max(len(state), len(value) - 1) // WIDTH
            new, old = value[1:], state
            state = b"".join(
                digest_at(old, place) if digest_at(new, place) == UNKNOWN else digest_at(new, place)
                for place in range(count)
            )
    return state


def _key_of(relation: Relation) -> list[tuple[str, int]]:
    """The key's columns and types; none if the whole row is the key. Integers are one type: they print alike."""
    columns = [relation.columns[relation.column_index[name]] for name in relation.identity]
    return [(c.name, Oid.INT8 if c.type_oid in INTEGER_OIDS else c.type_oid) for c in columns]


async def _find_way(bucket: Bucket, last_seq: int) -> tuple[Base, list[_ChangedSegment]]:
    """Find the last snapshot, and the segments with changes after it, backwards from the archive's end.

    A fork may come before the gap, or after it, if its record was written while the gap was open.
    """
    steps: list[_ChangedSegment] = []
    switch_lsn: int | None = None
    async with aclosing(read_ahead(bucket, [log_key(seq) for seq in range(last_seq, -1, -1)])) as objects:
        async for key, body in objects:
            header = decode_segment_header(required(bucket, key, body))
            if header.base is not None:
                if switch_lsn is not None and header.base.consistent_lsn > switch_lsn:
                    raise Unknown("the last snapshot before the gap lies in a lost tail")
                series = Series[_ChangedSegment]()
                return header.base, [step for one in reversed(steps) for step in series.add(one)]
            if header.fork is not None and (switch_lsn is None or header.fork.switch_lsn < switch_lsn):
                switch_lsn = header.fork.switch_lsn
            steps += _step(header, switch_lsn)
    raise Unknown("there is no snapshot before the gap")


def _step(header: Header, switch_lsn: int | None) -> list[_ChangedSegment]:
    return [] if header.part is None and not header.changes else [_ChangedSegment(header.seq, header.part, switch_lsn)]


async def _read_chunks(bucket: Bucket, chunks: Sequence[Chunk]) -> AsyncIterator[bytes]:
    recorded = {chunk.key: chunk for chunk in chunks}
    async with aclosing(read_ahead(bucket, list(recorded))) as objects:
        async for key, body in objects:
            found = required(bucket, key, body)
            if sha256(found).hexdigest() != recorded[key].sha256:
                raise DataError(f"{key} is not as the snapshot record describes it", hint="cdc archive verify")
            yield found
