"""Decodes messages of pgoutput, protocol version 1 (manual, "Logical Replication Message Formats").

`decode_message` turns the bytes of one message into one class of the closed union `Message`. For bytes that are no
such message it raises DataError and nothing else. An error names the type of the message and a byte in it, never a
value of a row.

Three things keep it short and fast. Fields are read by offset. Lengths are unsigned, so an offset only grows. Bounds
are not checked on the way: reading past the end raises by itself, and a slice past the end leaves an offset past the
end, which the last check finds, because every message must end exactly where its bytes do.

Names and prefixes are text of the database's encoding. In an SQL_ASCII database they need not be UTF-8: such bytes
are spelled `\\xff`, so that a name can always be written as JSON.
"""

import struct
from typing import Final, NoReturn

from cdc.change import Column
from cdc.errors import DataError
from cdc.pgoutput.frames import POSTGRES_EPOCH_US
from cdc.row import ABSENT, Row

_U16 = struct.Struct(">H").unpack_from
_U32 = struct.Struct(">I").unpack_from
_INSERT = struct.Struct(">IB").unpack_from
_U64 = struct.Struct(">Q").unpack_from
_BEGIN = struct.Struct(">QqI").unpack_from
_COMMIT = struct.Struct(">BQQq").unpack_from
_LOGICAL_MESSAGE = struct.Struct(">BQ").unpack_from
_TRUNCATE = struct.Struct(">IB").unpack_from
_COLUMN_TYPE = struct.Struct(">Ii").unpack_from

_KEY_FLAG: Final = 1
_TRANSACTIONAL_FLAG: Final = 1
_CASCADE_FLAG: Final = 1
_RESTART_IDENTITY_FLAG: Final = 2

# The bytes that introduce a tuple or a value in it.
_NEW: Final = 0x4E  # "N"
_KEY: Final = 0x4B  # "K"
_OLD: Final = 0x4F  # "O"
_TEXT: Final = 0x74  # "t"
_NULL: Final = 0x6E  # "n"
_UNCHANGED: Final = 0x75  # "u"
_BINARY: Final = 0x62  # "b"

_NAMES = {
    "B": "Begin", "C": "Commit", "D": "Delete", "I": "Insert", "M": "Message", "O": "Origin", "R": "Relation",
    "T": "Truncate", "U": "Update", "Y": "Type",
}  # fmt: skip


class Begin:
    """A transaction begins; `final_lsn` is the `commit_lsn` of the Commit to come."""

    __slots__ = ("commit_time_us", "final_lsn", "xid")

    def __init__(self, final_lsn: int, commit_time_us: int, xid: int) -> None:
        self.final_lsn = final_lsn
        self.commit_time_us = commit_time_us
        self.xid = xid


class Commit:
    __slots__ = ("commit_lsn", "commit_time_us", "end_lsn")

    def __init__(self, commit_lsn: int, end_lsn: int, commit_time_us: int) -> None:
        self.commit_lsn = commit_lsn
        self.end_lsn = end_lsn
        self.commit_time_us = commit_time_us


class Origin:
    """The transaction came to this server by replication, from the origin `name`."""

    __slots__ = ("commit_lsn", "name")

    def __init__(self, commit_lsn: int, name: str) -> None:
        self.commit_lsn = commit_lsn
        self.name = name


class RelationMessage:
    """A table, sent before its first change and again after it changed. `columns` have no type names yet."""

    __slots__ = ("columns", "name", "oid", "replica_identity", "schema")

    def __init__(self, oid: int, schema: str, name: str, replica_identity: str, columns: list[Column]) -> None:
        self.oid = oid
        self.schema = schema
        self.name = name
        self.replica_identity = replica_identity
        self.columns = columns


class TypeMessage:
    """The name of a type that is not built in. For a domain, Postgres names its base type."""

    __slots__ = ("name", "oid", "schema")

    def __init__(self, oid: int, schema: str, name: str) -> None:
        self.oid = oid
        self.schema = schema
        self.name = name


class Insert:
    __slots__ = ("new", "relation_oid")

    def __init__(self, relation_oid: int, new: Row) -> None:
        self.relation_oid = relation_oid
        self.new = new


class Update:
    """A row was updated; `old` is there if the key changed (`old_is_key`) or the replica identity is FULL."""

    __slots__ = ("new", "old", "old_is_key", "relation_oid")

    def __init__(self, relation_oid: int, new: Row, old: Row | None, old_is_key: bool) -> None:
        self.relation_oid = relation_oid
        self.new = new
        self.old = old
        self.old_is_key = old_is_key


