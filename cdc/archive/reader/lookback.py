"""What a starting writer looks up behind the tail, in the headers of the segments before it."""

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.format.header import Fork, Header
from cdc.archive.format.segment import decode_segment_header
from cdc.archive.reader.tail import Tail, read_segment

# How far back a last coverage is looked for, one GET each; a fence behind it is found by halving.
_SEGMENTS = 32


async def read_last_look(bucket: Bucket, tail: Tail) -> int:
    """`covered_upto` when a writer last looked at the publication: before it covered idle WAL, or at its start.

    The first is looked for among the last segments only, the second by halving: each start raises `writer.epoch`.
    """
    for seq in range(tail.seq, max(-1, tail.seq - _SEGMENTS), -1):
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
    """The switch point of a fork behind which nothing was written yet, if the last snapshot is in its lost tail."""
    fork: Fork | None = None
    for seq in range(tail.seq, -1, -1):
        header = await _read_header(bucket, seq)
        if fork is None:
            fork = header.fork
            if header.kind not in ("fence", "fork") or seq <= tail.seq - _SEGMENTS:
                return None
        elif header.base is not None and header.base.consistent_lsn > fork.switch_lsn:
            return fork.switch_lsn
        elif header.covered_upto <= fork.switch_lsn:
            return None
    return None


async def _read_header(bucket: Bucket, seq: int) -> Header:
    return decode_segment_header(await read_segment(bucket, seq))
