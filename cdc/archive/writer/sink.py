"""The archive's sink writes one segment after another. Each is created once, and names the SHA-256 of the one before.

`open()` finds the tail, and `fence()` puts a segment of our own after it. From then on we are the writer: an older
writer meets a taken key and ends. `write()` freezes the bytes of segment n once and PUTs them. One PUT is in flight,
and the same bytes are sent again while the bucket is away. If the key is taken, the bytes are compared: ours mean that
an earlier attempt had succeeded, others mean that we were fenced.

Position and ordinals are kept in memory only between segments, and are always those of the tail. If a write is
cancelled with its PUT in flight, it is unknown whether the segment is there. Then the sink must be opened and fenced
again, which settles it: a late PUT meets our fence's key, or we find its segment as the tail.

`headers.py` makes the header of the next segment, `body.py` the object's bytes, `puts.py` settles the PUT, and
`chunks.py` writes a snapshot's rows.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import structlog

from cdc import metrics
from cdc.archive.bucket.bucket import Bucket
from cdc.archive.format.cut import DataCut, PartCut, cut
from cdc.archive.format.encryption import Recipients
from cdc.archive.format.header import Base, Chunk, Gap, Header, Kind, Repair, Source, shapes_by_name
from cdc.archive.format.object_key import log_key
from cdc.archive.reader.hint import HintWriter
from cdc.archive.reader.tail import Tail, check_source, check_tail, find_last_seq, tail_of
from cdc.archive.writer.body import Body, Frozen
from cdc.archive.writer.chunks import ChunkWriter
from cdc.archive.writer.headers import data_facts, first_header, fork_header, new_header, next_header, part_facts
from cdc.archive.writer.puts import Puts
from cdc.change import DELETE, READ, Batch, Relation, Transaction
from cdc.config import ArchiveSettings
from cdc.crash import crash_point, crash_soon
from cdc.errors import Moved, Unavailable
from cdc.lsn import format_lsn
from cdc.position import Position
from cdc.row import Row

log = structlog.get_logger()

_FENCE_ATTEMPTS = 10
_RETRY_S = 1.0  # R2 takes one write a second to a key
_MAX_RETRY_S = 10.0


@dataclass(slots=True)
class _Series:
    """A large transaction whose first part segments are in the archive."""

    commit_lsn: int
    index: int
    next_seq: int


class ArchiveSink:
    """Writes one archive; `cdc.pipeline.sinks.Gate` is the contract. The caller that opened the bucket closes it.

    After `open()` comes `fence()`. Without it, or after a write that was cancelled or lost, writing raises Moved.
    """

    def __init__(
        self, bucket: Bucket, settings: ArchiveSettings, *, retry_s: float = _RETRY_S, max_retry_s: float = _MAX_RETRY_S
    ) -> None:
        self._bucket = bucket
        self._segment_bytes = settings.segment_bytes
        self._level = settings.compression_level
        self._recipients = Recipients(settings.recipients) if settings.recipients else None
        self._writer_id = uuid.uuid4().hex
        self._opened = False
        self._tail: Tail | None = None
        self._ours = False
        self._series: _Series | None = None
        self._writing = asyncio.Lock()
        self._puts = Puts(bucket, retry_s, max_retry_s)
        self._hint = HintWriter(bucket)
        self._chunks = ChunkWriter(self._writer_id, self._puts, self._new_body, self._writing, self._writable)

    @property
    def name(self) -> str:
        return "archive"

    @property
    def bucket(self) -> Bucket:
        """The bucket of the archive, for readers of what was written."""
        return self._bucket

    @property
    def tail(self) -> Tail | None:
        """The tail of the archive; None while it is empty, and before `open`."""
        return self._tail

    @property
    def covered_upto(self) -> int:
        """Every transaction with `end_lsn` up to here is in the archive; 0 before the first snapshot or transaction."""
        return 0 if self._tail is None else self._tail.covered_upto

    @property
    def struggling(self) -> bool:
        """True while a PUT has failed and is tried again, or takes suspiciously long."""
        return self._puts.struggling

    async def open(self) -> Position | None:
        """Find the archive's tail and check it against its predecessor.

        None means that nothing is covered yet: the archive is empty, or holds only the fences of backfills that did not
        come to their end. Raises Unavailable, Invalid, or DataError for a damaged tail.
        """
        async with self._writing:
            self._ours, self._series = False, None
            seq = await find_last_seq(self._bucket)
            self._tail = None if seq is None else await check_tail(self._bucket, seq)
            self._opened = True
        if self._tail is None or not self._tail.covered_upto:
            return None
        return Position(self._tail.source.epoch, self._tail.covered_upto)

    def check_source(self, source: Source) -> None:
        """Raise Diverged unless `source` is the database, on the timeline, that this archive tells of."""
        if self._tail is not None:
            check_source(self._bucket.url, self._tail.source, source)

    async def fence(self, source: Source) -> None:
        """Become the writer: put a `fence` segment after the tail. An earlier writer meets it and ends.

        Raises Moved before `open`, Invalid if the bucket refuses, DataError for a damaged tail, Diverged for another
        history. Raises Unavailable if the bucket is away, if others are always faster, or if a segment of another
        timeline came before us. The next `open` finds out whether that is a fork.
        """
        async with self._writing:
            await self._take("fence", source)

    async def write_fork(self, source: Source, switch_lsn: int, reason: str) -> None:
        """Become the writer in a new epoch, which left the archived one at `switch_lsn`. It replaces `fence`.

        Raises as `fence` does, and Unavailable if another service has recorded the fork.
        """
        async with self._writing:
            await self._take("fork", source, switch_lsn, reason)

    async def write(self, batch: Batch) -> int:
        """Archive a batch; return `covered_upto`. Parts of a large transaction do not move it until the last part.

        While the bucket is away this tries again without end (`struggling` says so). Raises Fenced when another writer
        took over, Moved when the sink must be opened and fenced (again) first.
        """
        async with self._writing:
            tail = self._writable()
            fresh = [t for t in batch if t.commit_lsn > tail.last_commit_lsn]
            if len(fresh) < len(batch):
                log.info("replay_skipped", transactions=len(batch) - len(fresh), upto=format_lsn(tail.last_commit_lsn))
            for piece in cut(fresh, self._segment_bytes):
                match piece:
                    case DataCut():
                        await self._write_data(piece)
                    case PartCut():
                        await self._write_part(piece)
                    case _:
                        assert_never(piece)
            return self.covered_upto

    async def write_coverage(self, lsn: int) -> int:
        """Record that nothing published lies between the last transaction and `lsn`; return `covered_upto`.

        Raises as `write` does.
        """
        async with self._writing:
            self._writable()
            if self._series is not None and lsn > self._series.commit_lsn:
                raise RuntimeError(f"coverage of {format_lsn(lsn)} over a transaction that is there only in part")
            if lsn > self.covered_upto:
                await self._append("coverage", covered_upto=lsn)
            return self.covered_upto

    async def write_base(
        self, relation: Relation, batches: AsyncIterator[Sequence[Row]], consistent_lsn: int
    ) -> list[Chunk]:
        """Archive a table's rows as a snapshot read them, in bounded objects, for `write_snapshot` to commit.

        Raises as `write` does, and what reading the batches raises.
        """
        return await self._chunks.write(READ, relation, batches, consistent_lsn)

    async def write_deleted(
        self, relation: Relation, batches: AsyncIterator[Sequence[Row]], consistent_lsn: int
    ) -> list[Chunk]:
        """Archive the keys of rows that were deleted inside a gap, in bounded objects, for `write_snapshot` to name.

        Raises as `write` does, and what reading the batches raises.
        """
        return await self._chunks.write(DELETE, relation, batches, consistent_lsn)

    async def write_snapshot(
        self,
        consistent_lsn: int,
        chunks: Sequence[Chunk],
        relations: Sequence[Relation] = (),
        repair: Repair | None = None,
    ) -> int:
        """Commit a snapshot: its chunks now are the state at `consistent_lsn`, of all the tables in `relations`.

        Returns `covered_upto`. Raises as `write` does.
        """
        async with self._writing:
            tail = self._writable()
            seq = self._chunks.seq if chunks or (repair and repair.deleted) else tail.seq + 1
            await self._append(
                "snapshot",
                covered_upto=max(consistent_lsn, tail.covered_upto),
                relations=shapes_by_name(relations),
                base=Base(seq, consistent_lsn, tuple(chunks), repair),
                open_gap=None,
            )
            return self.covered_upto

    async def write_gap(self, from_lsn: int, reason: str) -> None:
        """Record that changes after `from_lsn` are lost. The next snapshot makes the archive complete again.

        Raises as `write` does.
        """
        async with self._writing:
            tail = self._writable()
            self._series = None
            await self._append("gap", gap=Gap(from_lsn, reason, time.time_ns() // 1000), open_gap=tail.seq + 1)
            metrics.gaps.inc()

    async def close(self) -> None:
        """Leave a hint for the next start. Safe at any time, after a cancelled write too."""
        await self._hint.close(self._tail.seq if self._ours and self._tail is not None else None)
        self._ours = self._opened = False

    def _writable(self) -> Tail:
        if not self._ours or self._tail is None:
            raise Moved(
                "the archive must be opened and fenced before it is written",
                detail="Either that never happened, or a write was cancelled while its segment was under way.",
            )
        return self._tail

    async def _take(self, kind: Kind, source: Source, switch_lsn: int = 0, reason: str = "") -> None:
        if not self._opened:
            raise Moved("the archive must be opened before it is fenced")
        header = self._first_header(kind, source, switch_lsn, reason)
        for _ in range(_FENCE_ATTEMPTS):
            if kind == "fence":
                self.check_source(source)
            frozen = await self._new_body().freeze(header)
            if await self._puts.try_once(log_key(header.seq), frozen.data):
                self._ours, self._series, self._chunks.seq = True, None, -1
                self._advance(frozen)
                log.info("fenced", seq=header.seq, writer_epoch=header.writer.epoch, archive=header.archive)
                return
            log.info("fence_overtaken", seq=header.seq)
            self._tail = await check_tail(self._bucket, await find_last_seq(self._bucket) or 0)
            if kind == "fork" and (header.fork is None or self._tail.source.epoch != header.fork.previous):
                raise Unavailable("another service has recorded the fork")
            if kind == "fence" and self._tail.source.epoch != source.epoch:
                raise Unavailable("a segment of another timeline came before our fence; checking again")
            header = self._first_header(kind, source, switch_lsn, reason)
        raise Unavailable(
            "the archive could not be fenced: other writers were faster each time",
            detail=f"{_FENCE_ATTEMPTS} attempts, the last on segment {header.seq}.",
            hint="look for other services on this archive, and stop them",
        )

    def _first_header(self, kind: Kind, source: Source, switch_lsn: int, reason: str) -> Header:
        if self._tail is None:
            return new_header(str(uuid.uuid4()), kind, source, self._writer_id)
        if kind == "fork":
            return fork_header(self._tail, source, self._writer_id, switch_lsn, reason)
        return first_header(self._tail, kind, source, self._writer_id)

    async def _write_data(self, piece: DataCut) -> None:
        tail, transactions = self._writable(), piece.transactions
        self._series = None
        body = self._new_body()
        await body.add(tail.next_ordinal, transactions)
        await self._append("data", body, **data_facts(tail, transactions))
        _observe_latency(transactions[0].commit_time_us, transactions[-1].commit_time_us)

    async def _write_part(self, piece: PartCut) -> None:
        first, last = piece.pieces[0], piece.pieces[-1]
        tail, index = self._writable(), self._next_index(first)
        body = self._new_body()
        for transaction in piece.pieces:
            await body.add_changes(tail.next_ordinal, transaction)
        await self._append("part", body, **part_facts(tail, piece.pieces, index))
        if last.last:
            self._series = None
            _observe_latency(last.commit_time_us)
            return
        crash_point("part_written")
        next_seq = last.changes[-1].seq + 1 if last.changes else last.first_seq
        self._series = _Series(first.commit_lsn, index + 1, next_seq)

    def _next_index(self, piece: Transaction) -> int:
        """The part number of this piece: 0 for a new transaction, else the number after the series' last part."""
        if piece.first_seq == 0:
            return 0
        series = self._series
        if series is None or (series.commit_lsn, series.next_seq) != (piece.commit_lsn, piece.first_seq):
            raise RuntimeError(f"piece {piece.first_seq} of {format_lsn(piece.commit_lsn)} does not follow: {series}")
        return series.index

    async def _append(self, kind: Kind, body: Body | None = None, **facts: Any) -> None:
        """Freeze the next segment, and PUT it until it is there."""
        header = next_header(self._writable(), kind, self._writer_id, **facts)
        frozen = await (body or self._new_body()).freeze(header)
        self._ours = False  # unknown until the PUT is settled; a cancellation leaves it so
        crash_point("segment_put_unsent")
        crash_soon("segment_put_in_flight")
        await self._puts.settle(log_key(header.seq), frozen.data)
        crash_point("segment_put_answered")
        self._ours = True
        self._advance(frozen)

    def _advance(self, written: Frozen) -> None:
        header, nbytes = written.header, len(written.data)
        self._tail = tail_of(header, written.sha256)
        metrics.gap_open.set(header.open_gap is not None)
        metrics.segments.labels(kind=header.kind).inc()
        metrics.segment_bytes.inc(nbytes)
        log.debug("segment_written", seq=header.seq, kind=header.kind, bytes=nbytes, changes=header.changes)
        metrics.archive_seq.set(header.seq)
        self._hint.note(header.seq)

    def _new_body(self) -> Body:
        return Body(self._level, self._recipients)


def _observe_latency(*commit_times_us: int) -> None:
    now_us = time.time_ns() // 1000
    for time_us in commit_times_us:
        metrics.latency_s.labels(sink="archive").observe(max(now_us - time_us, 0) / 1_000_000)
