"""Encodes and decodes a segment: a header line and one change a line, compressed. Pure: bytes in, bytes out.

The object is a run of zstd frames. The first holds the header line alone, the others hold the lines. So the header can
be read without the rest, and `zstdcat | jq` works on the whole. A line is

    {"ord":41,"lsn":"0/1A2B3C8","seq":0,"xid":771,"time":"...","op":"c","table":"public.turns","key":{...},"after":{...}}

with `before` where Postgres sent it and `unchanged` where TOASTed columns did not come. `t` lines (truncate) carry
`cascade` and `restart_identity`, `m` lines (logical message) `prefix`, `content` and `transactional`.

`lines.py` writes the lines; `decode_segment` reads an object back. If the header has `encryption`, the frames after it
are encrypted, and reading them takes a key (encryption.py). Without the key `inspect_segment` reads the header alone.
For any damage decoding raises DataError and nothing else. It never holds more memory than the object's blocks allow.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec
import zstandard

from cdc.archive.format.encryption import NO_KEYS, Keys, no_key_for, sealed_frames, unseal
from cdc.archive.format.header import Header, relation_of
from cdc.archive.format.header_line import decode_header, encode_header
from cdc.change import (
    DELETE,
    READ,
    Change,
    LogicalMessage,
    Relation,
    RowChange,
    Transaction,
    Truncate,
    parse_time,
)
from cdc.errors import DataError
from cdc.lsn import format_lsn, parse_lsn
from cdc.row import decode_text

# A frame of lines: large enough to compress well, small enough that one being compressed does not weigh.
FRAME_BYTES = 1024 * 1024

# zstd never puts more than this into a block (RFC 8878, 3.1.1.2.4), so a frame's blocks bound its content.
_BLOCK_BYTES = 128 * 1024
_MAX_HEADER_BYTES = 64 * 1024 * 1024
_MAX_BODY_BYTES = 8 * 1024 * 1024 * 1024
_CHECKSUM_BYTES = 4
_RLE = 1

# The memory of a decoded change beside its bytes: an object, a list, and a header for each value.
_CHANGE_OVERHEAD_BYTES = 400


def compress_frame(data: bytes, level: int) -> bytes:
    """Compress data to one zstd frame, with its content's size and checksum."""
    return zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True).compress(data)


def compress_header(header: Header, level: int) -> bytes:
    """Make the first frame of an object."""
    return compress_frame(encode_header(header) + b"\n", level)


def encode_segment(header: Header, lines: Sequence[bytes], level: int) -> bytes:
    """Make a whole object from its header and its lines; each line ends in a line break."""
    body = b"".join(lines)
    frames = [compress_frame(body[at : at + FRAME_BYTES], level) for at in range(0, len(body), FRAME_BYTES)]
    return b"".join([compress_header(header, level), *frames])


class Segment:
    """An object read back: its header, and its lines as they lie there (without line breaks)."""

    __slots__ = ("header", "lines")

    def __init__(self, header: Header, lines: list[bytes]) -> None:
        self.header = header
        self.lines = lines

    def transactions(self) -> list[Transaction]:
        """Decode the transactions (or the piece of one) in this segment. Raises DataError."""
        return list(self.iterate())

    def iterate(self) -> Iterator[Transaction]:
        """Decode the transactions one after another. Raises DataError."""
        return _decode_transactions(self.header, self.lines)

    def rows(self) -> list[RowChange]:
        """Decode the rows of a base chunk. Raises DataError."""
        return [change for _, change in _decode_changes(self.header, self.lines) if isinstance(change, RowChange)]


def decode_segment(data: bytes, keys: Keys = NO_KEYS) -> Segment:
    """Read an object and check that its lines are as many and as long as its header says.

    Raises DataError, or Sealed if it is encrypted and none of the keys opens it.
    """
    found = inspect_segment(data, keys)
    if isinstance(found, Segment):
        return found
    assert found.encryption is not None  # noqa: S101 - inspect_segment says so
    raise no_key_for(found, found.encryption)


def inspect_segment(data: bytes, keys: Keys = NO_KEYS) -> Segment | Header:
    """Read an object as `decode_segment` does; only its header if none of the keys opens it. Raises DataError."""
    frames = iter(_frames(data))
    first = next(frames, None)
    line = _decompress_header_frame(first)
    header = decode_header(line)
    if first is not None and header.encryption is not None:
        sealed = sealed_frames(memoryview(data)[len(first.data) :], header, header.encryption)
        key = keys.unwrap(header.encryption)
        if key is None:
            return header
        frames = _frames(unseal(sealed, header, line, key))
    return _decode_lines(header, list(frames))


