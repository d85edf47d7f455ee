"""The audit proves that an archive is whole, by reading all of it. `cdc archive verify` and `cdc demo` run it.

It checks each object of the log, in order:

- its bytes decode, and its header's counts are those of its lines;
- it is the segment that its key says, of the same archive, and names the SHA-256 of the one before;
- no number is missing, ordinals are dense, and commit LSNs increase within an epoch;
- series of parts are complete or visibly abandoned, and coverage never goes back.

It checks each snapshot record: every chunk is there, with the recorded bytes, checksum and rows.

If none of the bucket's keys opens an object, everything is proved but its lines. `AuditReport.sealed` counts such
objects.

Damage is collected, not raised: one bad object must not hide the next. Only a bucket that cannot be read raises.

A proof may go on where an earlier one ended (`Audit.after`): the header of the segment there has all that the chain's
check needs of the part before. `cdc/archive/proof/verification.py` remembers which segment that was.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.bucket.read_ahead import read_ahead
from cdc.archive.bucket.unlocked import keys_of
from cdc.archive.format.encryption import NO_KEYS, Keys
from cdc.archive.format.header import Base, Chunk, Fork, Gap, Header, Repair
from cdc.archive.format.object_key import BASE, LOG, log_key, seq_of
from cdc.archive.format.segment import Segment, inspect_segment
from cdc.change import Transaction
from cdc.errors import DataError
from cdc.lsn import format_lsn

Progress = Callable[[int, int], None]
"""Called with the objects read so far, and how many there are."""

Passed = Callable[["AuditReport"], Awaitable[None]]
"""Called after each segment up to which nothing is wrong, a snapshot's chunks included."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A fault that an intact archive does not have."""

    key: str
    problem: str


@dataclass(slots=True)
class RecordedGap:
    """A gap that the archive itself records, which is no damage. `closed_lsn` 0: no snapshot has closed it yet."""

    seq: int
    gap: Gap
    closed_lsn: int = 0
    repair: Repair | None = None


@dataclass(slots=True)
class AuditReport:
    """The contents of an archive, and its faults.

    `open_parts` counts those of `abandoned_parts` at the archive's end: the last of their series may yet come. `sealed`
    counts encrypted objects whose lines were not read.
    """

    segments: int = 0
    transactions: int = 0
    changes: int = 0
    nbytes: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    base_chunks: int = 0
    base_rows: int = 0
    abandoned_parts: int = 0
    open_parts: int = 0
    uncommitted_chunks: int = 0
    sealed: int = 0
    archive: str = ""
    last_seq: int = -1
    last_sha256: str = ""
    last_commit_lsn: int = 0
    covered_upto: int = 0
    next_ordinal: int = 0
    gaps: list[RecordedGap] = field(default_factory=list)
    forks: list[Fork] = field(default_factory=list)
    findings: list[Damage] = field(default_factory=list)

    @property
    def intact(self) -> bool:
        return not self.findings


async def verify(
    bucket: Bucket, *, audit: "Audit | None" = None, progress: Progress | None = None, passed: Passed | None = None
) -> AuditReport:
    """Read the archive from where the audit stands and report. Raises Unavailable or Invalid if it cannot be read."""
    audit = audit or Audit(keys_of(bucket))
    from_start = audit.report.last_seq < 0
    after = "" if from_start else log_key(audit.report.last_seq)
    keys = [key async for key in bucket.list(LOG, after=after)]
    foreign = [key for key in keys if seq_of(key) is None]
    audit.report.findings += [Damage(key, "is not a segment's key") for key in foreign]
    log_keys = [key for key in keys if seq_of(key) is not None]
    done = 0
    async for key, body in read_ahead(bucket, log_keys):
        await asyncio.to_thread(audit.see, key, body)
        await _verify_bases(bucket, audit)
        done += 1
        if progress is not None:
            progress(done, len(log_keys))
        if passed is not None and audit.report.intact:
            await passed(audit.report)
    audit.finish()
    if from_start:
        async for key in bucket.list(BASE):  # left by a backfill that a crash started over
            audit.report.uncommitted_chunks += key not in audit.chunks
    return audit.report


async def _verify_bases(bucket: Bucket, audit: "Audit") -> None:
    while audit.bases:
        base = audit.bases.pop()
        chunks = {chunk.key: chunk for chunk in base.objects}
        audit.chunks |= chunks.keys()
        async for key, body in read_ahead(bucket, list(chunks)):
            await asyncio.to_thread(audit.see_chunk, base, chunks[key], body)


