"""The history up to a moment: which snapshot to begin with, which segments follow, and what lies between them.

`read_history` walks the log from its start and checks the chain on the way (numbers, archive, SHA-256 of each object);
it stops where the moment lies behind it. What it remembers of each segment is small. `History.base` and
`History.transactions` then read rows and transactions, and check that the bytes are still those that were walked.

A gap after the snapshot that is begun with means that the state at the moment is unknown: it is refused, and never
stepped over. A fork leads on: what the timeline that was left had committed beyond the switch point never happened on
the one that goes on, and is left out; but a snapshot of that lost tail is no state of it, and is refused. Gaps and
forks before the snapshot are only told, for a snapshot is a whole state by itself.
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
    """The moment to restore to: its last transaction. At most one field is given; none means the archive's end.

    `lsn` is compared with commit LSNs of the history of the archive's last epoch, which has no lost tails; `time_us`
    with commit times (microseconds since 1970): up to the first commit on a new timeline it is the old one's history.
    Everything stops before the first commit that is past the moment, though a later one might have an earlier time.
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
        """Whether this transaction is past the moment."""
        if self.lsn is not None:
            return transaction.commit_lsn > self.lsn
        if self.time_us is not None:
            return transaction.commit_time_us > self.time_us
        return self.ordinal is not None and ordinal > self.ordinal


@dataclass(frozen=True, slots=True)
class Break:
    """A gap or a fork in the log. Rows may have changed there without a transaction that says so.

    `lsn` is where the gap begins, or the fork's switch point; `next_ordinal` that of the first transaction after it.
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
    """A fork that the way leads across. Of the transactions from `lost_ordinal` to before `next_ordinal` those were
    lost that were not committed before `lsn`, the switch point.
    """

    lost_ordinal: int


@dataclass(frozen=True, slots=True)
class _CheckedSegment:
    """A segment on the way, with what is remembered of it. `digest` is the SHA-256 of its bytes."""

    seq: int
    digest: bytes
    first_ordinal: int
    transactions: int
    changes: int
    last_commit_lsn: int
    part: Part | None


@dataclass(slots=True)
class History:
    """The way from a snapshot to a moment. `base_seq` and `first_ordinal` are the snapshot record's.

    `shapes` are the tables as they were last described before the moment. `skipped` are breaks before the
    snapshot, `forks` those after it. `covered_upto` is how far the walk came.
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
        """How many changes follow, at most: the moment may lie within the last segment."""
        return sum(step.changes for step in self.steps)

    def remarks(self) -> list[str]:
        """What a person should know of the way, a line each."""
        before = [f"an interruption lies before that snapshot: {one}" for one in self.skipped]
        return before + [f"what was lost there is left out: {fork}" for fork in self.forks]

    def changes_from(self, ordinal: int) -> int:
        """The same, from a transaction on."""
        return sum(step.changes for step in self._steps_from(ordinal))

    def _steps_from(self, ordinal: int) -> list[_CheckedSegment]:
        return [
            step for step in self.steps if step.changes and step.first_ordinal + max(1, step.transactions) > ordinal
        ]

    def _switch_lsn_after(self, seq: int) -> int | None:
        """Where the timelines that were left since a segment part from the one that goes on; None: it is the same."""
        return min((fork.lsn for fork in self.forks if fork.seq > seq), default=None)

    async def chunks(self, bucket: Bucket, first: int = 0) -> AsyncIterator[tuple[int, list[RowChange]]]:
        """The snapshot's rows, chunk by chunk with its number, from chunk `first` on. Raises DataError."""
        async with aclosing(self.chunk_bodies(bucket, first)) as bodies:
            async for number, body in bodies:
                yield number, decode_segment(body, keys_of(bucket)).rows()

    async def chunk_bodies(
        self, bucket: Bucket, first: int = 0, tables: Collection[str] | None = None
    ) -> AsyncGenerator[tuple[int, bytes]]:
        """The objects that hold those rows (of some tables alone), each as it was written. Raises DataError."""
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
        """Transactions (large ones in pieces) with their ordinals, from one of them to the moment. Raises DataError."""
        steps = self._steps_from(first_ordinal)
        following = iter(steps)
        async with aclosing(read_ahead(bucket, [log_key(step.seq) for step in steps])) as objects:
            async for key, body in objects:
                step = next(following)
                if body is None or sha256(body).digest() != step.digest:
                    raise DataError(f"{key} has changed since the chain was checked", hint="cdc archive verify")
                ordinal, switch_lsn = step.first_ordinal, self._switch_lsn_after(step.seq)
                for transaction in decode_segment(body, keys_of(bucket)).iterate():
                    # A switch point is never within a record: a commit that begins before it ends before it.
                    if switch_lsn is None or transaction.commit_lsn < switch_lsn:
                        if self.until.is_before(ordinal, transaction):
                            return
                        if ordinal >= first_ordinal and transaction.commit_lsn >= self.base.consistent_lsn:
                            yield ordinal, transaction
                    ordinal += transaction.last


