"""The writer of the archive: one segment after another, each created once, each naming the bytes of the one before.

`open()` finds the tail, `fence()` puts a segment of our own behind it, and from then on we are the writer: any other
who still believes to be it meets a taken key and dies. `write()` freezes the bytes of segment n once and PUTs them, one
PUT in flight, the same bytes again for as long as the bucket is away. A taken key is compared: our bytes mean that an
earlier attempt had succeeded, others that somebody fenced us.

Position and ordinals live in memory only between segments and are always what the tail says. If a write is cancelled
with its PUT in flight, nobody knows whether the segment is there: the sink then wants to be opened and fenced again,
which settles it (a late PUT meets our fence's key, or we find it as the tail).

Encoding happens in slices with a pause after each, compression of anything large in a thread: the loop that we share
with the cache is never held for more than about a millisecond.
"""

import asyncio
import contextlib
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, TypeVar, assert_never
from urllib.parse import quote

import structlog

from cdc import metrics
from cdc.archive.bucket import AlreadyExists, Bucket
from cdc.archive.cut import DataCut, PartCut, cut
from cdc.archive.encryption import Recipients
from cdc.archive.header import (
    Base,
    Chunk,
    Fork,
    Gap,
    Header,
    Kind,
    Part,
    Repair,
    Source,
    Writer,
    shapes_by_name,
)
from cdc.archive.lines import Encoder
from cdc.archive.segment import FRAME_BYTES, compress_frame, compress_header, decode_segment_header
from cdc.archive.tail import BASE, HINT_KEY, SUFFIX, Tail, check_tail, encode_hint, find_last_seq, log_key
from cdc.change import DELETE, READ, Batch, Relation, RowChange, Transaction
from cdc.config import ArchiveSettings
from cdc.crash import crash_point, crash_soon
from cdc.errors import CdcError, DataError, Diverged, Fenced, Moved, Unavailable
from cdc.lsn import format_lsn
from cdc.row import Row
from cdc.sink import Position

log = structlog.get_logger()

_Result = TypeVar("_Result")

# About a millisecond of encoding; a pause after each lets the loop serve others.
_SLICE_ROWS = 128
_SLICE_BYTES = 128 * 1024

# Compressing or hashing more than this takes longer than handing it to a thread.
_THREAD_BYTES = 32 * 1024

_FENCE_ATTEMPTS = 10
_RETRY_S = 1.0  # R2 takes one write a second to a key
_MAX_RETRY_S = 10.0
_STRUGGLING_S = 5.0

# The hint only shortens the search for the tail, from some twenty HEADs to a few; it is not worth a PUT a minute.
_HINT_INTERVAL_S = 60.0
_HINT_SEGMENTS = 16
_HINT_TIMEOUT_S = 2.0

# How far back a last coverage is looked for, one GET each; a fence behind it is found by halving.
_LOOK_BACK_SEGMENTS = 32

# Keys of rows that were deleted inside a gap lie apart from the rows of the snapshot that closed it.
DELETED = "deleted/"

# A base chunk holds about this much text.
_CHUNK_BYTES = 8 * 1024 * 1024


@dataclass(slots=True)
class _Series:
    """A large transaction of which some part segments are in the archive."""

    commit_lsn: int
    index: int
    next_seq: int