class Audit:
    """Checks one object after another, and notes what does not fit to those before.

    `bases` are snapshots whose chunks are still to be checked. `chunks` are the keys of all chunks that were named.
    """

    def __init__(self, keys: Keys = NO_KEYS) -> None:
        self.report = AuditReport()
        self._keys = keys
        self.bases: list[Base] = []
        self.chunks: set[str] = set()
        self._key = ""
        self._digest: str | None = None
        self._previous: Header | None = None
        self._damaged = False
        self._series: Header | None = None

    @classmethod
    def after(cls, report: AuditReport, header: Header, digest: str, keys: Keys = NO_KEYS) -> "Audit":
        """Make an audit that has proved everything up to this segment, whose bytes have this SHA-256."""
        audit = cls(keys)
        audit.report, audit._previous, audit._digest = report, header, digest
        audit._series = None if header.part is None or header.part.last else header
        return audit

    def see(self, key: str, body: bytes | None) -> None:
        """Check the next object of the log, in the order of keys; None: it is missing."""
        self._key = key
        seq = seq_of(key)
        if body is None or seq is None:
            self._find("vanished while it was being read")
            return
        self.report.segments += 1
        self.report.nbytes += len(body)
        self._check_density(seq)
        self.report.last_seq = seq
        try:
            self._check(seq, inspect_segment(body, self._keys))
            self._damaged = False
        except DataError as error:
            self._find(f"{error.message} ({error.detail})" if error.detail else error.message)
            self._damaged = True
        self._digest = self.report.last_sha256 = sha256(body).hexdigest()

    def finish(self) -> None:
        """Note what is still open after the last object."""
        before = self.report.abandoned_parts
        self._abandon_series()
        self.report.open_parts = self.report.abandoned_parts - before

    def see_chunk(self, base: Base, chunk: Chunk, body: bytes | None) -> None:
        """Check one object of a snapshot's rows; None: it is missing."""
        self._key = chunk.key
        if body is None:
            self._find(f"is missing, though the snapshot at {format_lsn(base.consistent_lsn)} names it")
            return
        self.report.base_chunks += 1
        self.report.nbytes += len(body)
        if (len(body), sha256(body).hexdigest()) != (chunk.bytes, chunk.sha256):
            self._find("does not have the bytes that the snapshot record names")
        try:
            found = inspect_segment(body, self._keys)
            if isinstance(found, Header):
                self._see_sealed_chunk(base, chunk, found)
                return
            rows = found.rows()
        except DataError as error:
            self._find(f"{error.message} ({error.detail})" if error.detail else error.message)
            return
        self.report.base_rows += len(rows) if chunk in base.chunks else 0
        self._expect(found.header.kind == "base", "is not a chunk of a snapshot")
        self._expect(len(rows) == chunk.rows, f"holds {len(rows)} rows, the snapshot record says {chunk.rows}")
        same_table = {row.relation.qualified_name for row in rows} <= {chunk.table}
        self._expect(same_table, f"holds rows of other tables than {chunk.table}")

    def _see_sealed_chunk(self, base: Base, chunk: Chunk, header: Header) -> None:
        """Check a chunk without its key, as far as the header tells."""
        self.report.sealed += 1
        self.report.base_rows += header.changes if chunk in base.chunks else 0
        self._expect(header.kind == "base", "is not a chunk of a snapshot")
        self._expect(header.changes == chunk.rows, f"counts {header.changes} rows, the record says {chunk.rows}")
        self._expect(header.relations.keys() <= {chunk.table}, f"holds rows of other tables than {chunk.table}")

    def _find(self, problem: str) -> None:
        self.report.findings.append(Damage(self._key, problem))

    def _expect(self, true: bool, problem: str) -> None:
        if not true:
            self._find(problem)

    def _check_density(self, seq: int) -> None:
        expected = self.report.last_seq + 1
        if seq != expected:
            missing = f"segment {expected} is" if seq == expected + 1 else f"segments {expected} to {seq - 1} are"
            self._find(f"{missing} missing before this one")
            self._digest, self._damaged = None, True

    def _check(self, seq: int, found: Segment | Header) -> None:
        header = found.header if isinstance(found, Segment) else found
        self._expect(header.seq == seq, f"says that it is segment {header.seq}")
        if self._digest is not None or seq == 0:
            self._expect(header.prev_sha256 == self._digest, "does not name the SHA-256 of the segment before it")
        if self._previous is not None:
            self._check_succession(self._previous, header)
        transactions = list(found.iterate()) if isinstance(found, Segment) else None
        self._check_series(header)
        for problem in _check_kind(header):
            self._find(problem)
        if transactions is None:
            self.report.sealed += 1
        else:
            for problem in _check_lines(header, transactions):
                self._find(problem)
            self._check_order(transactions)
        self._check_gap(header)
        self._count(header)

    def _check_succession(self, previous: Header, header: Header) -> None:
        self._expect(header.archive == previous.archive, "is of another archive than the segment before it")
        takes_over = header.kind in {"fence", "fork"}
        if not self._damaged:
            expected = previous.writer.epoch + takes_over
            self._expect(header.writer.epoch == expected, f"is of writer {header.writer.epoch}, not {expected}")
            ordinal = previous.first_ordinal + previous.transactions
            self._expect(header.first_ordinal == ordinal, f"begins at ordinal {header.first_ordinal}, not {ordinal}")
        if header.fork is not None:
            self._expect(header.fork.previous == previous.epoch, "forks from another epoch than the one before it")
            self._expect(header.covered_upto <= header.fork.switch_lsn, "covers more than the histories have in common")
            return
        self._expect(header.epoch == previous.epoch, "is of another epoch, without a fork record")
        self._expect(header.source.database == previous.source.database, "is of another database")
        self._expect(header.covered_upto >= previous.covered_upto, "covers less than the segment before it")
        self._expect(header.last_lsn >= previous.last_lsn, "goes back in commit order")

    def _check_series(self, header: Header) -> None:
        part, series = header.part, self._series
        if part is None or part.index == 0:
            self._abandon_series()
        elif not self._damaged:
            follows = (
                series is not None
                and series.part is not None
                and (series.part.commit_lsn, series.part.index + 1) == (part.commit_lsn, part.index)
                and series.part.first_seq + series.changes == part.first_seq
            )
            self._expect(follows, f"is part {part.index} of a transaction whose parts before it are not there")
        self._series = None if part is None or part.last else header

    def _abandon_series(self) -> None:
        if self._series is not None and self._series.part is not None:
            self.report.abandoned_parts += self._series.part.index + 1
        self._series = None

    def _check_order(self, transactions: Sequence[Transaction]) -> None:
        previous = self._previous
        last = previous.last_lsn if previous is not None else 0
        for transaction in transactions:
            if transaction.commit_lsn <= last:
                self._find(f"holds {format_lsn(transaction.commit_lsn)} after {format_lsn(last)}")
            last = max(last, transaction.commit_lsn)

    def _check_gap(self, header: Header) -> None:
        """Check that the headers name an open gap until a snapshot closes it, and that no transaction lies between."""
        if header.gap is not None:
            self.report.gaps.append(RecordedGap(header.seq, header.gap))
        before = None if self._previous is None else self._previous.open_gap
        expected = header.seq if header.kind == "gap" else None if header.kind == "snapshot" else before
        if not self._damaged:
            self._expect(header.open_gap == expected, f"says that the open gap is {header.open_gap}, not {expected}")
        if header.open_gap is not None and header.kind in {"data", "part"}:
            self._find(f"holds changes, though no snapshot has closed the gap of segment {header.open_gap} yet")
        if header.base is not None:
            for gap in self.report.gaps:
                gap.repair = gap.repair if gap.closed_lsn else header.base.repair
                gap.closed_lsn = gap.closed_lsn or header.base.consistent_lsn

    def _count(self, header: Header) -> None:
        report = self.report
        report.archive, report.last_commit_lsn = header.archive, header.last_lsn
        report.covered_upto = header.covered_upto
        report.next_ordinal = header.first_ordinal + header.transactions
        report.transactions += header.transactions
        report.changes += header.changes
        report.kinds[header.kind] += 1
        report.forks += [] if header.fork is None else [header.fork]
        self.bases += [] if header.base is None else [header.base]
        self._previous = header


