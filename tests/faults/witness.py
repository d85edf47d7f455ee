"""The independent witness: a logical slot of its own, decoded by test_decoding, which shares no code with ours.

The slot is made before the workload begins, keeps all its WAL, and is read through SQL (`pg_logical_slot_get_changes`),
so that nothing of it can crash with the service. Options: no timestamps, xids, and empty transactions too, because
older servers leave out the BEGIN of a transaction that holds only a logical message when they are to be skipped.
"""

import re
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg

from tests.faults.history import Change, Json, Row, Transaction, Value, shorten
from tests.support.cdc_process import parse_lsn

_SESSION = """
SET datestyle = 'ISO'; SET intervalstyle = 'iso_8601'; SET timezone = 'UTC';
SET extra_float_digits = 3; SET bytea_output = 'hex'
"""
_CHANGES = """
SELECT lsn::text, xid::text::int, data
  FROM pg_logical_slot_get_changes(%s, NULL, %s, 'include-timestamp', '0', 'include-xids', '1')
"""
_AT_ONCE = 20_000

_TABLE_LINE = re.compile(r"table (.*?): (INSERT|UPDATE|DELETE|TRUNCATE): (.*)", re.DOTALL)
_MESSAGE_LINE = re.compile(r"message: transactional: (\d) prefix: (.*?), sz: (\d+) content:(.*)", re.DOTALL)
_NAME = re.compile(r'([a-z_][a-z0-9_$]*)|"((?:[^"]|"")*)"')
_QUOTED = re.compile(r"B?'((?:[^']|'')*)'", re.DOTALL)
_BARE = re.compile(r"[^ ]+")
_UNCHANGED = object()


class Witness:
    """Make it before the workload; its slot goes when its database goes.

    `transactions()` is everything that has been committed until now.
    """

    def __init__(self, dsn: str, tables: Sequence[str]) -> None:
        self._tables = set(tables)
        self._slot = f"witness_{uuid.uuid4().hex}"
        self._told: list[Transaction] = []
        self._open: list[Change] = []
        self._dsn = dsn
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", [self._slot])

    def transactions(self) -> list[Transaction]:
        """Read on, and tell everything from the beginning. Transactions without a published change are left out."""
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute(_SESSION)
            while self._read(connection) >= _AT_ONCE:
                pass
        return list(self._told)

    def _read(self, connection: psycopg.Connection[Any]) -> int:
        lines = 0
        for lsn, xid, data in connection.execute(_CHANGES, [self._slot, _AT_ONCE]):
            lines += 1
            self._hear(parse_lsn(lsn), xid, data)
        return lines

    def _hear(self, lsn: int, xid: int, data: str) -> None:
        if data.startswith("BEGIN"):
            self._open = []
        elif data.startswith("COMMIT"):
            if self._open:
                self._told.append(Transaction(xid, lsn, tuple(self._open)))
            self._open = []
        elif data.startswith("message: transactional: 0"):
            self._told.append(Transaction(0, lsn, tuple(parse_line(data))))
        else:
            self._open += [change for change in parse_line(data) if not change.table or change.table in self._tables]


def parse_line(data: str) -> Iterator[Change]:
    """One line of test_decoding's. A TRUNCATE of several tables gives a change for each."""
    message = _MESSAGE_LINE.fullmatch(data)
    if message is not None:
        yield Change("m", note=f"{message[1]} {message[2]} {shorten(message[4])}")
        return
    line = _TABLE_LINE.fullmatch(data)
    if line is None:
        raise ValueError(f"test_decoding said something unheard of: {data[:200]!r}")
    tables, action, rest = line[1], line[2], line[3]
    if action == "TRUNCATE":
        note = f"cascade={'cascade' in rest} restart={'restart_seqs' in rest}"
        yield from (Change("t", table=table, note=note) for table in tables.split(", "))
        return
    yield _row_change(action, tables, rest)


def _row_change(action: str, table: str, rest: str) -> Change:
    if rest == "(no-tuple-data)":
        return Change(action[0].lower(), table=table)
    columns = dict(_columns(rest)) if not rest.startswith("old-key: ") else None
    if action == "INSERT" and columns is not None:
        return Change("c", table=table, new=_row(columns))
    if action == "DELETE" and columns is not None:
        return Change("d", table=table, old=_row(columns))
    old: dict[str, Any] = {}
    if columns is None:
        pairs = list(_columns(rest.removeprefix("old-key: ")))
        border = next(at for at, (name, _) in enumerate(pairs) if name == "new-tuple:")
        old, columns = dict(pairs[:border]), dict(pairs[border + 1 :])
    merged = {name: old.get(name, value) if value is _UNCHANGED else value for name, value in columns.items()}
    unchanged = frozenset(name for name, value in merged.items() if value is _UNCHANGED)
    return Change("u", table=table, new=_row(merged), old=_row(old) if old else None, unchanged=unchanged)


def _row(columns: dict[str, Any]) -> Row:
    return {name: value for name, value in columns.items() if value is not _UNCHANGED}


def _columns(text: str) -> Iterator[tuple[str, Any]]:
    """`name[type]:value name[type]:value new-tuple: ...`; the word `new-tuple:` is yielded as a name."""
    at = 0
    while at < len(text):
        if text.startswith("new-tuple: ", at):
            yield "new-tuple:", None
            at += len("new-tuple: ")
            continue
        name = _NAME.match(text, at)
        if name is None:
            raise ValueError(f"no column name at {at} in {text[:300]!r}")
        type_end = text.index("]:", name.end())
        type_name = text[name.end() + 1 : type_end]
        value, at = _value(text, type_end + 2, type_name)
        yield (name[1] or name[2].replace('""', '"')), value
        at += 1  # the space between columns


def _value(text: str, at: int, type_name: str) -> tuple[Any, int]:
    quoted = _QUOTED.match(text, at)
    if quoted is not None:
        return _text(quoted[1].replace("''", "'"), type_name), quoted.end()
    bare = _BARE.match(text, at)
    if bare is None:
        raise ValueError(f"no value at {at} in {text[:300]!r}")
    match bare[0]:
        case "null":
            return None, bare.end()
        case "unchanged-toast-datum":
            return _UNCHANGED, bare.end()
        case digits:
            return _text(digits, type_name), bare.end()


def _text(text: str, type_name: str) -> Value:
    return Json.parse(text) if type_name in ("json", "jsonb") else shorten(text)