class Delete:
    __slots__ = ("old", "old_is_key", "relation_oid")

    def __init__(self, relation_oid: int, old: Row, old_is_key: bool) -> None:
        self.relation_oid = relation_oid
        self.old = old
        self.old_is_key = old_is_key


class TruncateMessage:
    __slots__ = ("cascade", "relation_oids", "restart_identity")

    def __init__(self, relation_oids: list[int], cascade: bool, restart_identity: bool) -> None:
        self.relation_oids = relation_oids
        self.cascade = cascade
        self.restart_identity = restart_identity


class EmittedMessage:
    """A message that `pg_logical_emit_message` wrote; `lsn` is the end of its WAL record."""

    __slots__ = ("content", "lsn", "prefix", "transactional")

    def __init__(self, lsn: int, prefix: str, content: bytes, transactional: bool) -> None:
        self.lsn = lsn
        self.prefix = prefix
        self.content = content
        self.transactional = transactional


Message = (
    Insert
    | Update
    | Delete
    | Begin
    | Commit
    | RelationMessage
    | TypeMessage
    | Origin
    | TruncateMessage
    | EmittedMessage
)


class _Malformed(Exception):
    """The bytes at offset `at` break the format."""

    def __init__(self, reason: str, at: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.at = at


def decode_message(data: bytes, start: int = 0) -> Message:
    """Decode the message that begins at offset `start` and ends with `data`. Raises DataError."""
    try:
        match data[start]:
            case 0x49:  # I
                return _decode_insert(data, start + 1)
            case 0x55:  # U
                return _decode_update(data, start + 1)
            case 0x44:  # D
                return _decode_delete(data, start + 1)
            case 0x42:  # B
                return _decode_begin(data, start + 1)
            case 0x43:  # C
                return _decode_commit(data, start + 1)
            case 0x52:  # R
                return _decode_relation(data, start + 1)
            case 0x59:  # Y
                return _decode_type(data, start + 1)
            case 0x4F:  # O
                return _decode_origin(data, start + 1)
            case 0x54:  # T
                return _decode_truncate(data, start + 1)
            case 0x4D:  # M
                return _decode_emitted(data, start + 1)
            case _:
                _refuse(data, start)
    except _Malformed as error:
        raise _data_error(data, start, error.reason, error.at) from None
    except (IndexError, ValueError, struct.error):
        raise _data_error(data, start, "it ends too early", len(data)) from None


def _data_error(data: bytes, start: int, reason: str, at: int) -> DataError:
    kind = chr(data[start]) if start < len(data) else ""
    name = _NAMES.get(kind, f"unknown ({kind!r})")
    return DataError(
        f"malformed pgoutput message of type {name}: {reason}",
        detail=f"byte {at - start} of {len(data) - start}",
    )


def _refuse(data: bytes, at: int) -> NoReturn:
    if data[at : at + 1] in (b"S", b"E", b"c", b"A"):
        raise _Malformed("we asked for protocol version 1, which does not stream open transactions", at)
    raise _Malformed("protocol version 1 has no such message", at)


def _expect_end(data: bytes, at: int) -> None:
    if at > len(data):
        raise _Malformed("it ends too early", len(data))
    if at < len(data):
        raise _Malformed("bytes are left over", at)


def _read_string(data: bytes, at: int) -> tuple[str, int]:
    """Read a zero-terminated string; returns it and the offset behind it."""
    end = data.index(0, at)
    return data[at:end].decode(errors="backslashreplace"), end + 1


def _read_tuple(data: bytes, at: int) -> tuple[Row, int]:
    """Read a TupleData; returns its row and the offset behind it."""
    row: Row = []
    width: int = _U16(data, at)[0]
    at += 2
    for _ in range(width):
        kind = data[at]
        if kind == _TEXT:
            begin = at + 5
            at = begin + _U32(data, at + 1)[0]
            row.append(data[begin:at])
        elif kind == _NULL:
            row.append(None)
            at += 1
        elif kind == _UNCHANGED:
            row.append(ABSENT)
            at += 1
        elif kind == _BINARY:
            raise _Malformed("a value is in binary format, and we asked for text", at)
        else:
            raise _Malformed("a value is neither text, NULL nor unchanged", at)
    return row, at


def _decode_insert(data: bytes, at: int) -> Insert:
    relation_oid, kind = _INSERT(data, at)
    if kind != _NEW:
        raise _Malformed("there is no new row", at + 4)
    new, end = _read_tuple(data, at + 5)
    if end != len(data):
        _expect_end(data, end)
    return Insert(relation_oid, new)


def _decode_update(data: bytes, at: int) -> Update:
    relation_oid: int = _U32(data, at)[0]
    at += 4
    kind = data[at]
    old: Row | None = None
    if kind in (_KEY, _OLD):
        old, at = _read_tuple(data, at + 1)
    if data[at] != _NEW:
        raise _Malformed("there is no new row", at)
    new, at = _read_tuple(data, at + 1)
    _expect_end(data, at)
    return Update(relation_oid, new, old, kind == _KEY)


def _decode_delete(data: bytes, at: int) -> Delete:
    kind = data[at + 4]
    if kind not in (_KEY, _OLD):
        raise _Malformed("there is no old row", at + 4)
    old, end = _read_tuple(data, at + 5)
    _expect_end(data, end)
    return Delete(_U32(data, at)[0], old, kind == _KEY)


def _decode_begin(data: bytes, at: int) -> Begin:
    final_lsn, time_us, xid = _BEGIN(data, at)
    _expect_end(data, at + 20)
    return Begin(final_lsn, time_us + POSTGRES_EPOCH_US, xid)


def _decode_commit(data: bytes, at: int) -> Commit:
    flags, commit_lsn, end_lsn, time_us = _COMMIT(data, at)
    _expect_end(data, at + 25)
    if flags != 0:
        raise _Malformed("its flags are not zero", at)
    return Commit(commit_lsn, end_lsn, time_us + POSTGRES_EPOCH_US)


def _decode_origin(data: bytes, at: int) -> Origin:
    commit_lsn: int = _U64(data, at)[0]
    name, at = _read_string(data, at + 8)
    _expect_end(data, at)
    return Origin(commit_lsn, name)


def _decode_relation(data: bytes, at: int) -> RelationMessage:
    oid: int = _U32(data, at)[0]
    schema, at = _read_string(data, at + 4)
    name, at = _read_string(data, at)
    replica_identity = chr(data[at])
    if replica_identity not in "dnfi":
        raise _Malformed("its replica identity is none of d, n, f and i", at)
    width: int = _U16(data, at + 1)[0]
    at += 3
    columns: list[Column] = []
    for _ in range(width):
        column, at = _read_column(data, at)
        columns.append(column)
    _expect_end(data, at)
    if len({column.name for column in columns}) < width:
        raise _Malformed("two columns have one name", at)
    # Postgres leaves the schema empty where it is pg_catalog.
    return RelationMessage(oid, schema or "pg_catalog", name, replica_identity, columns)


def _read_column(data: bytes, at: int) -> tuple[Column, int]:
    flags = data[at]
    name, at = _read_string(data, at + 1)
    type_oid, typmod = _COLUMN_TYPE(data, at)
    return Column(name, "", type_oid, typmod, flags & _KEY_FLAG != 0), at + 8


def _decode_type(data: bytes, at: int) -> TypeMessage:
    oid: int = _U32(data, at)[0]
    schema, at = _read_string(data, at + 4)
    name, at = _read_string(data, at)
    _expect_end(data, at)
    return TypeMessage(oid, schema or "pg_catalog", name)


def _decode_truncate(data: bytes, at: int) -> TruncateMessage:
    count, flags = _TRUNCATE(data, at)
    at += 5
    _expect_end(data, at + 4 * count)
    oids: list[int] = [_U32(data, at + 4 * index)[0] for index in range(count)]
    return TruncateMessage(oids, flags & _CASCADE_FLAG != 0, flags & _RESTART_IDENTITY_FLAG != 0)


def _decode_emitted(data: bytes, at: int) -> EmittedMessage:
    flags, lsn = _LOGICAL_MESSAGE(data, at)
    if lsn == 0:
        raise _Malformed("it has no position", at + 1)
    prefix, at = _read_string(data, at + 9)
    begin = at + 4
    end = begin + _U32(data, at)[0]
    _expect_end(data, end)
    return EmittedMessage(lsn, prefix, data[begin:end], flags & _TRANSACTIONAL_FLAG != 0)
