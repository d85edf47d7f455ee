"""`cdc archive verify` verifies the archive incrementally.

It reads only the segments after the last proof, and first checks that the segment named in it is unchanged.

1. read `proof/verify.json`, and the segment that it names. The archive's UUID, the object's SHA-256 and its header's
   positions must be as remembered. Otherwise the proof begins with segment 0, and the report says why;
2. verify what follows, or with `full` everything. Write down the progress now and then, so that a first proof of a
   large archive which is killed does not begin again;
3. remember the result. A failure never moves the proof forward. After a run from segment 0 it takes the proof back to
   what that run had proved itself, so that no later run can pass the damage by.

Only `full` sees bytes that changed before the remembered segment (a disk's rot, a person's hand). One case is always
seen: an archive never shrinks, so one that ends before the remembered segment is a finding.

Two runs at once do not harm each other: each writes down only what it has seen itself. A success never replaces a
failure that came meanwhile, nor a success that reaches further.
"""

import time
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.bucket.unlocked import UnlockedBucket, keys_of
from cdc.archive.format.header import Fork, Gap, Header
from cdc.archive.format.object_key import log_key
from cdc.archive.format.segment import decode_segment_header
from cdc.archive.proof.audit import Audit, AuditReport, Damage, Progress, RecordedGap, verify
from cdc.archive.proof.proofs import VERIFY_KEY, ForkNote, GapNote, Proof, Proved, read_proof, write_proof
from cdc.change import format_time, parse_time
from cdc.errors import CdcError, DataError
from cdc.lsn import format_lsn, parse_lsn
from cdc.position import Epoch

# The pause between two notes. A PUT costs little beside the reads in this time; a killed run loses that much work.
_NOTE_S = 60.0


@dataclass(slots=True)
class VerificationRun:
    """A run: the known contents of the archive after it, and how much of that it read itself.

    - `since`: the remembered proof that it went on from.
    - `whole_since`: when its first segment was read.
    - `restarted`: why it could not go on from a proof that is remembered.
    - `unremembered`: why the result could not be written down.
    """

    report: AuditReport
    since: Proved | None = None
    whole_since: str = ""
    restarted: str = ""
    unremembered: str = ""

    @property
    def segments_read(self) -> int:
        return self.report.segments - (self.since.segments if self.since else 0)


class Prover:
    """Runs one verification of one archive."""

    def __init__(self, bucket: Bucket, *, full: bool = False, note_s: float = _NOTE_S) -> None:
        self._bucket = bucket
        self._full = full
        self._note_s = note_s
        self._command = "cdc archive verify" + (" --full" if full else "")
        self._known: Proof | None = None
        self._good: Proved | None = None
        self._whole_since = ""
        self._noted_s = time.monotonic()

    async def run(self, progress: Progress | None = None) -> VerificationRun:
        """Verify. Raises Unavailable or Invalid if the archive cannot be read; then nothing is remembered."""
        self._known = await read_proof(self._bucket)
        run = VerificationRun(AuditReport())
        audit = None if self._full else await self._go_on(run)  # 1
        self._good = run.since
        self._whole_since = run.whole_since = run.since.whole_since if run.since else _now()
        run.report = await verify(self._bucket, audit=audit, progress=progress, passed=self._note)  # 2
        self._check_not_shrunk(run.report)
        run.unremembered = await self._remember(run.report)  # 3
        return run

    async def _go_on(self, run: VerificationRun) -> Audit | None:
        """Make an audit that goes on where the remembered proof ended; None if there is nothing to go on from."""
        proved = self._known.proved if self._known else None
        if self._known is None or proved is None:
            run.restarted = "" if self._known is None else "the last one found damage"
            if self._known is None and await self._bucket.head(VERIFY_KEY) is not None:
                run.restarted = "the remembered proof cannot be read"
            return None
        body = await self._bucket.get(log_key(proved.seq))
        header = None if body is None else _header_of(body)
        if header is None or body is None:
            run.restarted = f"segment {proved.seq}, up to which it was proved, is missing or damaged"
        elif header.archive != self._known.archive:
            run.restarted = f"the remembered proof is of another archive, {self._known.archive}"
        elif sha256(body).hexdigest() != proved.sha256 or not _fits(proved, header):
            run.restarted = f"segment {proved.seq} is not the one that the remembered proof names"
        elif proved.sealed and isinstance(self._bucket, UnlockedBucket):
            run.restarted = f"{proved.sealed} objects were proved without the key that reads their lines"
        else:
            run.since = proved
            keys = keys_of(self._bucket)
            return Audit.after(_report_of(self._known.archive, proved), header, proved.sha256, keys)
        return None

    def _check_not_shrunk(self, report: AuditReport) -> None:
        known = self._known
        if self._full or known is None or known.proved is None or known.archive != report.archive:
            return
        if report.last_seq < known.proved.seq:
            ended = f"is the last segment, but the archive was proved up to segment {known.proved.seq}"
            report.findings.append(Damage(log_key(report.last_seq), f"{ended} at {known.proved.time}"))
            self._good = known.proved  # otherwise the next run would not know of it

    async def _note(self, report: AuditReport) -> None:
        """Write down how far the archive is whole. A run through a part that was proved before writes nothing."""
        if time.monotonic() - self._noted_s < self._note_s:
            return
        self._noted_s = time.monotonic()
        self._good = _proved_of(report, self._whole_since)
        before = self._known if self._known and self._known.archive == report.archive else None
        if before is not None and before.proved is not None and before.proved.seq >= report.last_seq:
            return
        noted = Proof(
            archive=report.archive,
            ok=before is None or before.ok,
            time=self._good.time if before is None else before.time,
            command=self._command,
            failure="" if before is None else before.failure,
            proved=self._good,
        )
        await self._write(noted)

    async def _remember(self, report: AuditReport) -> str:
        if not report.archive:
            return ""  # no object could be read: there is nothing to prove
        if report.intact:
            self._good = _proved_of(report, self._whole_since)
        proof = Proof(
            archive=report.archive,
            ok=report.intact,
            time=_now(),
            command=self._command,
            failure=_failure(report),
            proved=self._good,
        )
        return await self._write(proof)

    async def _write(self, proof: Proof) -> str:
        """Write a proof down; return why that failed, or ''. The result of the run holds either way."""
        try:
            there = await read_proof(self._bucket)
            if there is not None and there != self._known and _says_more(there, proof):
                return ""
            await write_proof(self._bucket, proof)
        except CdcError as error:
            return error.message
        self._known = proof
        return ""