def _check_lines(header: Header, transactions: Sequence[Transaction]) -> Iterator[str]:
    """Compare a header with its lines. Yields each fault."""
    complete = [transaction for transaction in transactions if transaction.last]
    if len(complete) != header.transactions:
        yield f"holds {len(complete)} complete transactions, its header says {header.transactions}"
    if len(complete) != len(header.ends):
        yield f"holds {len(complete)} complete transactions, its header has ends of {len(header.ends)}"
    if transactions and header.first_lsn != transactions[0].commit_lsn:
        yield "begins with another transaction than its header says"
    if complete and header.last_lsn != complete[-1].commit_lsn:
        yield "ends with another transaction than its header says"
    if complete and header.covered_upto < max(transaction.end_lsn for transaction in complete):
        yield "holds a transaction past what its header covers"
    times = [transaction.commit_time_us for transaction in transactions]
    if times and (min(times), max(times)) != (header.from_time_us, header.to_time_us):
        yield "holds other commit times than its header says"
    for transaction in transactions:
        if [change.seq for change in transaction.changes] != _dense(transaction):
            yield f"holds the changes of {format_lsn(transaction.commit_lsn)} out of order or not all of them"


def _dense(transaction: Transaction) -> list[int]:
    return list(range(transaction.first_seq, transaction.first_seq + len(transaction.changes)))


def _check_kind(header: Header) -> Iterator[str]:
    if header.kind not in {"data", "part"} and header.changes:
        yield f"holds changes, though it is a {header.kind} segment"
    wants = {"part": header.part, "snapshot": header.base, "gap": header.gap, "fork": header.fork}
    for kind, record in wants.items():
        if (header.kind == kind) != (record is not None):
            yield f"is a {header.kind} segment, and what belongs to a {kind} is {'there' if record else 'missing'}"
    if header.kind == "base":
        yield "is a chunk of a snapshot, in the log"