async def read_history(bucket: Bucket, until: RestorePoint) -> History:
    """The way to a moment, its chain checked.

    Raises Invalid if the archive is empty or does not reach the moment, DataError where the chain is broken, Diverged
    where a gap lies between the snapshot and the moment, or the snapshot is of a lost tail.
    """
    tail = await read_tail(bucket)
    if tail is None:
        raise Invalid(f"there is no archive yet at {bucket.url}", hint="cdc status")
    builder = HistoryBuilder(bucket, until, tail.source.epoch)
    # One number after another, which the tail's search has shown to be there.
    async with aclosing(read_ahead(bucket, [log_key(seq) for seq in range(tail.seq + 1)])) as objects:
        async for key, body in objects:
            if not await builder.step(required(bucket, key, body)):
                break
        else:
            builder.lead_across()
    return builder.finish()


class HistoryBuilder:
    """Makes a history of one segment after another, until the moment lies behind."""

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
        """Look at the next object; False if everything after it is past the moment."""
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
        """A time before anything was committed behind a fork is a time of the old timeline."""
        if header.fork is not None:
            self._ahead.append(header)
        if self._until.time_us is None or header.transactions or header.base is not None:
            self.lead_across()

    def lead_across(self) -> None:
        """The moment lies behind all that was looked at, so the forks that waited for that count."""
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
        """The way, now that the moment is reached or the archive has ended."""
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
        """Whether all that was looked at before already leads past the moment, or this segment begins past it."""
        until, last = self._until, self._last
        if last is None:
            return False
        if until.ordinal is not None:
            return header.first_ordinal > until.ordinal
        if until.time_us is not None:
            return header.from_time_us is not None and header.from_time_us > until.time_us
        return until.lsn is not None and last.epoch == self._epoch and last.covered_upto > until.lsn

    async def _reaches(self, base: Base) -> bool:
        """Whether a snapshot is a state at or before the moment."""
        until = self._until
        if until.lsn is not None:
            # It holds every commit before its LSN, so it is the very state after the commit before.
            return base.consistent_lsn <= until.lsn + 1
        if until.time_us is not None and base.chunks:
            body = await self._bucket.get(base.chunks[0].key)
            if body is None:
                raise DataError(f"{base.chunks[0].key} is missing", hint="cdc archive verify")
            return _time_us_of(body, keys_of(self._bucket)) <= until.time_us
        return True

    def _begin(self, header: Header, base: Base) -> None:
        """Begin with this snapshot: what lay before it does not matter any more."""
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
    """When a chunk's rows were read: its lines say so, its header does not."""
    try:
        lines = decode_segment(chunk, keys).lines[:1]
        return max((parse_time(_TIMED.decode(line).time) for line in lines), default=0)
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise DataError("a chunk's first line has no time", detail=str(error), hint="cdc archive verify") from None


def _too_late(until: RestorePoint, detail: str) -> Invalid:
    return Invalid(f"the archive ends before {until}", detail=detail, hint="cdc status   # how far the archive is")