def _decode_lines(header: Header, frames: "list[_Frame]") -> Segment:
    body = _decompress_body(frames, header.body_bytes)
    lines = body.split(b"\n")
    if lines.pop() or len(lines) != header.changes:
        raise DataError(
            f"segment {header.seq} does not hold the lines that its header counts",
            detail=f"the header counts {header.changes} changes",
        )
    return Segment(header, lines)


def decode_segment_header(data: bytes) -> Header:
    """Decode only the header of an object; the rest is not read. Raises DataError."""
    return decode_header(_decompress_header_frame(next(_frames(data), None)))


class _Frame:
    __slots__ = ("content_bytes", "data")

    def __init__(self, data: memoryview, content_bytes: int) -> None:
        self.data = data
        self.content_bytes = content_bytes


def _frames(data: bytes) -> Iterator[_Frame]:
    """Cut an object into its zstd frames by walking their blocks (RFC 8878, 3.1.1)."""
    view, at = memoryview(data), 0
    while at < len(data):
        try:
            parameters = zstandard.get_frame_parameters(data[at : at + 18])
            header_bytes = zstandard.frame_header_size(data[at : at + 18])
        except (zstandard.ZstdError, ValueError) as error:
            raise DataError("an archive object is damaged: no zstd frame", detail=f"at byte {at}: {error}") from error
        end, blocks = _walk_blocks(data, at + header_bytes)
        end += _CHECKSUM_BYTES if parameters.has_checksum else 0
        if end > len(data) or parameters.content_size > blocks * _BLOCK_BYTES:
            raise DataError("an archive object is damaged: a zstd frame is cut short", detail=f"at byte {at}")
        yield _Frame(view[at:end], parameters.content_size)
        at = end


def _walk_blocks(data: bytes, at: int) -> tuple[int, int]:
    blocks, last = 0, False
    while not last:
        block = int.from_bytes(data[at : at + 3], "little")
        if at + 3 > len(data):
            raise DataError("an archive object is damaged: it ends inside a zstd frame", detail=f"at byte {at}")
        last, size = bool(block & 1), block >> 3
        at += 3 + (1 if (block >> 1) & 3 == _RLE else size)
        blocks += 1
    return at, blocks


def _decompress(frame: _Frame) -> bytes:
    try:
        return zstandard.ZstdDecompressor().decompress(frame.data, allow_extra_data=False)
    except (zstandard.ZstdError, ValueError, MemoryError, OverflowError) as error:
        raise DataError("an archive object is damaged: a zstd frame does not decompress", detail=str(error)) from error


def _decompress_header_frame(frame: _Frame | None) -> bytes:
    if frame is None:
        raise DataError("an archive object is empty")
    if frame.content_bytes > _MAX_HEADER_BYTES:
        raise DataError("an archive object's header is too large", detail=f"{frame.content_bytes} bytes")
    line = _decompress(frame)
    if not line.endswith(b"\n") or b"\n" in line[:-1]:
        raise DataError("an archive object's first frame is not one header line")
    return line[:-1]


def _decompress_body(frames: list[_Frame], body_bytes: int) -> bytes:
    content = sum(frame.content_bytes for frame in frames)
    if content != body_bytes or content > _MAX_BODY_BYTES:
        raise DataError(
            "an archive object's lines are not as long as its header says",
            detail=f"{content} bytes in its frames, {body_bytes} in its header",
        )
    return b"".join([_decompress(frame) for frame in frames])


_NOTHING = msgspec.Raw()


class _Line(msgspec.Struct):
    ord: int | None
    lsn: str
    seq: int
    xid: int
    time: str
    op: Literal["c", "u", "d", "t", "r", "m"]
    table: str = ""
    key: msgspec.Raw = _NOTHING
    after: msgspec.Raw = _NOTHING
    before: msgspec.Raw = _NOTHING
    unchanged: list[str] = []
    cascade: bool = False
    restart_identity: bool = False
    prefix: str = ""
    content: msgspec.Raw = _NOTHING
    transactional: bool = True


