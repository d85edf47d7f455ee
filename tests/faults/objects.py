"""The archive as a stranger reads it: objects by key, zstd, JSON lines, and the public contract. No code of ours.

`read_archive` proves what the contract promises of the objects themselves (dense keys, the chain of digests, dense
ordinals, increasing positions, no abandoned piece left standing) and gives back the transactions, the rows of the base,
and how far the archive says it is covered. What is wrong is collected in `faults`; nothing raises.
"""

import base64
import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import zstandard

from tests.faults.history import Change, Json, Row, Transaction, Value, loads, shorten
from tests.support.cdc_process import parse_lsn

_LOG_KEY = re.compile(r"(?:.*/)?log/(\d{16})\.ndjson\.zst")
_INTEGERS = {"smallint", "integer", "bigint", "int2", "int4", "int8"}
_FLOATS = {"real", "double precision", "float4", "float8"}


@dataclass
class Archive:
    """What the archive holds. `base` is by table; `consistent_lsn` is where the base stands (0 without one).

    A later snapshot takes the place of an earlier one: `before_base` counts the transactions before it, `begins_lsn` is
    where the first one stands. A gap or a fork is a fault, and `breaks` tells it apart from others; `gaps` are from
    where to where, None while no snapshot has closed one.
    """

    transactions: list[Transaction] = field(default_factory=list)
    base: dict[str, list[Row]] = field(default_factory=dict)
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)
    consistent_lsn: int = 0
    covered_upto: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    writers: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    breaks: list[str] = field(default_factory=list)
    before_base: int = 0
    begins_lsn: int = 0
    gaps: list[tuple[int, int | None]] = field(default_factory=list)

    def in_gap(self, lsn: int) -> bool:
        """Whether the archive says itself that it lacks what ends here."""
        return any(first < lsn and (last is None or lsn <= last) for first, last in self.gaps)


def read_directory(url: str) -> dict[str, bytes]:
    """All objects of a `file://` archive, by key."""
    root = Path(unquote(urlsplit(url).path))
    files = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(files)}


def directory_tail(url: str) -> bytes | None:
    """The last segment of a `file://` archive."""
    directory = Path(unquote(urlsplit(url).path)) / "log"
    names = [path.name for path in directory.glob("*.ndjson.zst") if not path.name.startswith(".")]
    return (directory / max(names)).read_bytes() if names else None


def tail_of(objects: Mapping[str, bytes]) -> bytes | None:
    """The last segment among these objects."""
    log = log_objects(objects)
    return log[max(log)] if log else None


def log_objects(objects: Mapping[str, bytes]) -> dict[int, bytes]:
    """The segments of the log, by sequence number."""
    found = {int(match[1]): body for key, body in objects.items() if (match := _LOG_KEY.fullmatch(key))}
    return dict(sorted(found.items()))


def read_lines(body: bytes) -> list[Any]:
    """The lines of one object, numbers as `["number", digits]`."""
    text = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(body), read_across_frames=True).read()
    return [loads(line) for line in text.splitlines()]


def owed_upto(body: bytes) -> int | None:
    """How far the slot may be acknowledged; None before the first snapshot and while a gap is open."""
    header = read_lines(body)[0]
    covered = parse_lsn(str(header["covered_upto"]))
    return None if not covered or header.get("open_gap") is not None else covered


def read_archive(objects: Mapping[str, bytes]) -> Archive:
    return _Reader(objects).read()