@dataclass(slots=True)
class _Body:
    """The lines of an object on their way: compressed frames, and what the header must say of them."""

    level: int
    encoder: Encoder = field(default_factory=Encoder)
    frames: list[bytes] = field(default_factory=list)
    nbytes: int = 0
    _raw: list[bytes] = field(default_factory=list)
    _raw_bytes: int = 0

    async def add(self, first_ordinal: int, transactions: Sequence[Transaction]) -> None:
        """Encode the lines of some transactions, whose ordinals count up from the first one's."""
        at = 0
        while at < len(transactions):
            lines, then = self.encoder.encode_slice(first_ordinal, transactions, at, _SLICE_ROWS, _SLICE_BYTES)
            await self._gather(lines)
            if then == at:
                await self.add_changes(first_ordinal + at, transactions[at])
                then += 1
            at = then

    async def add_changes(self, ordinal: int | None, transaction: Transaction) -> None:
        """Encode the lines of one transaction, however many."""
        for at in range(0, len(transaction.changes), _SLICE_ROWS):
            changes = transaction.changes[at : at + _SLICE_ROWS]
            await self._gather(self.encoder.encode(ordinal, transaction, changes))

    async def _gather(self, lines: bytes) -> None:
        """Keep the lines of a slice, and pause, so that the loop may serve others."""
        if not lines:
            return
        self._raw.append(lines)
        self._raw_bytes += len(lines)
        await asyncio.sleep(0)
        if self._raw_bytes >= FRAME_BYTES:
            await self.flush()

    @property
    def nbytes_gathered(self) -> int:
        return self.nbytes + self._raw_bytes

    async def flush(self) -> None:
        """Compress what has gathered into a frame."""
        if not self._raw:
            return
        raw, self._raw = self._raw, []
        self.nbytes += self._raw_bytes
        large, self._raw_bytes = self._raw_bytes > _THREAD_BYTES, 0
        self.frames.append(await _off_loop(large, _compress, raw, self.level))

    def describe(self, header: Header) -> Header:
        """The header, completed with what is known of the lines."""
        return replace(
            header,
            changes=self.encoder.lines,
            relations=dict(self.encoder.relations),
            reshaped=tuple(self.encoder.reshaped),
            body_bytes=self.nbytes,
        )


def _compress(raw: list[bytes], level: int) -> bytes:
    return compress_frame(b"".join(raw), level)


async def _off_loop(large: bool, work: Callable[..., _Result], *args: Any) -> _Result:
    return await asyncio.to_thread(work, *args) if large else work(*args)


def _freeze(header: Header, frames: list[bytes], level: int, recipients: Recipients | None) -> tuple[bytes, str]:
    """The bytes of an object, for good, and their SHA-256."""
    if recipients is not None and frames:
        header, frames = recipients.seal(header, frames)
    body = b"".join([compress_header(header, level), *frames])
    return body, sha256(body).hexdigest()