def _says_more(there: Proof, ours: Proof) -> bool:
    """True if the proof that another run wrote meanwhile must stay."""
    if there.archive != ours.archive or not ours.ok:
        return False
    if not there.ok:
        return True
    return there.proved is not None and ours.proved is not None and there.proved.seq > ours.proved.seq


def _header_of(body: bytes) -> Header | None:
    try:
        return decode_segment_header(body)
    except DataError:
        return None


def _fits(proved: Proved, header: Header) -> bool:
    remembered = (proved.seq, proved.covered_upto, proved.last_commit_lsn, proved.next_ordinal)
    ordinal = header.first_ordinal + header.transactions
    return remembered == (header.seq, format_lsn(header.covered_upto), format_lsn(header.last_lsn), ordinal)


def _failure(report: AuditReport) -> str:
    if report.intact:
        return ""
    first = report.findings[0]
    return f"{len(report.findings)} findings; {first.key}: {first.problem}"


def _now() -> str:
    return format_time(time.time_ns() // 1000)


def _proved_of(report: AuditReport, whole_since: str) -> Proved:
    return Proved(
        seq=report.last_seq,
        sha256=report.last_sha256,
        time=_now(),
        whole_since=whole_since,
        covered_upto=format_lsn(report.covered_upto),
        last_commit_lsn=format_lsn(report.last_commit_lsn),
        next_ordinal=report.next_ordinal,
        segments=report.segments,
        kinds=dict(report.kinds),
        transactions=report.transactions,
        changes=report.changes,
        bytes=report.nbytes,
        base_chunks=report.base_chunks,
        base_rows=report.base_rows,
        abandoned_parts=report.abandoned_parts - report.open_parts,
        uncommitted_chunks=report.uncommitted_chunks,
        sealed=report.sealed,
        gaps=[_gap_note(recorded) for recorded in report.gaps],
        forks=[
            ForkNote(f.previous.system_identifier, f.previous.timeline, format_lsn(f.switch_lsn), f.reason)
            for f in report.forks
        ],
    )


def _gap_note(recorded: RecordedGap) -> GapNote:
    gap = recorded.gap
    found = format_time(gap.time_us) if gap.time_us else None
    closed_lsn = format_lsn(recorded.closed_lsn)
    return GapNote(recorded.seq, format_lsn(gap.from_lsn), gap.reason, found, closed_lsn, recorded.repair)


def _recorded_gap_of(note: GapNote) -> RecordedGap:
    gap = Gap(parse_lsn(note.from_lsn), note.reason, _time_us(note.time))
    return RecordedGap(note.seq, gap, parse_lsn(note.closed_lsn), note.repair)


def _report_of(archive: str, proved: Proved) -> AuditReport:
    """The report of the remembered proof, with its totals."""
    return AuditReport(
        segments=proved.segments,
        transactions=proved.transactions,
        changes=proved.changes,
        nbytes=proved.bytes,
        kinds=Counter(proved.kinds),
        base_chunks=proved.base_chunks,
        base_rows=proved.base_rows,
        abandoned_parts=proved.abandoned_parts,
        uncommitted_chunks=proved.uncommitted_chunks,
        sealed=proved.sealed,
        archive=archive,
        last_seq=proved.seq,
        last_sha256=proved.sha256,
        last_commit_lsn=parse_lsn(proved.last_commit_lsn),
        covered_upto=parse_lsn(proved.covered_upto),
        next_ordinal=proved.next_ordinal,
        gaps=[_recorded_gap_of(note) for note in proved.gaps],
        forks=[
            Fork(Epoch(note.system_identifier, note.timeline), parse_lsn(note.switch_lsn), note.reason)
            for note in proved.forks
        ],
    )


def _time_us(text: str | None) -> int:
    return 0 if text is None else parse_time(text)