class _Reader:
    def __init__(self, objects: Mapping[str, bytes]) -> None:
        self._objects = objects
        self._archive = Archive()
        self._relations: dict[str, Any] = {}
        self._pending: list[Any] = []
        self._pending_commit = ""
        self._ordinal = 0
        self._end_lsn = 0

    def read(self) -> Archive:
        log = log_objects(self._objects)
        expected = 0
        previous: bytes | None = None
        for seq, body in log.items():
            if seq != expected:
                self._fault(f"segments {expected} to {seq - 1} are missing")
            expected = seq + 1
            self._read_segment(seq, body, previous)
            previous = body
        if not log:
            self._fault("there is no log")
        return self._archive

    def _fault(self, text: str) -> None:
        self._archive.faults.append(text)

    def _read_segment(self, seq: int, body: bytes, previous: bytes | None) -> None:
        try:
            lines = read_lines(body)
            header = lines[0]
            self._check_header(seq, header, previous)
            self._describe(header["relations"])
            reshaped = {_int(change["line"]): change for change in header.get("reshaped", [])}
            changes = [self._change(line, reshaped.get(at)) for at, line in enumerate(lines[1:])]
            self._read_kind(seq, header, list(zip(lines[1:], changes, strict=True)))
        except Exception as error:  # whatever is wrong with an object is the object's fault
            self._fault(f"segment {seq} cannot be read: {type(error).__name__}: {error}")

    def _break(self, header: dict[str, Any]) -> None:
        text = f"{header['kind']}: {header[header['kind']]['reason']}"
        self._fault(text)
        self._archive.breaks.append(text)
        if header["kind"] == "gap":
            self._archive.gaps.append((parse_lsn(header["gap"]["from"]), None))
        if header["kind"] == "fork":
            self._end_lsn = min(self._end_lsn, parse_lsn(header["fork"]["switch_lsn"]))

    def _check_header(self, seq: int, header: dict[str, Any], previous: bytes | None) -> None:
        digest = None if previous is None else hashlib.sha256(previous).hexdigest()
        if header["prev_sha256"] != digest:
            self._fault(f"segment {seq} does not follow its predecessor's bytes")
        if _int(header["seq"]) != seq:
            self._fault(f"segment {seq} says it is {_int(header['seq'])}")
        if _int(header["first_ordinal"]) != self._ordinal:
            self._fault(f"segment {seq} begins at ordinal {_int(header['first_ordinal'])}, not {self._ordinal}")
        covered = parse_lsn(header["covered_upto"])
        if covered < self._archive.covered_upto and header["kind"] != "fork":
            self._fault(f"segment {seq} takes coverage back")
        self._archive.covered_upto = covered
        self._archive.kinds[header["kind"]] = self._archive.kinds.get(header["kind"], 0) + 1
        if header["writer"]["id"] not in self._archive.writers[-1:]:
            self._archive.writers.append(header["writer"]["id"])

    def _describe(self, relations: dict[str, Any]) -> None:
        self._relations |= relations
        for table, relation in relations.items():
            self._archive.keys[table] = tuple(c["name"] for c in relation["columns"] if c["key"])

    def _read_kind(self, seq: int, header: dict[str, Any], lines: list[Any]) -> None:
        match header["kind"]:
            case "part":
                self._read_part(seq, header, lines)
                return
            case "data":
                self._read_data(seq, header, lines)
            case "snapshot":
                self._read_base(header["base"])
            case "fence" | "coverage":
                if lines:
                    self._fault(f"segment {seq} is a {header['kind']} with lines")
            case "gap" | "fork":
                self._break(header)
            case other:
                self._fault(f"segment {seq} is of an unknown kind {other!r}")
        self._ordinal += _int(header["transactions"])

    def _read_part(self, seq: int, header: dict[str, Any], lines: list[Any]) -> None:
        part = header["part"]
        first = _int(part["first_seq"])
        if first == 0:
            self._pending, self._pending_commit = [], part["commit_lsn"]
        elif self._pending_commit != part["commit_lsn"] or len(self._pending) != first:
            self._fault(f"segment {seq} continues a transaction at change {first}, after {len(self._pending)}")
        self._pending += lines
        if part["last"]:
            self._emit(seq, self._pending, _int(header["ends"][0]))
            self._pending, self._pending_commit = [], ""
        self._ordinal += _int(header["transactions"])

    def _read_data(self, seq: int, header: dict[str, Any], lines: list[Any]) -> None:
        groups: dict[int, list[Any]] = {}
        for line in lines:
            groups.setdefault(_int(line[0]["ord"]), []).append(line)
        if list(groups) != list(range(self._ordinal, self._ordinal + len(groups))):
            self._fault(f"segment {seq}: its ordinals are not dense from {self._ordinal}: {list(groups)[:5]}")
        if len(groups) != _int(header["transactions"]) or len(lines) != _int(header["changes"]):
            self._fault(f"segment {seq} holds {len(groups)} transactions, {len(lines)} changes; its header differs")
        for group, length in zip(groups.values(), header["ends"], strict=True):
            self._emit(seq, group, _int(length))

    def _emit(self, seq: int, told: list[tuple[Any, Change]], length: int) -> None:
        lines = [line for line, _ in told]
        commit_lsn = parse_lsn(lines[0]["lsn"])
        if {line["lsn"] for line in lines} != {lines[0]["lsn"]} or len({_int(line["xid"]) for line in lines}) != 1:
            self._fault(f"segment {seq}: lines of several transactions under ordinal {lines[0].get('ord')}")
        if [_int(line["seq"]) for line in lines] != list(range(len(lines))):
            self._fault(f"segment {seq}: the changes of {lines[0]['lsn']} are not numbered 0, 1, 2 ...")
        if commit_lsn < self._end_lsn:
            self._fault(f"segment {seq}: {lines[0]['lsn']} comes after a later commit")
        self._end_lsn = commit_lsn + length
        changes = tuple(change for _, change in told)
        self._archive.transactions.append(Transaction(_int(lines[0]["xid"]), self._end_lsn, changes, commit_lsn))

    def _change(self, line: dict[str, Any], reshaped: dict[str, Any] | None) -> Change:
        if reshaped is not None:
            self._describe({reshaped["table"]: reshaped["relation"]})
        op = line["op"]
        if op == "m":
            note = f"{int(line['transactional'])} {line['prefix']} {shorten(_string(line['content']))}"
            return Change("m", note=note)
        table = line["table"]
        if op == "t":
            return Change("t", table=table, note=f"cascade={line['cascade']} restart={line['restart_identity']}")
        new, old = self._row(table, line.get("after")), self._row(table, line.get("before"))
        self._check_key(line, new, old)
        return Change(op, table, new, _without_nulls(old), frozenset(line.get("unchanged", ())))

    def _check_key(self, line: dict[str, Any], new: Row | None, old: Row | None) -> None:
        row = (old if new is None else new) or {}
        key = self._row(line["table"], line["key"]) or {}
        if tuple(key) != self._archive.keys[line["table"]] or any(row.get(name) != key[name] for name in key):
            self._fault(f"the key of {line['lsn']} change {_int(line['seq'])} is not its row's")

    def _row(self, table: str, values: dict[str, Any] | None) -> Row | None:
        if values is None:
            return None
        types = {column["name"]: column["type"] for column in self._relations[table]["columns"]}
        return {name: decode_value(types[name], value) for name, value in values.items()}

    def _read_base(self, base: dict[str, Any]) -> None:
        self._archive.consistent_lsn = at = parse_lsn(base["consistent_lsn"])
        self._archive.begins_lsn = self._archive.begins_lsn or at
        self._archive.gaps = [(first, at if last is None else last) for first, last in self._archive.gaps]
        self._archive.base, self._archive.before_base = {}, len(self._archive.transactions)
        for chunk in base["chunks"]:
            body = next((body for key, body in self._objects.items() if key.endswith(chunk["key"])), None)
            if body is None or hashlib.sha256(body).hexdigest() != chunk["sha256"]:
                self._fault(f"{chunk['key']} is missing or not what was committed")
                continue
            header, *lines = read_lines(body)
            self._describe(header["relations"])
            rows = self._archive.base.setdefault(chunk["table"], [])
            rows += [row for line in lines if (row := self._row(chunk["table"], line["after"])) is not None]