class ArchiveSink:
    """See `cdc.sink.Sink` for the contract. Who made the bucket closes it; the sink does not.

    After `open()` comes `fence()`; without it, or after a write that was cancelled or lost, writing raises Moved.
    """

    def __init__(
        self, bucket: Bucket, settings: ArchiveSettings, *, retry_s: float = _RETRY_S, max_retry_s: float = _MAX_RETRY_S
    ) -> None:
        self._bucket = bucket
        self._segment_bytes = settings.segment_bytes
        self._level = settings.compression_level
        self._recipients = Recipients(settings.recipients) if settings.recipients else None
        self._retry_s = retry_s
        self._max_retry_s = max_retry_s
        self._writer_id = uuid.uuid4().hex
        self._opened = False
        self._tail: Tail | None = None
        self._ours = False
        self._series: _Series | None = None
        self._base_seq = -1
        self._chunks_of: dict[str, int] = {}
        self._writing = asyncio.Lock()
        self._put_failing = False
        self._put_since: float | None = None
        self._hint_task: asyncio.Task[None] | None = None
        self._hinted_seq = -1
        self._hinted_at = time.monotonic()

    @property
    def name(self) -> str:
        return "archive"

    @property
    def bucket(self) -> Bucket:
        """Where the archive lies, for those who read what was written."""
        return self._bucket

    @property
    def tail(self) -> Tail | None:
        """Where the archive stands; None while it is empty. Known once opened."""
        return self._tail

    @property
    def covered_upto(self) -> int:
        """Every transaction with `end_lsn` up to here is in the archive; 0 before the first snapshot or transaction."""
        return 0 if self._tail is None else self._tail.covered_upto

    @property
    def struggling(self) -> bool:
        """Whether a PUT has failed and is being tried again, or takes suspiciously long."""
        since = self._put_since
        return self._put_failing or (since is not None and time.monotonic() - since > _STRUGGLING_S)

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
            _check_identity(self._bucket.url, self._tail.source, source)

    async def read_last_look(self) -> int:
        """`covered_upto` when a writer last looked at the publication: before it covered idle WAL, or at its start.

        The first is looked for among the last segments only, the second by halving: each start raises `writer.epoch`.
        """
        if self._tail is None:
            return 0
        for seq in range(self._tail.seq, max(-1, self._tail.seq - _LOOK_BACK_SEGMENTS), -1):
            header = await self._read_header(seq)
            if header.kind in {"fence", "coverage", "snapshot"}:
                return header.covered_upto
        low, high = -1, self._tail.seq
        while high - low > 1:
            middle = (low + high) // 2
            before = (await self._read_header(middle)).writer.epoch < self._tail.writer_epoch
            low, high = (middle, high) if before else (low, middle)
        return (await self._read_header(high)).covered_upto

    async def find_lost_snapshot(self) -> int | None:
        """The switch point of a fork behind which nothing was written yet, if the last snapshot is in its lost tail."""
        last_seq = -1 if self._tail is None else self._tail.seq
        fork: Fork | None = None
        for seq in range(last_seq, -1, -1):
            header = await self._read_header(seq)
            if fork is None:
                fork = header.fork
                if header.kind not in ("fence", "fork") or seq <= last_seq - _LOOK_BACK_SEGMENTS:
                    return None
            elif header.base is not None and header.base.consistent_lsn > fork.switch_lsn:
                return fork.switch_lsn
            elif header.covered_upto <= fork.switch_lsn:
                return None
        return None

    async def _read_header(self, seq: int) -> Header:
        body = await self._bucket.get(log_key(seq))
        if body is None:
            raise DataError(f"segment {seq} is missing from the archive {self._bucket.url}", hint="cdc archive verify")
        return decode_segment_header(body)

    async def fence(self, source: Source) -> None:
        """Become the writer: put a `fence` segment behind the tail. Any earlier writer meets it and ends.

        Raises Diverged for another history, Unavailable if the bucket is away or others are always faster.
        """
        async with self._writing:
            await self._take("fence", source)

    async def write_fork(self, source: Source, switch_lsn: int, reason: str) -> None:
        """Become the writer in a new epoch, which left the archived one at `switch_lsn`. Takes the place of `fence`."""
        async with self._writing:
            await self._take("fork", source, switch_lsn, reason)

    async def write(self, batch: Batch) -> int:
        """Archive a batch. Pieces of a large transaction go out as parts and move nothing until the last.

        While the bucket is away this waits and tries again, for ever (`struggling` says so). Raises Fenced when another
        writer took over, Moved when the sink must be opened and fenced (again) first.
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
        """Record that nothing published lies between the last transaction and `lsn`; return what is covered."""
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
        """Archive a table's rows as a snapshot read them, in bounded objects, for `write_snapshot` to commit."""
        chunks: list[Chunk] = []
        body = _Body(self._level)
        async for rows in batches:
            await _add_rows(body, relation, rows, consistent_lsn)
            if body.nbytes_gathered >= _CHUNK_BYTES:
                chunks.append(await self._put_chunk(body, relation, consistent_lsn))
                body = _Body(self._level)
        if body.encoder.lines:
            chunks.append(await self._put_chunk(body, relation, consistent_lsn))
        return chunks

    async def write_deleted(
        self, relation: Relation, batches: AsyncIterator[Sequence[Row]], consistent_lsn: int
    ) -> list[Chunk]:
        """Archive the keys of rows that were deleted inside a gap, in bounded objects, for `write_snapshot` to name."""
        chunks: list[Chunk] = []
        body = _Body(self._level)
        async for rows in batches:
            await _add_rows(body, relation, rows, consistent_lsn, DELETE)
            if body.nbytes_gathered >= _CHUNK_BYTES:
                chunks.append(await self._put_chunk(body, relation, consistent_lsn, DELETED))
                body = _Body(self._level)
        if body.encoder.lines:
            chunks.append(await self._put_chunk(body, relation, consistent_lsn, DELETED))
        return chunks

    async def write_base_chunk(self, relation: Relation, rows: Sequence[Row], consistent_lsn: int) -> Chunk:
        """Archive some rows of a snapshot as one object."""
        body = _Body(self._level)
        await _add_rows(body, relation, rows, consistent_lsn)
        return await self._put_chunk(body, relation, consistent_lsn)

    async def write_snapshot(
        self,
        consistent_lsn: int,
        chunks: Sequence[Chunk],
        relations: Sequence[Relation] = (),
        repair: Repair | None = None,
    ) -> int:
        """Commit a snapshot: its chunks now are the state at `consistent_lsn`, of all the tables in `relations`."""
        async with self._writing:
            tail = self._writable()
            seq = self._base_seq if chunks or (repair and repair.deleted) else tail.seq + 1
            await self._append(
                "snapshot",
                covered_upto=max(consistent_lsn, tail.covered_upto),
                relations=shapes_by_name(relations),
                base=Base(seq, consistent_lsn, tuple(chunks), repair),
                open_gap=None,
            )
            return self.covered_upto

    async def write_gap(self, from_lsn: int, reason: str) -> None:
        """Record that changes after `from_lsn` are lost. The next snapshot makes the archive complete again."""
        async with self._writing:
            tail = self._writable()
            self._series = None
            await self._append("gap", gap=Gap(from_lsn, reason, time.time_ns() // 1000), open_gap=tail.seq + 1)
            metrics.gaps.inc()

    async def close(self) -> None:
        """Leave a hint for the next start. Safe at any time, after a cancelled write too."""
        if self._hint_task is not None:
            self._hint_task.cancel()
            await asyncio.gather(self._hint_task, return_exceptions=True)
            self._hint_task = None
        rested = self._hinted_seq < 0 or time.monotonic() - self._hinted_at >= self._bucket.rewrite_pause_s
        if rested and self._ours and self._tail is not None and self._tail.seq != self._hinted_seq:
            await self._write_hint(self._tail.seq)
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
            body, digest = _freeze(header, [], self._level, self._recipients)
            if await self._create_once(log_key(header.seq), body):
                self._ours, self._series, self._base_seq = True, None, -1
                self._advance(header, digest, len(body))
                log.info("fenced", seq=header.seq, writer_epoch=header.writer.epoch, archive=header.archive)
                return
            log.info("fence_overtaken", seq=header.seq)
            self._tail = await check_tail(self._bucket, await find_last_seq(self._bucket) or 0)
            if kind == "fork" and (header.fork is None or self._tail.source.epoch != header.fork.previous):
                raise Unavailable("another service has recorded the fork")
            header = self._first_header(kind, source, switch_lsn, reason)
        raise Unavailable(
            "the archive could not be fenced: other writers were faster each time",
            detail=f"{_FENCE_ATTEMPTS} attempts, the last on segment {header.seq}.",
            hint="look for other services on this archive, and stop them",
        )

    def _first_header(self, kind: Kind, source: Source, switch_lsn: int, reason: str) -> Header:
        tail = self._tail
        if tail is None:
            return Header(
                archive=str(uuid.uuid4()),
                seq=0,
                kind=kind,
                prev_sha256=None,
                writer=Writer(self._writer_id, 1),
                source=source,
            )
        header = Header(
            archive=tail.archive,
            seq=tail.seq + 1,
            kind=kind,
            prev_sha256=tail.sha256,
            writer=Writer(self._writer_id, tail.writer_epoch + 1),
            source=source,
            last_lsn=tail.last_commit_lsn,
            covered_upto=tail.covered_upto,
            first_ordinal=tail.next_ordinal,
            open_gap=tail.open_gap,
        )
        if kind != "fork":
            return header
        fork = Fork(tail.source.epoch, switch_lsn, reason)
        # Up to the switch both epochs are one history, and may be sent again; nothing new ends before it.
        last_lsn, covered_upto = min(tail.last_commit_lsn, switch_lsn), min(tail.covered_upto, switch_lsn)
        return replace(header, fork=fork, last_lsn=last_lsn, covered_upto=covered_upto)

    async def _create_once(self, key: str, body: bytes) -> bool:
        """One attempt; False if other bytes are under the key."""
        metrics.puts.inc()
        try:
            await self._bucket.create(key, body)
        except AlreadyExists:
            return await self._bucket.get(key) == body
        return True

    async def _write_data(self, piece: DataCut) -> None:
        kept = [transaction for transaction in piece.transactions if transaction.changes]
        self._series = None
        if not kept:  # before Postgres 15 transactions without published changes arrive empty
            if piece.end_lsn > self.covered_upto:
                await self._append("coverage", covered_upto=piece.end_lsn)
            return
        body = _Body(self._level)
        await body.add(self._writable().next_ordinal, kept)
        times = [transaction.commit_time_us for transaction in kept]
        await self._append(
            "data",
            body,
            first_lsn=kept[0].commit_lsn,
            last_lsn=kept[-1].commit_lsn,
            covered_upto=max(piece.end_lsn, self.covered_upto),
            transactions=len(kept),
            from_time_us=min(times),
            to_time_us=max(times),
            ends=tuple([transaction.end_lsn - transaction.commit_lsn for transaction in kept]),
        )
        _observe_latency(times[0], times[-1])

    async def _write_part(self, piece: PartCut) -> None:
        first, last = piece.pieces[0], piece.pieces[-1]
        tail, index = self._writable(), self._next_index(first)
        body = _Body(self._level)
        for transaction in piece.pieces:
            await body.add_changes(tail.next_ordinal, transaction)
        await self._append(
            "part",
            body,
            first_lsn=first.commit_lsn,
            last_lsn=last.commit_lsn if last.last else tail.last_commit_lsn,
            covered_upto=max(last.end_lsn, tail.covered_upto) if last.last else tail.covered_upto,
            transactions=1 if last.last else 0,
            from_time_us=first.commit_time_us,
            to_time_us=first.commit_time_us,
            ends=(last.end_lsn - last.commit_lsn,) if last.last else (),
            part=Part(first.commit_lsn, index, last.last, first.first_seq, first.xid),
        )
        next_seq = last.changes[-1].seq + 1 if last.changes else last.first_seq
        if not last.last:
            crash_point("part_written")
        self._series = None if last.last else _Series(first.commit_lsn, index + 1, next_seq)
        if last.last:
            _observe_latency(last.commit_time_us)

    def _next_index(self, piece: Transaction) -> int:
        """0 for a transaction that begins, whatever was begun before; else the number after the series' last part."""
        if piece.first_seq == 0:
            return 0
        series = self._series
        if series is None or (series.commit_lsn, series.next_seq) != (piece.commit_lsn, piece.first_seq):
            raise RuntimeError(f"piece {piece.first_seq} of {format_lsn(piece.commit_lsn)} does not follow: {series}")
        return series.index

    async def _append(self, kind: Kind, body: _Body | None = None, **facts: Any) -> None:
        """Freeze the next segment, and PUT it until it is there."""
        tail = self._writable()
        header = Header(
            archive=tail.archive,
            seq=tail.seq + 1,
            kind=kind,
            prev_sha256=tail.sha256,
            writer=Writer(self._writer_id, tail.writer_epoch),
            source=tail.source,
            first_ordinal=tail.next_ordinal,
            **{
                "last_lsn": tail.last_commit_lsn,
                "covered_upto": tail.covered_upto,
                "open_gap": tail.open_gap,
                **facts,
            },
        )
        frames: list[bytes] = []
        if body is not None:
            await body.flush()
            header, frames = body.describe(header), body.frames
        large = header.body_bytes > _THREAD_BYTES or self._recipients is not None
        data, digest = await _off_loop(large, _freeze, header, frames, self._level, self._recipients)
        self._ours = False  # until the PUT is settled, nobody knows; a cancellation leaves it so
        crash_point("segment_put_unsent")
        crash_soon("segment_put_in_flight")
        await self._put(log_key(header.seq), data)
        crash_point("segment_put_answered")
        self._ours = True
        self._advance(header, digest, len(data))

    def _advance(self, header: Header, digest: str, nbytes: int) -> None:
        self._tail = Tail(
            archive=header.archive,
            seq=header.seq,
            sha256=digest,
            source=header.source,
            last_commit_lsn=header.last_lsn,
            covered_upto=header.covered_upto,
            next_ordinal=header.first_ordinal + header.transactions,
            writer_epoch=header.writer.epoch,
            open_gap=header.open_gap,
        )
        metrics.gap_open.set(header.open_gap is not None)
        metrics.segments.labels(kind=header.kind).inc()
        metrics.segment_bytes.inc(nbytes)
        log.debug("segment_written", seq=header.seq, kind=header.kind, bytes=nbytes, changes=header.changes)
        metrics.archive_seq.set(header.seq)
        self._hint_now_and_then(header.seq)

    async def _put(self, key: str, body: bytes) -> None:
        """PUT these bytes until they are there. Raises Fenced if others are."""
        self._put_since, attempt = time.monotonic(), 0
        try:
            while not await self._settled(key, body):
                attempt += 1
                await asyncio.sleep(self._pause_s(attempt))
        finally:
            self._put_since, self._put_failing = None, False

    async def _settled(self, key: str, body: bytes) -> bool:
        """Try once; False if the bucket is away for now."""
        metrics.puts.inc()
        try:
            await self._bucket.create(key, body)
        except AlreadyExists:
            return await self._compare(key, body)
        except Unavailable as error:
            self._note_failure(key, error)
            return False
        return True

    async def _compare(self, key: str, body: bytes) -> bool:
        try:
            existing = await self._bucket.get(key)
        except Unavailable as error:
            self._note_failure(key, error)
            return False
        if existing == body:
            return True
        if existing is None:
            self._note_failure(key, Unavailable("the bucket says both that the key is taken and that it is not"))
            return False
        raise Fenced(
            f"another writer owns the archive: {key} holds other bytes than ours",
            detail=f"The archive is {self._bucket.url}. This process has changed nothing in it since it lost it.",
            hint="cdc archive ls   # the writer's id is in each header; run only one service per archive",
        )

    def _note_failure(self, key: str, error: Unavailable) -> None:
        metrics.retries.labels(sink=self.name).inc()
        metrics.errors.labels("archive", type(error).__name__).inc()
        event = log.info if self._put_failing else log.warning
        event("put_failed", key=key, error=error.message, detail=error.detail)
        self._put_failing = True

    def _pause_s(self, attempt: int) -> float:
        pause_s = min(self._retry_s * 2 ** min(attempt - 1, 16), self._max_retry_s)
        return float(pause_s) * random.uniform(1.0, 1.25)  # noqa: S311 - spreads attempts, guards nothing

    async def _put_chunk(self, body: _Body, relation: Relation, consistent_lsn: int, below: str = "") -> Chunk:
        async with self._writing:
            tail = self._writable()
            if self._base_seq != tail.seq + 1:
                self._base_seq, self._chunks_of = tail.seq + 1, {}
            table = relation.qualified_name
            number = self._chunks_of.get(below + table, 0)
            self._chunks_of[below + table] = number + 1
            await body.flush()
            header = Header(
                archive=tail.archive,
                seq=self._base_seq,
                kind="base",
                prev_sha256=None,
                writer=Writer(self._writer_id, tail.writer_epoch),
                source=tail.source,
                covered_upto=consistent_lsn,
            )
            header = body.describe(header)
            data, digest = await asyncio.to_thread(_freeze, header, body.frames, self._level, self._recipients)
            key = base_key(self._base_seq, relation, number, below)
            await self._put(key, data)
            crash_point("base_chunk_written")
            return Chunk(key, table, header.changes, len(data), digest)

    def _hint_now_and_then(self, seq: int) -> None:
        due = time.monotonic() - self._hinted_at >= _HINT_INTERVAL_S and seq - self._hinted_seq >= _HINT_SEGMENTS
        if due and (self._hint_task is None or self._hint_task.done()):
            self._hint_task = asyncio.create_task(self._write_hint(seq), name="archive hint")

    async def _write_hint(self, seq: int) -> None:
        self._hinted_seq, self._hinted_at = seq, time.monotonic()
        with contextlib.suppress(CdcError, TimeoutError):  # the next start searches a little longer
            async with asyncio.timeout(_HINT_TIMEOUT_S):
                await self._bucket.replace(HINT_KEY, encode_hint(seq))


def base_key(seq: int, relation: Relation, chunk: int, below: str = "") -> str:
    """Where a chunk of snapshot rows lies; `below` the others: the keys of deleted rows."""
    table = f"{_part_of_key(relation.schema)}.{_part_of_key(relation.name)}"
    return f"{BASE}{seq:016d}/{table}/{below}{chunk:08d}{SUFFIX}"


def _part_of_key(name: str) -> str:
    """An identifier as a part of a key: letters and digits of any script stay, what could break a path does not."""
    quoted = "".join(char if char.isalnum() or char in "_-.$" else quote(char, safe="") for char in name)
    return quoted.replace(".", "%2E")


async def _add_rows(body: _Body, relation: Relation, rows: Sequence[Row], consistent_lsn: int, op: str = READ) -> None:
    first = body.encoder.lines
    new_and_old = [(None, row) if op == DELETE else (row, None) for row in rows]
    changes = [RowChange(op, first + number, relation, new, old) for number, (new, old) in enumerate(new_and_old)]
    await body.add_changes(None, Transaction(0, consistent_lsn, time.time_ns() // 1000, list(changes)))


def _observe_latency(*commit_times_us: int) -> None:
    now_us = time.time_ns() // 1000
    for time_us in commit_times_us:
        metrics.latency_s.labels(sink="archive").observe(max(now_us - time_us, 0) / 1_000_000)


def _check_identity(url: str, archived: Source, source: Source) -> None:
    if archived.epoch.system_identifier != source.epoch.system_identifier:
        raise Diverged(
            f"the archive {url} tells the history of another cluster",
            detail=_contrast("system identifier", archived.epoch.system_identifier, source.epoch.system_identifier),
            hint="set archive.url to an empty prefix for this cluster, or postgres.dsn to the archived one",
        )
    if archived.database != source.database:
        raise Diverged(
            f"the archive {url} tells the history of another database",
            detail=_contrast("database", archived.database, source.database),
            hint="set archive.url to an empty prefix for this database, or postgres.dsn to the archived one",
        )
    if archived.epoch.timeline != source.epoch.timeline:
        raise Diverged(
            f"the source is no longer on the timeline that the archive {url} tells of",
            detail=_contrast("timeline", archived.epoch.timeline, source.epoch.timeline)
            + " A failover or a point-in-time recovery has taken place; positions before and after cannot be compared.",
            hint="set archive.url to an empty prefix, and keep the old archive as the history before the switch",
        )


def _contrast(what: str, archived: object, source: object) -> str:
    return f"The archive's {what} is {archived}, the source's {source}."
