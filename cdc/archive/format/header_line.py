"""Encodes the header as the first line of an object, in JSON, and decodes it.

Positions and times are printed for people (`16/B374D848`, `2026-11-22T18:07:13.802498Z`). The names of the fields are a
public contract (`docs/archive-format.md`). Fields that a later version adds are ignored. Anything else that does not
fit raises DataError.
"""

from typing import Annotated, Any, Final, Literal

import msgspec

from cdc.archive.format.header import (
    Base,
    Chunk,
    Count,
    Encryption,
    Fork,
    Gap,
    Header,
    Kind,
    Part,
    RelationShape,
    Repair,
    Reshaped,
    Source,
    Writer,
)
from cdc.change import format_time, parse_time
from cdc.errors import DataError
from cdc.lsn import format_lsn, parse_lsn
from cdc.position import Epoch

FORMAT_VERSION: Final = 1

_Position = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-F]{1,8}/[0-9A-F]{1,8}$")]


class _Source(msgspec.Struct, omit_defaults=True):
    system_identifier: str
    timeline: Count
    database: str
    slot: str
    publication: str
    server_version: str
    server_encoding: str
    settings: dict[str, str]
    tables: dict[str, int] = {}


class _Part(msgspec.Struct):
    commit_lsn: _Position
    index: Count
    last: bool
    first_seq: Count
    xid: Count


class _Base(msgspec.Struct, omit_defaults=True):
    seq: Count
    consistent_lsn: _Position
    chunks: tuple[Chunk, ...]
    repair: Repair | None = None


class _Gap(msgspec.Struct, rename={"from_lsn": "from"}, omit_defaults=True):
    from_lsn: _Position
    reason: str
    time: str | None = None


class _Fork(msgspec.Struct):
    system_identifier: str
    timeline: Count
    switch_lsn: _Position
    reason: str


class _Header(msgspec.Struct, omit_defaults=True):
    cdc: Literal[1]
    archive: str
    seq: Count
    kind: Kind
    prev_sha256: str | None
    writer: Writer
    source: _Source
    first_lsn: _Position | None
    last_lsn: _Position
    covered_upto: _Position
    first_ordinal: Count
    transactions: Count
    changes: Count
    from_time: str | None
    to_time: str | None
    relations: dict[str, RelationShape]
    body_bytes: Count
    ends: list[Count] = []
    reshaped: list[Reshaped] = []
    part: _Part | None = None
    base: _Base | None = None
    gap: _Gap | None = None
    fork: _Fork | None = None
    open_gap: Count | None = None
    encryption: Encryption | None = None


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(_Header)


def encode_header(header: Header) -> bytes:
    """Encode the header as one line of JSON, without its line break."""
    source = header.source
    return _ENCODER.encode(
        _Header(
            cdc=FORMAT_VERSION,
            archive=header.archive,
            seq=header.seq,
            kind=header.kind,
            prev_sha256=header.prev_sha256,
            writer=header.writer,
            source=_Source(
                source.epoch.system_identifier,
                source.epoch.timeline,
                source.database,
                source.slot,
                source.publication,
                source.server_version,
                source.server_encoding,
                source.settings,
                source.tables,
            ),
            first_lsn=None if header.first_lsn is None else format_lsn(header.first_lsn),
            last_lsn=format_lsn(header.last_lsn),
            covered_upto=format_lsn(header.covered_upto),
            first_ordinal=header.first_ordinal,
            transactions=header.transactions,
            changes=header.changes,
            from_time=_print_time(header.from_time_us),
            to_time=_print_time(header.to_time_us),
            relations=header.relations,
            body_bytes=header.body_bytes,
            ends=list(header.ends),
            reshaped=list(header.reshaped),
            part=_encode_part(header.part),
            base=_encode_base(header.base),
            gap=_encode_gap(header.gap),
            fork=_encode_fork(header.fork),
            open_gap=header.open_gap,
            encryption=header.encryption,
        )
    )


def decode_header(line: bytes) -> Header:
    """Decode the header line. Raises DataError for anything that `encode_header` cannot have written."""
    try:
        return _from_wire(_DECODER.decode(line))
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(
            "the header of an archive object is not as this program writes it", detail=str(error)
        ) from error


def _from_wire(wire: _Header) -> Header:
    source = wire.source
    return Header(
        archive=wire.archive,
        seq=wire.seq,
        kind=wire.kind,
        prev_sha256=wire.prev_sha256,
        writer=wire.writer,
        source=Source(
            epoch=Epoch(source.system_identifier, source.timeline),
            database=source.database,
            slot=source.slot,
            publication=source.publication,
            server_version=source.server_version,
            server_encoding=source.server_encoding,
            settings=source.settings,
            tables=source.tables,
        ),
        first_lsn=None if wire.first_lsn is None else parse_lsn(wire.first_lsn),
        last_lsn=parse_lsn(wire.last_lsn),
        covered_upto=parse_lsn(wire.covered_upto),
        first_ordinal=wire.first_ordinal,
        transactions=wire.transactions,
        changes=wire.changes,
        from_time_us=_parse_time(wire.from_time),
        to_time_us=_parse_time(wire.to_time),
        relations=wire.relations,
        body_bytes=wire.body_bytes,
        ends=tuple(wire.ends),
        reshaped=tuple(wire.reshaped),
        part=_decode_part(wire.part),
        base=_decode_base(wire.base),
        gap=_decode_gap(wire.gap),
        fork=_decode_fork(wire.fork),
        open_gap=wire.open_gap,
        encryption=wire.encryption,
    )


def _print_time(time_us: int | None) -> str | None:
    return None if time_us is None else format_time(time_us)


def _parse_time(text: str | None) -> int | None:
    try:
        return None if text is None else parse_time(text)
    except TypeError as error:  # a time without its zone
        raise ValueError(f"not a time: {text!r}") from error


def _encode_part(part: Part | None) -> _Part | None:
    if part is None:
        return None
    return _Part(format_lsn(part.commit_lsn), part.index, part.last, part.first_seq, part.xid)


def _decode_part(part: _Part | None) -> Part | None:
    if part is None:
        return None
    return Part(parse_lsn(part.commit_lsn), part.index, part.last, part.first_seq, part.xid)


def _encode_base(base: Base | None) -> _Base | None:
    return None if base is None else _Base(base.seq, format_lsn(base.consistent_lsn), base.chunks, base.repair)


def _decode_base(base: _Base | None) -> Base | None:
    return None if base is None else Base(base.seq, parse_lsn(base.consistent_lsn), base.chunks, base.repair)


def _encode_gap(gap: Gap | None) -> _Gap | None:
    return None if gap is None else _Gap(format_lsn(gap.from_lsn), gap.reason, _print_time(gap.time_us or None))


def _decode_gap(gap: _Gap | None) -> Gap | None:
    return None if gap is None else Gap(parse_lsn(gap.from_lsn), gap.reason, _parse_time(gap.time) or 0)


def _encode_fork(fork: Fork | None) -> _Fork | None:
    if fork is None:
        return None
    previous = fork.previous
    return _Fork(previous.system_identifier, previous.timeline, format_lsn(fork.switch_lsn), fork.reason)


def _decode_fork(fork: _Fork | None) -> Fork | None:
    if fork is None:
        return None
    return Fork(Epoch(fork.system_identifier, fork.timeline), parse_lsn(fork.switch_lsn), fork.reason)


def header_facts(header: Header) -> dict[str, Any]:
    """Return the header as plain values, for `--json`."""
    facts: dict[str, Any] = msgspec.json.decode(encode_header(header))
    return facts