def _without_nulls(row: Row | None) -> Row | None:
    return None if row is None else {name: value for name, value in row.items() if value is not None}


def _int(number: Any) -> int:
    """The number that `loads` left as digits."""
    if not isinstance(number, list) or number[:1] != ["number"]:
        raise TypeError(f"not a number: {number!r}")
    return int(number[1])


def _string(value: Any) -> str:
    if isinstance(value, dict) and list(value) == ["$base64"]:
        return base64.b64decode(value["$base64"]).decode("latin-1")
    if not isinstance(value, str):
        raise TypeError(f"not a string: {value!r}")
    return value


def decode_value(type_name: str, value: Any) -> Value:
    """The value as text, if it is spelled as the contract says for its type."""
    if value is None:
        return None
    base_type = type_name.removeprefix("pg_catalog.")
    if base_type in _INTEGERS:
        return str(_int(value))
    if base_type in _FLOATS:
        return value if isinstance(value, str) else _digits(value)
    if base_type in ("boolean", "bool"):
        if not isinstance(value, bool):
            raise TypeError(f"not a boolean: {value!r}")
        return "true" if value else "false"
    if base_type in ("json", "jsonb"):
        inner = value["$json"] if isinstance(value, dict) and list(value)[:1] == ["$json"] else value
        return Json.of(inner)
    return shorten(_string(value))


def _digits(number: list[str]) -> str:
    _kind, digits = number
    return digits
