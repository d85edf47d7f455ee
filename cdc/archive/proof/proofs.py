"""Remembers proofs, in objects beside the archive.

The next verification goes on where the last one ended. `cdc status` and the metrics tell when the archive was last
proved, compared and restored.

Each kind of proof has one small object, which only its own command writes:

    proof/verify.json    `cdc archive verify`             the chain is whole up to a segment
    proof/against.json   `cdc archive verify --against`   archive and live tables were equal at an LSN
    proof/drill.json     `cdc drill`                      a restore gave the live tables at an LSN

Each is overwritten, and is a hint like `hint.json`: it may be absent, old, or of another archive. A run that goes on
from it first checks that the segment it names is there. A failure stays written down until a later proof covers it.
"""

import asyncio
from typing import Annotated, Final, Literal, TypeVar

import msgspec
import structlog

from cdc import metrics
from cdc.archive.bucket.bucket import Bucket
from cdc.archive.format.header import Repair
from cdc.change import format_time, parse_time
from cdc.errors import CdcError, Unavailable
from cdc.lsn import format_lsn, parse_lsn

log = structlog.get_logger()

PROOF: Final = "proof/"
VERIFY_KEY: Final = f"{PROOF}verify.json"
AGAINST_KEY: Final = f"{PROOF}against.json"
DRILL_KEY: Final = f"{PROOF}drill.json"

# The pause between two reads. Each is three GETs: 26,000 a month, one cent at R2. Alerts on proofs take hours and days.
WATCH_S = 300.0

# Two commands that end together write the same key, and R2 takes one write a second to it.
_ATTEMPTS = 5

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Position = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-F]{1,8}/[0-9A-F]{1,8}$")]


class GapNote(msgspec.Struct, frozen=True, rename={"from_lsn": "from"}, omit_defaults=True):
    """A gap of the proved part. `closed_lsn` 0/0: no snapshot has closed it yet; `repair` is that snapshot's."""

    seq: _Count
    from_lsn: _Position
    reason: str
    time: str | None
    closed_lsn: _Position
    repair: Repair | None = None


class ForkNote(msgspec.Struct, frozen=True):
    """A fork of the proved part."""

    system_identifier: str
    timeline: _Count
    switch_lsn: _Position
    reason: str


class Proved(msgspec.Struct, frozen=True, kw_only=True):
    """The archive is whole up to and with segment `seq`, whose bytes have this SHA-256.

    The next proof goes on from that segment's header; the totals here are only for reports. `whole_since` is when the
    part from segment 0 on was last read, because a proof that goes on does not read it again.
    """

    seq: _Count
    sha256: str
    time: str
    whole_since: str
    covered_upto: _Position
    last_commit_lsn: _Position
    next_ordinal: _Count
    segments: _Count
    kinds: dict[str, _Count]
    transactions: _Count
    changes: _Count
    bytes: _Count
    base_chunks: _Count
    base_rows: _Count
    abandoned_parts: _Count
    uncommitted_chunks: _Count
    sealed: _Count = 0
    gaps: list[GapNote] = []
    forks: list[ForkNote] = []


class _Ended(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a run: the archive, the time, the command, and in `failure` what it found, for people."""

    cdc: Literal[1] = 1
    archive: str
    ok: bool
    time: str
    command: str
    failure: str = ""


class Proof(_Ended, frozen=True, kw_only=True):
    """The last `cdc archive verify`, and how far the archive is proved."""

    proved: Proved | None = None

    @property
    def held(self) -> tuple[int, int] | None:
        """The time when the proof last held, in microseconds since 1970, and its LSN; None if it never held."""
        return None if self.proved is None else (parse_time(self.proved.time), parse_lsn(self.proved.covered_upto))


class Success(msgspec.Struct, frozen=True, kw_only=True):
    """A comparison without differences. `seconds` and `changes` are those of a drill's restore."""

    time: str
    lsn: _Position
    rows: _Count
    tables: list[str]
    changes: _Count = 0
    seconds: float = 0.0

    @property
    def rows_per_s(self) -> float:
        return (self.rows + self.changes) / max(self.seconds, 0.001)


class RememberedRun(_Ended, frozen=True, kw_only=True):
    """The last comparison or drill, and the last one that succeeded."""

    success: Success | None = None

    @property
    def held(self) -> tuple[int, int] | None:
        """The time of the last success, in microseconds since 1970, and its LSN; None if there was none."""
        return None if self.success is None else (parse_time(self.success.time), parse_lsn(self.success.lsn))


class Proofs(msgspec.Struct, frozen=True):
    """All remembered proofs of an archive."""

    verify: Proof | None = None
    against: RememberedRun | None = None
    drill: RememberedRun | None = None


_Kept = TypeVar("_Kept", Proof, RememberedRun)


async def _read(bucket: Bucket, key: str, kind: type[_Kept]) -> _Kept | None:
    """Read one object; None where there is none, or none that this version understands."""
    body = await bucket.get(key)
    try:
        kept = None if body is None else msgspec.json.decode(body, type=kind)
        _ = None if kept is None else (parse_time(kept.time), kept.held)
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError):
        return None
    return kept


