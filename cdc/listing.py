"""`cdc archive ls`, `cat` and `verify`: what is in the archive, segment by segment, as it lies there.

Segments are read one after another from the bucket and printed as they come, so that a large archive needs neither
memory nor patience. Keys are dense: the first that is not there is the end.
"""

import json
from collections.abc import AsyncIterator

from cdc.archive.bucket import Bucket, open_bucket
from cdc.archive.header import Header, encode_header, header_facts
from cdc.archive.segment import decode_segment, decode_segment_header
from cdc.archive.tail import log_key
from cdc.change import format_time
from cdc.config import ArchiveSettings
from cdc.errors import Invalid
from cdc.lsn import format_lsn
from cdc.slots import size

_ROW = "{:>8}  {:<8}  {:>17}  {:>17}  {:>9}  {:>8}  {:>8}  {:<27}  {}"
HEADINGS = _ROW.format("seq", "kind", "last_lsn", "covered_upto", "ordinal", "tx", "changes", "to_time", "size")


async def ls(settings: ArchiveSettings, first: int, last: int | None, *, as_json: bool) -> AsyncIterator[bytes]:
    """A line for each segment; as JSON, its header with `bytes` added."""
    if not as_json:
        yield HEADINGS.encode()
    async for body in _objects(settings, first, last):
        header = decode_segment_header(body)
        line = json.dumps(header_facts(header) | {"bytes": len(body)}) if as_json else _row(header, len(body))
        yield line.encode()


def _row(header: Header, nbytes: int) -> str:
    return _ROW.format(
        header.seq,
        header.kind,
        format_lsn(header.last_lsn),
        format_lsn(header.covered_upto),
        header.first_ordinal,
        header.transactions,
        header.changes,
        "-" if header.to_time_us is None else format_time(header.to_time_us),
        size(nbytes),
    )


async def cat(settings: ArchiveSettings, first: int, last: int | None, *, headers: bool) -> AsyncIterator[bytes]:
    """The lines of the segments, byte for byte."""
    async for body in _objects(settings, first, last):
        segment = decode_segment(body)
        if headers:
            yield encode_header(segment.header)
        for line in segment.lines:
            yield line


async def _objects(settings: ArchiveSettings, first: int, last: int | None) -> AsyncIterator[bytes]:
    bucket = open_bucket(settings)
    try:
        seq = first
        while last is None or seq <= last:
            body = await bucket.get(log_key(seq))
            if body is None:
                break
            yield body
            seq += 1
        if seq == first:
            await _refuse_nothing(bucket, first)
    finally:
        await bucket.close()


async def _refuse_nothing(bucket: Bucket, first: int) -> None:
    if first or await bucket.get(log_key(0)) is None:
        what = f"there is no segment {first} in" if first else "there is no archive yet at"
        raise Invalid(f"{what} {bucket.url}", hint="cdc archive ls; cdc status")
