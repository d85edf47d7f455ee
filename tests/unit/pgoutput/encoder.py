"""The other direction, for tests: words to the bytes that Postgres would send. Written from the manual, not from `cdc`.

Times are microseconds since 2000-01-01, as on the wire. A value of a tuple is bytes, None for NULL, or UNCHANGED.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

UNCHANGED: Final = "unchanged"

WireValue = bytes | str | None


class WireColumn(NamedTuple):
    name: bytes
    type_oid: int
    typmod: int = -1
    key: bool = False


def xlog_data(payload: bytes, lsn: int = 0, send_time: int = 0) -> bytes:
    return b"w" + struct.pack(">QQq", lsn, lsn, send_time) + payload


def keepalive(wal_end: int, send_time: int = 0, reply: bool = False) -> bytes:
    return b"k" + struct.pack(">Qq?", wal_end, send_time, reply)


def begin(final_lsn: int, time: int, xid: int) -> bytes:
    return b"B" + struct.pack(">QqI", final_lsn, time, xid)


def commit(commit_lsn: int, end_lsn: int, time: int, flags: int = 0) -> bytes:
    return b"C" + struct.pack(">BQQq", flags, commit_lsn, end_lsn, time)


def origin(commit_lsn: int, name: bytes) -> bytes:
    return b"O" + struct.pack(">Q", commit_lsn) + name + b"\0"


def relation(oid: int, schema: bytes, name: bytes, replica_identity: bytes, columns: Sequence[WireColumn]) -> bytes:
    described = b"".join(
        struct.pack(">B", c.key) + c.name + b"\0" + struct.pack(">Ii", c.type_oid, c.typmod) for c in columns
    )
    head = struct.pack(">I", oid) + schema + b"\0" + name + b"\0" + replica_identity
    return b"R" + head + struct.pack(">H", len(columns)) + described


def type_(oid: int, schema: bytes, name: bytes) -> bytes:
    return b"Y" + struct.pack(">I", oid) + schema + b"\0" + name + b"\0"


def _value(value: WireValue) -> bytes:
    if value is None:
        return b"n"
    if isinstance(value, bytes):
        return b"t" + struct.pack(">I", len(value)) + value
    return b"u"


def _tuple(row: Sequence[WireValue]) -> bytes:
    return struct.pack(">H", len(row)) + b"".join(map(_value, row))


def insert(oid: int, new: Sequence[WireValue]) -> bytes:
    return b"I" + struct.pack(">I", oid) + b"N" + _tuple(new)


def update(
    oid: int,
    new: Sequence[WireValue],
    *,
    old: Sequence[WireValue] | None = None,
    key: Sequence[WireValue] | None = None,
) -> bytes:
    before = b"" if old is None else b"O" + _tuple(old)
    before += b"" if key is None else b"K" + _tuple(key)
    return b"U" + struct.pack(">I", oid) + before + b"N" + _tuple(new)


def delete(oid: int, *, old: Sequence[WireValue] | None = None, key: Sequence[WireValue] | None = None) -> bytes:
    before = b"" if old is None else b"O" + _tuple(old)
    before += b"" if key is None else b"K" + _tuple(key)
    return b"D" + struct.pack(">I", oid) + before


def truncate(oids: Iterable[int], *, cascade: bool = False, restart_identity: bool = False) -> bytes:
    tables = list(oids)
    flags = int(cascade) | int(restart_identity) << 1
    return b"T" + struct.pack(f">IB{len(tables)}I", len(tables), flags, *tables)


def message(lsn: int, prefix: bytes, content: bytes, *, transactional: bool) -> bytes:
    head = struct.pack(">BQ", transactional, lsn) + prefix + b"\0"
    return b"M" + head + struct.pack(">I", len(content)) + content
