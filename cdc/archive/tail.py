"""Where an archive stands: its keys, and how its last segment is found and checked.

Keys are dense: segment n exists only if all before it do. So the last one is found by asking for single keys, first
from where the hint points (which is never trusted), then in doubling steps, then by halving. The tail's header says
all that a writer must know, because every header does.
"""

from dataclasses import dataclass
from hashlib import sha256

import msgspec

from cdc.archive.bucket import Bucket
from cdc.archive.header import Header, Source
from cdc.archive.segment import Segment, inspect_segment
from cdc.archive.unlocked import keys_of
from cdc.errors import DataError

LOG = "log/"
BASE = "base/"
HINT_KEY = "hint.json"
SUFFIX = ".ndjson.zst"


def log_key(seq: int) -> str:
    return f"{LOG}{seq:016d}{SUFFIX}"


def seq_of(key: str) -> int | None:
    """The segment number in a log key; None if it is not one."""
    digits = key.removeprefix(LOG).removesuffix(SUFFIX)
    return int(digits) if digits.isdecimal() and log_key(int(digits)) == key else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """The end of an archive. `last_commit_lsn` and `covered_upto` are of `source.epoch`; 0 means nothing yet.

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
    """What an archive is when this segment, whose bytes have this SHA-256, is its last."""
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

    Raises DataError if the tail is damaged, is not what its key says, or does not follow from its predecessor.
    """
    seq = await find_last_seq(bucket)
    return None if seq is None else await check_tail(bucket, seq)


async def check_tail(bucket: Bucket, seq: int) -> Tail:
    """Read segment `seq`, check it against the one before, and say where the archive stands after it."""
    body, previous = await _get(bucket, seq), None if seq == 0 else await _get(bucket, seq - 1)
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


async def _get(bucket: Bucket, seq: int) -> bytes:
    body = await bucket.get(log_key(seq))
    if body is None:
        raise DataError(f"segment {seq} is missing from the archive {bucket.url}", hint="cdc archive verify")
    return body


async def find_last_seq(bucket: Bucket) -> int | None:
    """The number of the last segment, or None for an empty archive. Raises DataError for a hole."""
    hinted = await _read_hint(bucket)
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
    """The last segment of the dense run that `start` is in (-1: nothing is known to exist)."""
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
    """Any log key after `seq`: one listing at start, lest a hole be taken for the end."""
    async for key in bucket.list(LOG, after=log_key(seq) if seq >= 0 else LOG):
        if seq_of(key) is not None:
            return key
    return None


async def _exists(bucket: Bucket, seq: int) -> bool:
    return await bucket.head(log_key(seq)) is not None


class _Hint(msgspec.Struct):
    seq: int


def encode_hint(seq: int) -> bytes:
    return msgspec.json.encode(_Hint(seq)) + b"\n"


async def _read_hint(bucket: Bucket) -> int | None:
    body = await bucket.get(HINT_KEY)
    try:
        seq = None if body is None else msgspec.json.decode(body, type=_Hint).seq
    except (msgspec.MsgspecError, ValueError):
        return None
    return seq if seq is not None and 0 <= seq < 10**16 else None
