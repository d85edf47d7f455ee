"""The first line of every object in the archive: what it is, where it came from, and what its lines must add up to.

Inside, positions are integers and times microseconds since 1970; on the wire both are printed as people read them
(`16/B374D848`, `2026-11-22T18:07:13.802498Z`). The field names on the wire are a public contract (DESIGN, "Archive").
Fields that a later version adds are ignored here; anything else that does not fit raises DataError.
"""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Final, Literal

import msgspec

from cdc.change import Column, Relation, format_time, parse_time
from cdc.errors import DataError
from cdc.lsn import format_lsn, parse_lsn
from cdc.sink import Epoch

Kind = Literal["data", "part", "fence", "coverage", "snapshot", "gap", "fork", "base"]

FORMAT_VERSION: Final = 1

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Position = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-F]{1,8}/[0-9A-F]{1,8}$")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The database that an archive tells the history of, and how its values were printed.

    `tables` are the oids of the published tables by name, as the writer found them when it took over.
    """

    epoch: Epoch
    database: str
    slot: str = ""
    publication: str = ""
    server_version: str = ""
    server_encoding: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    tables: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Writer:
    """Who wrote: a name drawn at start, and how many writers there have been, this one included."""

    id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Part:
    """Which piece of which large transaction a `part` segment holds. The commit is in the last one."""

    commit_lsn: int
    index: int
    last: bool
    first_seq: int
    xid: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """One object of snapshot rows, as the `snapshot` record names it. `bytes` and `sha256` are of the object."""

    key: str
    table: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Tally:
    """How many rows of a table differ between two states: only in the first, only in the second, not equal."""

    deleted: int
    inserted: int
    changed: int


@dataclass(frozen=True, slots=True)
class Repair:
    """What a snapshot that closes the gap of segment `gap` found changed inside, by table.

    `deleted` are objects with the keys of deleted rows. `unknown` are tables of which nothing can be said, and why.
    """

    gap: int
    tables: dict[str, Tally]
    deleted: tuple[Chunk, ...] = ()
    unknown: dict[str, str] = field(default_factory=dict)

    def facts(self) -> dict[str, dict[str, int]]:
        """The counts as plain values, by table."""
        return {name: asdict(tally) for name, tally in self.tables.items()}


@dataclass(frozen=True, slots=True)
class Base:
    """What a `snapshot` record commits: all rows as they were at `consistent_lsn`."""

    seq: int
    consistent_lsn: int
    chunks: tuple[Chunk, ...]
    repair: Repair | None = None

    @property
    def objects(self) -> tuple[Chunk, ...]:
        """Every object that the record names."""
        return self.chunks if self.repair is None else (*self.chunks, *self.repair.deleted)


@dataclass(frozen=True, slots=True)
class Gap:
    """Changes after `from_lsn` were lost; the archive is complete again from the next snapshot.

    `time_us` says when that was found out, 0 if the record does not.
    """

    from_lsn: int
    reason: str
    time_us: int = 0


@dataclass(frozen=True, slots=True)
class Fork:
    """The source left `previous` at `switch_lsn` and went on in the epoch of this segment's source."""

    previous: Epoch
    switch_lsn: int
    reason: str


class ColumnShape(msgspec.Struct, frozen=True):
    """A column, as the header describes it."""

    name: str
    type: str
    oid: int
    typmod: int
    key: bool


class RelationShape(msgspec.Struct, frozen=True):
    """A relation, as the header describes it. Two relations with equal shapes encode rows alike."""

    schema: str
    name: str
    oid: int
    replica_identity: str
    columns: tuple[ColumnShape, ...]


class Reshaped(msgspec.Struct, frozen=True):
    """From body line `line` (counted from 0) on, `table` has another shape: it was altered inside this segment."""

    line: _Count
    table: str
    relation: RelationShape


class WrappedKey(msgspec.Struct, frozen=True):
    """An object's key, encrypted to one recipient; base64."""

    id: str
    key: str