_LINE = msgspec.json.Decoder(_Line)


def _decode_changes(header: Header, lines: list[bytes]) -> Iterator[tuple[_Line, Change]]:
    relations = {name: relation_of(shape) for name, shape in header.relations.items()}
    reshaped = {(change.line, change.table): change.relation for change in header.reshaped}
    for number, text in enumerate(lines):
        try:
            line = _LINE.decode(text)
            if reshaped and (shape := reshaped.get((number, line.table))) is not None:
                relations[line.table] = relation_of(shape)
            yield line, _decode_change(line, relations)
        except (msgspec.MsgspecError, ValueError, KeyError, TypeError, RecursionError) as error:
            # msgspec names types and places; other messages may quote the row.
            detail = type(error).__name__ + (f": {error}" if isinstance(error, msgspec.MsgspecError) else "")
            raise DataError(f"line {number} of segment {header.seq} is not a change", detail=detail) from error


def _decode_change(line: _Line, relations: dict[str, Relation]) -> Change:
    if line.op == "m":
        return LogicalMessage(line.seq, line.prefix, decode_text(bytes(line.content)), transactional=line.transactional)
    relation = relations[line.table]
    if line.op == "t":
        return Truncate(line.seq, relation, cascade=line.cascade, restart_identity=line.restart_identity)
    after, before = bytes(line.after), bytes(line.before)
    if bool(after) == (line.op == DELETE) or (line.op == DELETE and not before):
        raise ValueError(f"op {line.op} with the wrong rows")
    decode = relation.codec.decode
    new, old = decode(after) if after else None, decode(before) if before else None
    change = RowChange(line.op, line.seq, relation, new, old)
    # The bytes that were archived, rather than an encoding of their decoding.
    change._after = after or None
    return change


def _decode_transactions(header: Header, lines: list[bytes]) -> Iterator[Transaction]:
    if header.part is not None:
        yield _decode_piece(header, lines)
        return
    gathered: Transaction | None = None
    ordinal, lsn, count = None, "", 0
    for number, (line, change) in enumerate(_decode_changes(header, lines)):
        if line.op == READ:
            raise DataError(f"segment {header.seq} holds a snapshot's row")
        if gathered is None or line.ord != ordinal:
            if gathered is not None:
                yield gathered
            gathered, ordinal, lsn = _begin(header, line, count), line.ord, line.lsn
            count += 1
        if line.lsn != lsn:
            raise DataError(f"ordinal {ordinal} in segment {header.seq} is of two transactions")
        gathered.changes.append(change)
        gathered.nbytes += len(lines[number]) + _CHANGE_OVERHEAD_BYTES
    if gathered is not None:
        yield gathered


def _begin(header: Header, line: _Line, count: int) -> Transaction:
    if count >= len(header.ends):
        raise DataError(f"segment {header.seq} holds more transactions than its header counts")
    if line.ord != header.first_ordinal + count:
        raise DataError(f"segment {header.seq} holds ordinal {line.ord} where {header.first_ordinal + count} belongs")
    commit_lsn, time_us = _identity(header, line)
    return Transaction(line.xid, commit_lsn, time_us, [], end_lsn=commit_lsn + header.ends[count])


def _identity(header: Header, line: _Line) -> tuple[int, int]:
    try:
        return parse_lsn(line.lsn), parse_time(line.time)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"segment {header.seq} holds a line without its place", detail=str(error)) from error


def _decode_piece(header: Header, lines: list[bytes]) -> Transaction:
    part = header.part
    assert part is not None  # noqa: S101 - the caller looked
    if part.last != (len(header.ends) == 1):
        raise DataError(f"segment {header.seq} is a part whose header contradicts itself")
    lsn, changes = format_lsn(part.commit_lsn), []
    for line, change in _decode_changes(header, lines):
        if (line.ord, line.lsn) != (header.first_ordinal, lsn) or line.op == READ:
            raise DataError(f"segment {header.seq} holds a line that is not of its transaction")
        changes.append(change)
    return Transaction(
        part.xid,
        part.commit_lsn,
        header.from_time_us or 0,
        changes,
        first_seq=part.first_seq,
        end_lsn=part.commit_lsn + header.ends[0] if part.last else 0,
        last=part.last,
        nbytes=header.body_bytes + _CHANGE_OVERHEAD_BYTES * len(changes),
    )