async def read_proof(bucket: Bucket) -> Proof | None:
    """Read what `cdc archive verify` remembers. Raises Unavailable or Invalid."""
    return await _read(bucket, VERIFY_KEY, Proof)


async def read_proofs(bucket: Bucket) -> Proofs:
    """Read all three objects. Raises Unavailable or Invalid."""
    return Proofs(
        await read_proof(bucket),
        await _read(bucket, AGAINST_KEY, RememberedRun),
        await _read(bucket, DRILL_KEY, RememberedRun),
    )


def only_of(proofs: Proofs, archive: str) -> Proofs:
    """Keep the proofs of this archive: the prefix may have held another one before."""
    kept = {name: getattr(proofs, name) for name in Proofs.__struct_fields__}
    return Proofs(**{name: one for name, one in kept.items() if one is not None and one.archive == archive})


async def write_proof(bucket: Bucket, proof: Proof) -> None:
    """Write what `cdc archive verify` remembers. Raises Unavailable or Invalid."""
    await _replace(bucket, VERIFY_KEY, proof)


async def remember_run(
    bucket: Bucket, key: str, *, archive: str, command: str, now_us: int, failure: str = "", success: Success | None
) -> str:
    """Write down the end of a comparison or a drill; without `success` the last success is kept.

    Returns why it could not be written, or ''. The result of the run holds either way.
    """
    try:
        before = await _read(bucket, key, RememberedRun)
        kept = before.success if before is not None and before.archive == archive else None
        run = RememberedRun(
            archive=archive,
            ok=not failure,
            time=format_time(now_us),
            command=command,
            failure=failure,
            success=success or kept,
        )
        await _replace(bucket, key, run)
    except CdcError as error:
        return error.message
    return ""


def success(now_us: int, lsn: int, rows: dict[str, int], *, changes: int = 0, seconds: float = 0.0) -> Success:
    """Make the record of a comparison without differences. `rows` counts the live rows of each table."""
    return Success(
        time=format_time(now_us),
        lsn=format_lsn(lsn),
        rows=sum(rows.values()),
        tables=sorted(rows),
        changes=changes,
        seconds=round(seconds, 3),
    )


async def _replace(bucket: Bucket, key: str, kept: Proof | RememberedRun) -> None:
    body = msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n"
    for attempt in range(_ATTEMPTS):
        try:
            await bucket.replace(key, body)
        except Unavailable:
            if attempt == _ATTEMPTS - 1:
                raise
            await asyncio.sleep(bucket.rewrite_pause_s or 0.1)
        else:
            return


async def watch(bucket: Bucket, archive: str) -> None:
    """Read the objects and set the gauges, again and again until cancelled. If the bucket is away the gauges stay."""
    while True:
        try:
            export(only_of(await read_proofs(bucket), archive))
        except CdcError as error:
            log.info("proofs_unread", reason=error.message)
        await asyncio.sleep(WATCH_S)


def export(proofs: Proofs) -> None:
    """Set the gauges of all proofs that were ever run."""
    for name in Proofs.__struct_fields__:
        kept: Proof | RememberedRun | None = getattr(proofs, name)
        if kept is None:
            continue
        metrics.proof_ok.labels(name).set(kept.ok)
        if kept.held is not None:
            metrics.proof_at_s.labels(name).set(kept.held[0] / 1e6)
            metrics.proof_lsn.labels(name).set(kept.held[1])
    drill = proofs.drill.success if proofs.drill is not None else None
    if drill is not None:
        metrics.drill_s.set(drill.seconds)
        metrics.drill_rows_per_s.set(drill.rows_per_s)