class Encryption(msgspec.Struct, frozen=True):
    """How the lines are encrypted, in how many frames, and to whom (cdc/archive/encryption.py)."""

    cipher: Literal["AES-256-GCM"]
    key_wrap: Literal["HPKE-X25519"]
    frames: _Count
    recipients: tuple[WrappedKey, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the header line says.

    `first_lsn` is the commit LSN of the first transaction with lines here, None without lines; `last_lsn` that of the
    last transaction which is complete in the archive with this object (0: none yet), so that the tail alone says where
    the archive stands. `ends` holds `end_lsn - commit_lsn` of each complete transaction, in order. `open_gap` is the
    number of the `gap` segment that no snapshot has closed yet.
    """

    archive: str
    seq: int
    kind: Kind
    prev_sha256: str | None
    writer: Writer
    source: Source
    first_lsn: int | None = None
    last_lsn: int = 0
    covered_upto: int = 0
    first_ordinal: int = 0
    transactions: int = 0
    changes: int = 0
    from_time_us: int | None = None
    to_time_us: int | None = None
    relations: dict[str, RelationShape] = field(default_factory=dict)
    body_bytes: int = 0
    ends: tuple[int, ...] = ()
    reshaped: tuple[Reshaped, ...] = ()
    part: Part | None = None
    base: Base | None = None
    gap: Gap | None = None
    fork: Fork | None = None
    open_gap: int | None = None
    encryption: Encryption | None = None

    @property
    def epoch(self) -> Epoch:
        return self.source.epoch


class _Writer(msgspec.Struct):
    id: str
    epoch: _Count


class _Source(msgspec.Struct, omit_defaults=True):
    system_identifier: str
    timeline: _Count
    database: str
    slot: str
    publication: str
    server_version: str
    server_encoding: str
    settings: dict[str, str]
    tables: dict[str, int] = {}


class _Part(msgspec.Struct):
    commit_lsn: _Position
    index: _Count
    last: bool
    first_seq: _Count
    xid: _Count


class _Chunk(msgspec.Struct):
    key: str
    table: str
    rows: _Count
    bytes: _Count
    sha256: str


class _Tally(msgspec.Struct):
    deleted: _Count
    inserted: _Count
    changed: _Count


class RepairNote(msgspec.Struct):
    """A `Repair` as it is written."""

    gap: _Count
    tables: dict[str, _Tally]
    deleted: list[_Chunk]
    unknown: dict[str, str]


class _Base(msgspec.Struct, omit_defaults=True):
    seq: _Count
    consistent_lsn: _Position
    chunks: list[_Chunk]
    repair: RepairNote | None = None


class _Gap(msgspec.Struct, rename={"from_lsn": "from"}, omit_defaults=True):
    from_lsn: _Position
    reason: str
    time: str | None = None


class _Fork(msgspec.Struct):
    system_identifier: str
    timeline: _Count
    switch_lsn: _Position
    reason: str


class _Header(msgspec.Struct, omit_defaults=True):
    cdc: Literal[1]
    archive: str
    seq: _Count
    kind: Kind
    prev_sha256: str | None
    writer: _Writer
    source: _Source
    first_lsn: _Position | None
    last_lsn: _Position
    covered_upto: _Position
    first_ordinal: _Count
    transactions: _Count
    changes: _Count
    from_time: str | None
    to_time: str | None
    relations: dict[str, RelationShape]
    body_bytes: _Count
    ends: list[_Count] = []
    reshaped: list[Reshaped] = []
    part: _Part | None = None
    base: _Base | None = None
    gap: _Gap | None = None
    fork: _Fork | None = None
    open_gap: _Count | None = None
    encryption: Encryption | None = None


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(_Header)


@functools.lru_cache(maxsize=1024)
def shape_of(relation: Relation) -> RelationShape:
    """A relation as the header describes it."""
    return RelationShape(
        relation.schema,
        relation.name,
        relation.oid,
        relation.replica_identity,
        tuple(ColumnShape(c.name, c.type_name, c.type_oid, c.typmod, c.key) for c in relation.columns),
    )


@functools.lru_cache(maxsize=1024)
def relation_of(shape: RelationShape) -> Relation:
    """The relation that a header describes; equal shapes give the same object."""
    columns = [Column(c.name, c.type, c.oid, c.typmod, c.key) for c in shape.columns]
    return Relation(shape.oid, shape.schema, shape.name, shape.replica_identity, columns)


def encode_header(header: Header) -> bytes:
    """The header as one line of JSON, without its line break."""
    source = header.source
    return _ENCODER.encode(
        _Header(
            cdc=FORMAT_VERSION,
            archive=header.archive,
            seq=header.seq,
            kind=header.kind,
            prev_sha256=header.prev_sha256,
            writer=_Writer(header.writer.id, header.writer.epoch),
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
    """The header that gave this line. Raises DataError for anything that `encode_header` cannot have written."""
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
        writer=Writer(wire.writer.id, wire.writer.epoch),
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
    if base is None:
        return None
    return _Base(
        base.seq, format_lsn(base.consistent_lsn), list(map(_encode_chunk, base.chunks)), encode_repair(base.repair)
    )


def _decode_base(base: _Base | None) -> Base | None:
    if base is None:
        return None
    chunks = tuple(map(_decode_chunk, base.chunks))
    return Base(base.seq, parse_lsn(base.consistent_lsn), chunks, decode_repair(base.repair))


def _encode_chunk(chunk: Chunk) -> _Chunk:
    return _Chunk(chunk.key, chunk.table, chunk.rows, chunk.bytes, chunk.sha256)


def _decode_chunk(chunk: _Chunk) -> Chunk:
    return Chunk(chunk.key, chunk.table, chunk.rows, chunk.bytes, chunk.sha256)


def encode_repair(repair: Repair | None) -> RepairNote | None:
    """As it is written."""
    if repair is None:
        return None
    tables = {name: _Tally(one.deleted, one.inserted, one.changed) for name, one in repair.tables.items()}
    return RepairNote(repair.gap, tables, list(map(_encode_chunk, repair.deleted)), repair.unknown)


def decode_repair(repair: RepairNote | None) -> Repair | None:
    """As it was read."""
    if repair is None:
        return None
    tables = {name: Tally(one.deleted, one.inserted, one.changed) for name, one in repair.tables.items()}
    return Repair(repair.gap, tables, tuple(map(_decode_chunk, repair.deleted)), repair.unknown)


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


def shapes_by_name(relations: Sequence[Relation]) -> dict[str, RelationShape]:
    """Relations as a header lists them."""
    return {relation.qualified_name: shape_of(relation) for relation in relations}


def header_facts(header: Header) -> dict[str, Any]:
    """The header as plain values, for `--json`."""
    facts: dict[str, Any] = msgspec.json.decode(encode_header(header))
    return facts
