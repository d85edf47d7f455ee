"""Reads the archive back: as segments, as lines, and as the transactions after a position.

`ArchiveReader.transactions` is a source of batches, beside the replication stream and the snapshot. The cache catches
up from it. A crash may leave a series of parts without its last: such a transaction is never yielded. A series is first
confirmed by the headers that follow, then read again part by part, so that memory holds one segment at a time.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256

import msgspec

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.bucket.unlocked import keys_of
from cdc.archive.format.header import Header
from cdc.archive.format.object_key import log_key
from cdc.archive.format.segment import Segment, decode_segment, decode_segment_header
from cdc.archive.reader.tail import find_last_seq, read_segment
from cdc.change import Transaction
from cdc.errors import DataError, Diverged, Moved
from cdc.lsn import format_lsn
from cdc.position import Position

# About a millisecond of decoding; a pause after each lets other tasks run.
_SLICE_CHANGES = 128

# Decompressing more than this takes longer than handing it to a thread.
_THREAD_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class SegmentFacts:
    """One object of the log, as `cdc archive ls` prints it."""

    key: str
    header: Header
    nbytes: int
    sha256: str


class ArchiveReader:
    """Reads one archive. Any number of readers may work beside a writer.

    `covered_upto` is the position up to which `transactions` has read, also over WAL that held no changes of ours.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self.covered_upto = 0

    async def read(self, seq: int) -> Segment | None:
        """Read segment `seq`; None if there is none.

        Raises DataError, Sealed without its key, Unavailable or Invalid.
        """
        body = await self._bucket.get(log_key(seq))
        if body is None:
            return None
        keys, large = keys_of(self._bucket), len(body) > _THREAD_BYTES
        segment = await asyncio.to_thread(decode_segment, body, keys) if large else decode_segment(body, keys)
        _check_seq(segment.header, seq)
        return segment

    async def read_header(self, seq: int) -> Header | None:
        """Read the header of segment `seq`; None if there is none. Raises DataError, Unavailable or Invalid."""
        body = await self._bucket.get(log_key(seq))
        return None if body is None else _header_of(body, seq)

    async def segments(self, from_seq: int = 0) -> AsyncIterator[Segment]:
        """Yield all segments from `from_seq` to the end, in order. Raises as `read` does."""
        seq = from_seq
        while (segment := await self.read(seq)) is not None:
            yield segment
            seq += 1

    async def transactions(self, after: Position | None) -> AsyncIterator[Transaction]:
        """Yield the transactions that `after` does not cover (None: all), in order, to the archive's present end.

        A large one comes in pieces; if `after` is within it, it goes on at `part_seq`. Raises Diverged for another
        cluster. Raises Moved if a snapshot, a gap or a fork lies after the position: transactions alone do not lead
        across it. Otherwise raises as `read` does.
        """
        seq = 0 if after is None else await self._seek(after)
        while (segment := await self.read(seq)) is not None:
            seq += 1
            if after is not None and segment.header.kind in {"snapshot", "gap", "fork"}:
                raise _not_followable(segment.header, after)
            if segment.header.part is None:
                async for transaction in _transactions_of(segment, after):
                    yield transaction
                self.covered_upto = segment.header.covered_upto
                continue
            end_seq = await self._end_of_series(segment.header)
            if end_seq is None:
                return
            for part_seq in range(segment.header.seq, max(0, end_seq)):
                segment = await self._read_surely(part_seq)
                async for piece in _transactions_of(segment, after):
                    yield piece
                self.covered_upto = segment.header.covered_upto
            seq = abs(end_seq)

    async def _read_surely(self, seq: int) -> Segment:
        segment = await self.read(seq)
        if segment is None:
            raise DataError(f"segment {seq} has vanished from the archive", hint="cdc archive verify")
        return segment

    async def _end_of_series(self, first: Header) -> int | None:
        """Find the number of the segment after a series of parts.

        It is negative if the series was abandoned, and None if the series is not finished yet.
        """
        part, seq = first.part, first.seq
        while part is not None and part.index == seq - first.seq and _same_transaction(part.commit_lsn, first):
            seq += 1
            if part.last:
                return seq
            header = await self.read_header(seq)
            if header is None:
                return None
            part = header.part
        return -max(seq, first.seq + 1)

    async def _seek(self, after: Position) -> int:
        """Find the first segment to read after a position: backwards from the tail in doubling steps, then halving."""
        last = await find_last_seq(self._bucket)
        if last is None:
            return 0
        if await self._is_covered(last, after):
            return await self._behind(last, after)
        high, step = last, 1
        while high >= step and not await self._is_covered(high - step, after):
            high, step = high - step, step * 2
        low = max(high - step, -1)
        while high - low > 1:
            middle = (low + high) // 2
            if await self._is_covered(middle, after):
                low = middle
            else:
                high = middle
        # Only the last part of a series moves the coverage, so the first segment that moves it may end a series.
        header = await self._header_surely(high)
        return high if header.part is None else high - header.part.index

    async def _behind(self, last: int, after: Position) -> int:
        """Find the first segment to read when the tail is covered, and more may be written at any time.

        A part does not move the coverage, so it looks covered while its series still grows. A reader that began after
        it would mistake the rest of the series for an abandoned one.
        """
        header = await self._header_surely(last)
        growing = header.part is not None and not header.part.last and header.epoch == after.epoch
        return last - header.part.index if header.part is not None and growing else last + 1

    async def _is_covered(self, seq: int, after: Position) -> bool:
        header = await self._header_surely(seq)
        if header.epoch.system_identifier != after.epoch.system_identifier:
            raise Diverged(
                "the archive and a position to go on from are of different clusters",
                detail=f"The position is of {after.epoch}, segment {seq} of {header.epoch}.",
                hint="cdc archive ls   # and see archive.url and postgres.dsn",
            )
        return (header.epoch.timeline, header.covered_upto) <= (after.epoch.timeline, after.lsn)

    async def _header_surely(self, seq: int) -> Header:
        return _header_of(await read_segment(self._bucket, seq), seq)


