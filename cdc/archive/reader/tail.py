"""Finds and checks the archive's last segment, and checks whose history the archive tells.

Keys are dense: segment n exists only if all before it do. So the last one is found by asking for single keys: first
from where the hint points (which is never trusted), then in doubling steps, then by halving. The tail's header has all
that a writer needs, because every header does. A starting writer needs a few more facts, from the headers before it.
"""

from dataclasses import dataclass
from hashlib import sha256

from cdc.archive.bucket.bucket import Bucket, read_object
from cdc.archive.bucket.unlocked import keys_of
from cdc.archive.format.header import Fork, Header, Source
from cdc.archive.format.object_key import LOG, log_key, seq_of
from cdc.archive.format.segment import Segment, decode_segment_header, inspect_segment
from cdc.archive.reader.hint import read_hint
from cdc.errors import DataError, Diverged

# The last segments that are searched for a coverage, one GET each; a fence before them is found by halving.
_LOOKED_BACK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """The end of an archive. `last_commit_lsn` and `covered_upto` belong to `source.epoch`; 0 means nothing yet.

    `covered_upto` is 0 until the backfill's snapshot record (or a first transaction) is in the archive. `open_gap` is
    the number of a `gap` segment that waits for its snapshot.
    """

    archive: str
    seq: int
    sha256: str
    source: Source
    last_commit_lsn: int
    covered_upto: int
    next_ordinal: int
    writer_epoch: int
    open_gap: int | None = None


def tail_of(header: Header, digest: str) -> Tail:
    """The tail of an archive whose last segment has this header, and bytes with this SHA-256."""
    return Tail(
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


async def read_tail(bucket: Bucket) -> Tail | None:
    """Find the last segment and check it against the one before. None for an empty archive.

    Raises DataError if the tail is damaged, is not what its key says, or does not follow from its predecessor;
    Unavailable or Invalid if the bucket cannot be read.
    """
    seq = await find_last_seq(bucket)
    return None if seq is None else await check_tail(bucket, seq)


async def check_tail(bucket: Bucket, seq: int) -> Tail:
    """Read segment `seq`, check it against the one before, and return the tail that it makes. Raises as `read_tail`."""
    body, previous = await read_segment(bucket, seq), None if seq == 0 else await read_segment(bucket, seq - 1)
    found = inspect_segment(body, keys_of(bucket))
    header = found.header if isinstance(found, Segment) else found
    expected = None if previous is None else sha256(previous).hexdigest()
    if header.seq != seq or header.prev_sha256 != expected:
        raise DataError(
            f"the archive's last segment {seq} does not follow from the one before it",
            detail=f"It is numbered {header.seq} and names {header.prev_sha256} as the SHA-256 of its "
            f"predecessor, which is {expected}.",
            hint="cdc archive verify",
        )
    return tail_of(header, sha256(body).hexdigest())


async def read_segment(bucket: Bucket, seq: int) -> bytes:
    """Read the bytes of segment `seq`. Raises DataError if it is not there, Unavailable or Invalid."""
    return await read_object(bucket, log_key(seq))


async def find_last_seq(bucket: Bucket) -> int | None:
    """Find the number of the last segment; None for an empty archive.

    Raises DataError for a hole, Unavailable or Invalid.
    """
    hinted = await read_hint(bucket)
    start = hinted if hinted is not None and await _exists(bucket, hinted) else -1
    while True:
        last = await _probe_forward(bucket, start)
        beyond = await _first_beyond(bucket, last)
        if beyond is None:
            return last if last >= 0 else None
        if not await _exists(bucket, last + 1):
            raise DataError(
                f"segment {last + 1} is missing from the archive, though {beyond} is there",
                detail=f"The archive is {bucket.url}. A writer that went on here would tell two histories in one log.",
                hint="cdc archive verify",
            )
        start = last + 1  # another writer was at work meanwhile


async def _probe_forward(bucket: Bucket, start: int) -> int:
    """Find the last segment of the dense run that `start` is in (-1: nothing is known to exist)."""
    low, step = start, 1
    while await _exists(bucket, low + step):
        low, step = low + step, step * 2
    high = low + step
    while high - low > 1:
        middle = (low + high) // 2
        if await _exists(bucket, middle):
            low = middle
        else:
            high = middle
    return low


async def _first_beyond(bucket: Bucket, seq: int) -> str | None:
    """Find a log key after `seq`; None if there is none. One listing at start tells a hole from the end."""
    async for key in bucket.list(LOG, after=log_key(seq) if seq >= 0 else LOG):
        if seq_of(key) is not None:
            return key
    return None


async def _exists(bucket: Bucket, seq: int) -> bool:
    return await bucket.head(log_key(seq)) is not None


async def read_last_look(bucket: Bucket, tail: Tail) -> int:
    """Read `covered_upto` of the time when a writer last looked at the publication.

    A writer looks before it covers idle WAL, and at its start. The first is searched among the last segments only, the
    second by halving: each start raises `writer.epoch`. Raises DataError, Unavailable or Invalid.
    """
    for seq in range(tail.seq, max(-1, tail.seq - _LOOKED_BACK), -1):
        header = await _read_header(bucket, seq)
        if header.kind in {"fence", "coverage", "snapshot"}:
            return header.covered_upto
    low, high = -1, tail.seq
    while high - low > 1:
        middle = (low + high) // 2
        before = (await _read_header(bucket, middle)).writer.epoch < tail.writer_epoch
        low, high = (middle, high) if before else (low, middle)
    return (await _read_header(bucket, high)).covered_upto


async def find_lost_snapshot(bucket: Bucket, tail: Tail) -> int | None:
    """Find the switch point of a fork at the tail whose lost tail holds the last snapshot; None if there is none.

    Nothing was written after such a fork yet. Raises DataError, Unavailable or Invalid.
    """
    fork: Fork | None = None
    for seq in range(tail.seq, -1, -1):
        header = await _read_header(bucket, seq)
        if fork is None:
            fork = header.fork
            if header.kind not in ("fence", "fork") or seq <= tail.seq - _LOOKED_BACK:
                return None
        elif header.base is not None and header.base.consistent_lsn > fork.switch_lsn:
            return fork.switch_lsn
        elif header.covered_upto <= fork.switch_lsn:
            return None
    return None


async def _read_header(bucket: Bucket, seq: int) -> Header:
    return decode_segment_header(await read_segment(bucket, seq))


def check_source(url: str, archived: Source, source: Source) -> None:
    """Raise Diverged unless `source` is the database, on the timeline, that the archive at `url` tells of."""
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
    if source.epoch.timeline < archived.epoch.timeline:
        raise Diverged(
            f"the source is on a timeline that the archive {url} has left behind",
            detail=_contrast("timeline", archived.epoch.timeline, source.epoch.timeline)
            + " This is a primary of before the failover that the archive went along with, or a backup of it.",
            hint="set postgres.dsn to the primary of now; if this is the one, set archive.url to an empty prefix",
        )
    if source.epoch.timeline > archived.epoch.timeline:
        raise Diverged(
            f"the source is no longer on the timeline that the archive {url} tells of",
            detail=_contrast("timeline", archived.epoch.timeline, source.epoch.timeline)
            + " A failover or a point-in-time recovery has taken place; positions before and after cannot be compared.",
            hint="set archive.url to an empty prefix, and keep the old archive as the history before the switch",
        )


def _contrast(what: str, archived: object, source: object) -> str:
    return f"The archive's {what} is {archived}, the source's {source}."
