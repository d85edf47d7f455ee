"""The header is the first line of every object: its kind, its source, and the counts that its lines must add up to.

Positions are integers and times microseconds since 1970; `header_line.py` prints both for people. A part without
positions and times is a `msgspec.Struct`, which stands in the line as it is.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
import msgspec.structs

from cdc.change import Column, Relation
from cdc.position import Epoch

Kind = Literal["data", "part", "fence", "coverage", "snapshot", "gap", "fork", "base"]

Count = Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The database whose history an archive holds, and the settings that its values were printed with.

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


class Writer(msgspec.Struct, frozen=True):
    """The writer: a random name, and the count of writers so far, this one included."""

    id: str
    epoch: Count


@dataclass(frozen=True, slots=True)
class Part:
    """A `part` segment's place in its large transaction. The commit is in the last one."""

    commit_lsn: int
    index: int
    last: bool
    first_seq: int
    xid: int


class Chunk(msgspec.Struct, frozen=True):
    """One object of snapshot rows, as the `snapshot` record names it. `bytes` and `sha256` are of the object."""

    key: str
    table: str
    rows: Count
    bytes: Count
    sha256: str


class ChangeCounts(msgspec.Struct, frozen=True):
    """The counts of a table's rows that differ between two states: only in the first, only in the second, unequal."""

    deleted: Count
    inserted: Count
    changed: Count


class Repair(msgspec.Struct, frozen=True):
    """The changes inside the gap of segment `gap`, by table, as the snapshot that closes it found them.

    `deleted` are objects with the keys of deleted rows. `unknown` are tables that were not compared, each with the
    reason.
    """

    gap: Count
    tables: dict[str, ChangeCounts]
    deleted: tuple[Chunk, ...]
    unknown: dict[str, str]

    def facts(self) -> dict[str, dict[str, int]]:
        """The counts as plain values, by table."""
        return {name: msgspec.structs.asdict(counts) for name, counts in self.tables.items()}


@dataclass(frozen=True, slots=True)
class Base:
    """The rows that a `snapshot` record commits: all of them, as they were at `consistent_lsn`."""

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

    `time_us` is when the loss was found, 0 if the record does not tell.
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

    line: Count
    table: str
    relation: RelationShape


class WrappedKey(msgspec.Struct, frozen=True):
    """An object's key, encrypted to one recipient; base64."""

    id: str
    key: str


class Encryption(msgspec.Struct, frozen=True):
    """The encryption of the lines: scheme, count of frames, wrapped keys (cdc/archive/format/encryption.py)."""

    cipher: Literal["AES-256-GCM"]
    key_wrap: Literal["HPKE-X25519"]
    frames: Count
    recipients: tuple[WrappedKey, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The facts in the header line.

    - `first_lsn`: the commit LSN of the first transaction with lines here; None without lines.
    - `last_lsn`: the commit LSN of the last transaction that is complete in the archive with this object; 0: none yet.
      So the tail alone tells the archive's position.
    - `ends`: `end_lsn - commit_lsn` of each complete transaction, in order.
    - `open_gap`: the number of the `gap` segment that no snapshot has closed yet.
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


@functools.lru_cache(maxsize=1024)
def shape_of(relation: Relation) -> RelationShape:
    """Describe a relation as the header does."""
    return RelationShape(
        relation.schema,
        relation.name,
        relation.oid,
        relation.replica_identity,
        tuple(ColumnShape(c.name, c.type_name, c.type_oid, c.typmod, c.key) for c in relation.columns),
    )


@functools.lru_cache(maxsize=1024)
def relation_of(shape: RelationShape) -> Relation:
    """Make the relation that a header describes; equal shapes give the same object."""
    columns = [Column(c.name, c.type, c.oid, c.typmod, c.key) for c in shape.columns]
    return Relation(shape.oid, shape.schema, shape.name, shape.replica_identity, columns)


def shapes_by_name(relations: Sequence[Relation]) -> dict[str, RelationShape]:
    """Describe relations as a header lists them, by qualified name."""
    return {relation.qualified_name: shape_of(relation) for relation in relations}