def _header_of(body: bytes, seq: int) -> Header:
    header = decode_segment_header(body)
    _check_seq(header, seq)
    return header


def _check_seq(header: Header, seq: int) -> None:
    if header.seq != seq:
        raise DataError(f"segment {seq} says that it is segment {header.seq}", hint="cdc archive verify")


def _same_transaction(commit_lsn: int, first: Header) -> bool:
    return first.part is not None and first.part.commit_lsn == commit_lsn


def _not_followable(header: Header, after: Position) -> Moved:
    return Moved(
        f"a {header.kind} lies in the archive after {format_lsn(after.lsn)}",
        detail=f"It is segment {header.seq}. Rows may have changed there without a transaction that says so.",
        hint="nothing: the destination is filled again from a snapshot",
    )


async def _transactions_of(segment: Segment, after: Position | None) -> AsyncIterator[Transaction]:
    """Yield the transactions of a segment that a position does not cover, with pauses for the loop."""
    changes = 0
    for transaction in segment.iterate():
        changes += len(transaction.changes)
        if changes >= _SLICE_CHANGES:
            changes = 0
            await asyncio.sleep(0)
        rest = _rest(transaction, after, segment.header)
        if rest is not None:
            yield rest


def _rest(transaction: Transaction, after: Position | None, header: Header) -> Transaction | None:
    """Cut off the part of a transaction (or piece) that a position covers; None if it covers all."""
    if after is None or header.epoch != after.epoch:
        return transaction
    if transaction.last and transaction.end_lsn <= after.lsn:
        return None
    if transaction.commit_lsn != after.part_commit_lsn or transaction.first_seq >= after.part_seq:
        return transaction
    rest = [change for change in transaction.changes if change.seq >= after.part_seq]
    if not rest and not transaction.last:
        return None
    return Transaction(
        transaction.xid,
        transaction.commit_lsn,
        transaction.commit_time_us,
        rest,
        first_seq=after.part_seq,
        end_lsn=transaction.end_lsn,
        last=transaction.last,
        nbytes=transaction.nbytes,
    )


async def list_segments(bucket: Bucket, from_seq: int = 0, to_seq: int | None = None) -> AsyncIterator[SegmentFacts]:
    """Yield the facts of the log's objects from one number to another (included), as `cdc archive ls` prints them.

    Raises DataError, Unavailable or Invalid.
    """
    seq = from_seq
    while (to_seq is None or seq <= to_seq) and (body := await bucket.get(log_key(seq))) is not None:
        yield SegmentFacts(log_key(seq), decode_segment_header(body), len(body), sha256(body).hexdigest())
        seq += 1


class _Table(msgspec.Struct):
    table: str = ""


_TABLE = msgspec.json.Decoder(_Table)


async def cat_lines(
    bucket: Bucket, from_seq: int = 0, to_seq: int | None = None, *, table: str | None = None
) -> AsyncIterator[bytes]:
    """Yield the lines of changes as the archive holds them, without line breaks; of one table (`public.turns`) or all.

    Raises DataError, Sealed without the key, Unavailable or Invalid.
    """
    reader, seq = ArchiveReader(bucket), from_seq
    while (to_seq is None or seq <= to_seq) and (segment := await reader.read(seq)) is not None:
        for line in segment.lines:
            if table is None or _TABLE.decode(line).table == table:
                yield line
        seq += 1
