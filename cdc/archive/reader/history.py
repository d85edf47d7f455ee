"""Reads the history up to a moment: the snapshot to begin with, the segments that follow, and the breaks in between.

`read_history` walks the log from its start and checks the chain on the way (numbers, archive, SHA-256 of each object).
It stops at the first segment past the moment, and remembers little of each segment. `History.chunks` and
`History.transactions` then read rows and transactions, and check that the bytes have not changed since the walk.

If a gap lies between the snapshot and the moment, the state at the moment is unknown: it is refused, and no gap is
skipped. A fork is crossed. The commits of the old timeline beyond the switch point never happened on the new one: they
are left out. A snapshot of that lost tail is no state of the new timeline, and is refused. Gaps and forks before the
snapshot are only reported, because a snapshot is a whole state by itself.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing
from dataclasses import dataclass, field
from hashlib import sha256

import msgspec

from cdc.archive.bucket.bucket import Bucket, required
from cdc.archive.bucket.read_ahead import read_ahead
from cdc.archive.bucket.unlocked import keys_of
from cdc.archive.format.encryption import Keys
from cdc.archive.format.header import Base, Fork, Header, Part, RelationShape, Source
from cdc.archive.format.object_key import log_key
from cdc.archive.format.parts import Series
from cdc.archive.format.segment import decode_segment, decode_segment_header
from cdc.archive.reader.tail import read_tail
from cdc.change import RowChange, Transaction, format_time, parse_time
from cdc.errors import DataError, Diverged, Invalid
from cdc.lsn import format_lsn
from cdc.position import Epoch


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """The moment to restore to. At most one field is given; none means the archive's end.

    `lsn` is compared with commit LSNs of the history of the archive's last epoch, which has no lost tails. `time_us` is
    compared with commit times (microseconds since 1970). A time before the first commit on a new timeline belongs to
    the old one's history. The restore stops before the first commit past the moment, even if a later one has an
    earlier time.
    """

    lsn: int | None = None
    time_us: int | None = None
    ordinal: int | None = None

    def __str__(self) -> str:
        if self.lsn is not None:
            return format_lsn(self.lsn)
        if self.time_us is not None:
            return format_time(self.time_us)
        return "the archive's end" if self.ordinal is None else f"ordinal {self.ordinal}"

    def is_before(self, ordinal: int, transaction: Transaction) -> bool:
        """True if this transaction is past the moment."""
        if self.lsn is not None:
            return transaction.commit_lsn > self.lsn
        if self.time_us is not None:
            return transaction.commit_time_us > self.time_us
        return self.ordinal is not None and ordinal > self.ordinal


@dataclass(frozen=True, slots=True)
class Break:
    """A gap or a fork in the log. Rows may have changed there without a transaction that tells so.

    `lsn` is where the gap begins, or the fork's switch point. `next_ordinal` is that of the first transaction after it.
    """

    seq: int
    kind: str
    lsn: int
    next_ordinal: int
    reason: str

    def __str__(self) -> str:
        return f"a {self.kind} at {format_lsn(self.lsn)} (segment {self.seq}): {self.reason}"


@dataclass(frozen=True, slots=True)
class Crossing(Break):
    """A fork between the snapshot and the moment.

    Some transactions from `lost_ordinal` to before `next_ordinal` were lost: those that were not committed before
    `lsn`, the switch point.
    """

    lost_ordinal: int


@dataclass(frozen=True, slots=True)
class _CheckedSegment:
    """The remembered facts of a segment on the way. `digest` is the SHA-256 of its bytes."""

    seq: int
    digest: bytes
    first_ordinal: int
    transactions: int
    changes: int
    last_commit_lsn: int
    part: Part | None


@dataclass(slots=True)
class History:
    """The way from a snapshot to a moment.

    - `base_seq`, `first_ordinal`: of the snapshot record.
    - `shapes`: the tables as they were last described before the moment.
    - `skipped`: the breaks before the snapshot; `forks`: the forks after it.
    - `covered_upto`: the position that the walk reached.
    """

    until: RestorePoint
    archive: str
    source: Source
    base: Base
    base_seq: int
    first_ordinal: int
    next_ordinal: int
    covered_upto: int
    shapes: dict[str, RelationShape]
    skipped: list[Break]
    forks: list[Crossing] = field(default_factory=list)
    steps: list[_CheckedSegment] = field(default_factory=list, repr=False)

    @property
    def base_rows(self) -> int:
        return sum(chunk.rows for chunk in self.base.chunks)

    @property
    def changes(self) -> int:
        """The count of changes that follow, at most: the moment may lie within the last segment."""
        return sum(step.changes for step in self.steps)

    def remarks(self) -> list[str]:
        """The remarks on the way for a person, one a line."""
        before = [f"an interruption lies before that snapshot: {one}" for one in self.skipped]
        return before + [f"what was lost there is left out: {fork}" for fork in self.forks]

    def changes_from(self, ordinal: int) -> int:
        """The count of changes from a transaction on, at most."""
        return sum(step.changes for step in self._steps_from(ordinal))

    def _steps_from(self, ordinal: int) -> list[_CheckedSegment]:
        return [
            step for step in self.steps if step.changes and step.first_ordinal + max(1, step.transactions) > ordinal
        ]

    def _switch_lsn_after(self, seq: int) -> int | None:
        """The lowest LSN at which a timeline was left after segment `seq`; None if none was left."""
        return min((fork.lsn for fork in self.forks if fork.seq > seq), default=None)

    async def chunks(self, bucket: Bucket, first: int = 0) -> AsyncIterator[tuple[int, list[RowChange]]]:
        """Yield the snapshot's rows, chunk by chunk with its number, from chunk `first` on.

        Raises DataError, Sealed without the key, Unavailable or Invalid.
        """
        async with aclosing(self.chunk_bodies(bucket, first)) as bodies:
            async for number, body in bodies:
                yield number, decode_segment(body, keys_of(bucket)).rows()

    async def chunk_bodies(
        self, bucket: Bucket, first: int = 0, tables: Collection[str] | None = None
    ) -> AsyncGenerator[tuple[int, bytes]]:
        """Yield the snapshot's objects as they were written, from chunk `first` on; of `tables` only, if given.

        Raises DataError, Unavailable or Invalid.
        """
        wanted = [n for n, chunk in enumerate(self.base.chunks) if n >= first and (not tables or chunk.table in tables)]
        numbers = iter(wanted)
        async with aclosing(read_ahead(bucket, [self.base.chunks[number].key for number in wanted])) as objects:
            async for key, body in objects:
                number = next(numbers)
                if body is None or sha256(body).hexdigest() != self.base.chunks[number].sha256:
                    what = "missing" if body is None else "not as the snapshot record describes it"
                    raise DataError(f"{key} is {what}", hint="cdc archive verify")
                yield number, body

    async def transactions(self, bucket: Bucket, first_ordinal: int) -> AsyncIterator[tuple[int, Transaction]]:
        """Yield transactions (large ones in pieces) with their ordinals, from `first_ordinal` to the moment.

        Raises DataError, Sealed without the key, Unavailable or Invalid.
        """
        steps = self._steps_from(first_ordinal)
        following = iter(steps)
        async with aclosing(read_ahead(bucket, [log_key(step.seq) for step in steps])) as objects:
            async for key, body in objects:
                step = next(following)
                if body is None or sha256(body).digest() != step.digest:
                    raise DataError(f"{key} has changed since the chain was checked", hint="cdc archive verify")
                ordinal, switch_lsn = step.first_ordinal, self._switch_lsn_after(step.seq)
                for transaction in decode_segment(body, keys_of(bucket)).iterate():
                    # A switch point is never within a record: a commit that begins before the point ends before it.
                    if switch_lsn is None or transaction.commit_lsn < switch_lsn:
                        if self.until.is_before(ordinal, transaction):
                            return
                        if ordinal >= first_ordinal and transaction.commit_lsn >= self.base.consistent_lsn:
                            yield ordinal, transaction
                    ordinal += transaction.last


async def read_history(bucket: Bucket, until: RestorePoint) -> History:
    """Walk the log to a moment, and check its chain.

    Raises Invalid if the archive is empty or does not reach the moment, DataError where the chain is broken, Diverged
    where a gap lies between the snapshot and the moment, or the snapshot is of a lost tail; Unavailable.
    """
    tail = await read_tail(bucket)
    if tail is None:
        raise Invalid(f"there is no archive yet at {bucket.url}", hint="cdc status")
    builder = HistoryBuilder(bucket, until, tail.source.epoch)
    # The tail's search has shown that the numbers are dense.
    async with aclosing(read_ahead(bucket, [log_key(seq) for seq in range(tail.seq + 1)])) as objects:
        async for key, body in objects:
            if not await builder.step(required(bucket, key, body)):
                break
        else:
            builder.lead_across()
    return builder.finish()


class HistoryBuilder:
    """Builds a history from one segment after another, until one is past the moment."""

    def __init__(self, bucket: Bucket, until: RestorePoint, epoch: Epoch) -> None:
        self._bucket = bucket
        self._until = until
        self._epoch = epoch
        self._digest: str | None = None
        self._seq = 0
        self._last: Header | None = None
        self._history: History | None = None
        self._series = Series[_CheckedSegment]()
        self._breaks: list[Break] = []
        self._ahead: list[Header] = []

    async def step(self, body: bytes) -> bool:
        """Take the next object; False if it, and everything after it, is past the moment.

        Raises DataError if the chain is broken, Sealed without the key, Unavailable or Invalid.
        """
        header = decode_segment_header(body)
        self._check_chain(header)
        if self._is_behind(header):
            return False
        digest = sha256(body)
        self._digest, self._last, self._seq = digest.hexdigest(), header, header.seq + 1
        if header.gap is not None:
            gap = Break(header.seq, "gap", header.gap.from_lsn, header.first_ordinal, header.gap.reason)
            self._breaks.append(gap)
        self._look_at_fork(header)
        if header.base is not None and await self._reaches(header.base):
            self._begin(header, header.base)
        self._remember(header, digest.digest())
        return True

    def _look_at_fork(self, header: Header) -> None:
        """Note a fork. For a time it counts from the first commit after it: earlier times are the old timeline's."""
        if header.fork is not None:
            self._ahead.append(header)
        if self._until.time_us is None or header.transactions or header.base is not None:
            self.lead_across()

    def lead_across(self) -> None:
        """Cross the forks that waited, because the moment comes after everything so far."""
        ahead, self._ahead = self._ahead, []
        for header in ahead:
            if self._history is not None and header.fork is not None:
                self._cross(self._history, header, header.fork)

    def _cross(self, history: History, header: Header, fork: Fork) -> None:
        switch_lsn, next_ordinal = fork.switch_lsn, header.first_ordinal
        if history.base.consistent_lsn > switch_lsn:
            self._breaks.append(Break(header.seq, "fork", switch_lsn, next_ordinal, fork.reason))
            return
        lost = (step.first_ordinal for step in history.steps if step.changes and step.last_commit_lsn >= switch_lsn)
        lost_ordinal = min(lost, default=next_ordinal)
        history.forks.append(Crossing(header.seq, "fork", switch_lsn, next_ordinal, fork.reason, lost_ordinal))

    def finish(self) -> History:
        """Return the history, after the moment is reached or the archive has ended.

        Raises Invalid if the archive does not reach the moment, Diverged if the state there is unknown.
        """
        until, last, history = self._until, self._last, self._history
        if history is None or last is None:
            raise Invalid(
                f"the archive has no snapshot at or before {until}",
                detail="A state is a snapshot and the transactions after it; the first snapshot here is later.",
                hint="cdc archive ls   # kind snapshot",
            )
        if self._breaks:
            raise Diverged(
                f"the state at {until} is not known: the archive is interrupted before it",
                detail="; ".join(map(str, self._breaks)),
                hint=f"cdc restore --to-ordinal {self._breaks[0].next_ordinal - 1} ...   # the last one before",
            )
        history.next_ordinal = last.first_ordinal + last.transactions
        history.covered_upto = last.covered_upto
        if until.ordinal is not None and until.ordinal >= history.next_ordinal:
            raise _too_late(until, f"Its last transaction has ordinal {history.next_ordinal - 1}.")
        if until.lsn is not None and until.lsn > max(last.covered_upto, history.base.consistent_lsn):
            raise _too_late(until, f"It covers everything up to {format_lsn(last.covered_upto)}.")
        return history

    def _check_chain(self, header: Header) -> None:
        same_archive = self._last is None or self._last.archive == header.archive
        if header.seq != self._seq or header.prev_sha256 != self._digest or not same_archive:
            raise DataError(
                f"segment {self._seq} does not follow from the one before it",
                detail=f"It says that it is segment {header.seq} of archive {header.archive}, after an object whose "
                f"SHA-256 is {header.prev_sha256}; that object's is {self._digest}.",
                hint="cdc archive verify",
            )

    def _is_behind(self, header: Header) -> bool:
        """True if the segments before already reach the moment, or if this one begins past it."""
        until, last = self._until, self._last
        if last is None:
            return False
        if until.ordinal is not None:
            return header.first_ordinal > until.ordinal
        if until.time_us is not None:
            return header.from_time_us is not None and header.from_time_us > until.time_us
        return until.lsn is not None and last.epoch == self._epoch and last.covered_upto > until.lsn

    async def _reaches(self, base: Base) -> bool:
        """True if a snapshot is a state at or before the moment."""
        until = self._until
        if until.lsn is not None:
            # It holds every commit before its LSN, so it is exactly the state after the commit before.
            return base.consistent_lsn <= until.lsn + 1
        if until.time_us is not None and base.chunks:
            body = await self._bucket.get(base.chunks[0].key)
            if body is None:
                raise DataError(f"{base.chunks[0].key} is missing", hint="cdc archive verify")
            return _time_us_of(body, keys_of(self._bucket)) <= until.time_us
        return True

    def _begin(self, header: Header, base: Base) -> None:
        """Begin again with this snapshot, and forget the segments before it."""
        before = self._history
        skipped: list[Break] = [] if before is None else [*before.skipped, *before.forks]
        self._history = History(
            until=self._until,
            archive=header.archive,
            source=header.source,
            base=base,
            base_seq=header.seq,
            first_ordinal=header.first_ordinal,
            next_ordinal=header.first_ordinal,
            covered_upto=header.covered_upto,
            shapes={},
            skipped=[*skipped, *self._breaks],
        )
        self._breaks, self._series = [], Series()

    def _remember(self, header: Header, digest: bytes) -> None:
        if self._history is None:
            return
        self._history.shapes |= header.relations
        self._history.shapes |= {change.table: change.relation for change in header.reshaped}
        step = _CheckedSegment(
            header.seq,
            digest,
            header.first_ordinal,
            header.transactions,
            header.changes,
            header.last_lsn if header.part is None else header.part.commit_lsn,
            header.part,
        )
        self._history.steps += self._series.add(step)


class _Timed(msgspec.Struct):
    time: str


_TIMED = msgspec.json.Decoder(_Timed)


def _time_us_of(chunk: bytes, keys: Keys) -> int:
    """The time when a chunk's rows were read, from its lines: its header does not tell. Raises DataError."""
    try:
        lines = decode_segment(chunk, keys).lines[:1]
        return max((parse_time(_TIMED.decode(line).time) for line in lines), default=0)
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise DataError("a chunk's first line has no time", detail=str(error), hint="cdc archive verify") from None


def _too_late(until: RestorePoint, detail: str) -> Invalid:
    return Invalid(f"the archive ends before {until}", detail=detail, hint="cdc status   # how far the archive is")
