"""Prints the archive segment by segment, for `cdc archive ls` and `cat`, and runs its proof."""

import json
from collections.abc import AsyncIterator

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.bucket.opening import open_bucket
from cdc.archive.format.header_line import header_facts
from cdc.archive.format.object_key import log_key
from cdc.archive.proof.verification import Prover, VerificationRun
from cdc.archive.reader.reader import SegmentFacts, cat_lines, list_segments
from cdc.change import format_time
from cdc.config import ArchiveSettings
from cdc.errors import Invalid
from cdc.lsn import format_lsn
from cdc.words import size

# Fixed widths, because segments are printed as they are read: a large archive needs no memory.
_ROW = "{:>8}  {:<8}  {:>17}  {:>17}  {:>9}  {:>8}  {:>8}  {:<27}  {}"
_HEADINGS = _ROW.format("seq", "kind", "last_lsn", "covered_upto", "ordinal", "tx", "changes", "to_time", "size")


async def listed(settings: ArchiveSettings, first: int, last: int | None, *, as_json: bool) -> AsyncIterator[bytes]:
    """Yield a line for each segment; as JSON, its header with key, size and checksum.

    Raises Invalid if there is nothing to list, Unavailable or DataError.
    """
    bucket = open_bucket(settings)
    try:
        await _check_there(bucket, first)
        if not as_json:
            yield _HEADINGS.encode()
        async for facts in list_segments(bucket, first, last):
            yield (_json(facts) if as_json else _row(facts)).encode()
    finally:
        await bucket.close()


def _row(facts: SegmentFacts) -> str:
    header = facts.header
    return _ROW.format(
        header.seq,
        header.kind,
        format_lsn(header.last_lsn),
        format_lsn(header.covered_upto),
        header.first_ordinal,
        header.transactions,
        header.changes,
        "-" if header.to_time_us is None else format_time(header.to_time_us),
        size(facts.nbytes),
    )


def _json(facts: SegmentFacts) -> str:
    own = {"key": facts.key, "bytes": facts.nbytes, "sha256": facts.sha256}
    return json.dumps(header_facts(facts.header) | own, separators=(",", ":"))


async def changes(
    settings: ArchiveSettings, first: int, last: int | None, *, table: str | None
) -> AsyncIterator[bytes]:
    """Yield the changes, byte for byte as they were archived.

    Raises Invalid if there is nothing to print, Unavailable or DataError.
    """
    bucket = open_bucket(settings)
    try:
        await _check_there(bucket, first)
        async for line in cat_lines(bucket, first, last, table=table):
            yield line
    finally:
        await bucket.close()


async def prove(settings: ArchiveSettings, *, full: bool) -> VerificationRun:
    """Verify what is new, or everything. Raises Unavailable or Invalid if the archive cannot be read or is absent."""
    bucket = open_bucket(settings)
    try:
        await _check_there(bucket, 0)
        return await Prover(bucket, full=full).run()
    finally:
        await bucket.close()


async def _check_there(bucket: Bucket, first: int) -> None:
    if await bucket.head(log_key(first)) is None:
        what = f"there is no segment {first} in {bucket.url}" if first else f"there is no archive yet at {bucket.url}"
        raise Invalid(what, hint="cdc archive ls; cdc status" if first else "cdc run; cdc status")
