"""The checker: is what the archive and the cache hold what the application committed? It reads only the outside.

The truth is the witness (tests/faults/witness.py) and the tables. `check` gives findings, a sentence each; none means:
nothing lost, doubled, reordered, torn, invented or altered in the archive; base and log replayed are the tables; the
cache is the tables. The samplers look on during the run for what no final state can show: an acknowledgement ahead
of the archive, a cache key that goes back to an older version or shows one that nobody committed (`reads`), a moment
that cannot be restored as it was (`restore_points`). As a process of its own all of this is `program`.
"""

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
import redis

from tests.faults.background import Background
from tests.faults.history import Json, Row, Transaction, Value, compare, loads, shorten
from tests.faults.objects import Archive, decode_value, owed_upto, read_archive
from tests.faults.reads import FULL, STATE, STATE_COLUMNS, Reads, Version, check_reads, digest
from tests.support.cdc_process import confirmed_flush_lsn

TABLES = ("public.turns", "public.outbox")
HISTORY_LIMIT = 200
_SESSIONS_AT_ONCE = 20
_KEYS_AT_ONCE = 500
_KNOWN_READS = 200_000

_SESSION = """
SET datestyle = 'ISO'; SET intervalstyle = 'iso_8601'; SET timezone = 'UTC';
SET extra_float_digits = 3; SET bytea_output = 'hex'
"""
_COLUMNS = """
SELECT attname, format_type(atttypid, NULL) FROM pg_attribute
 WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""


@dataclass
class Verdict:
    """`findings` are what is wrong; `figures` what was looked at."""

    findings: list[str] = field(default_factory=list)
    figures: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join(f"{name}={figure}" for name, figure in self.figures.items()) + "".join(
            f"\n  {finding}" for finding in self.findings[:40]
        )


@dataclass
class Table:
    types: dict[str, str]
    rows: list[Row]


def check(
    dsn: str,
    objects: Mapping[str, bytes],
    cache_url: str | None,
    told: Sequence[Transaction],
    *,
    breaks_are_told: bool = False,
    reads: Reads | None = None,
    before: Sequence[Row] = (),
) -> Verdict:
    """Everything that can be said at the end of a run, when nobody writes any more and both sinks have caught up.

    `breaks_are_told`: the run lost slots or changed timelines on purpose. Then gaps and forks that the archive records
    are no findings, and neither is what is missing inside of a recorded gap. `reads` are a cache sampler's, `before`
    the turns that were there before the witness.
    """
    archive = read_archive(objects)
    tables = {name: read_table(dsn, name) for name in TABLES}
    verdict = Verdict([fault for fault in archive.faults if not (breaks_are_told and fault in archive.breaks)])
    verdict.figures["breaks"] = len(archive.breaks)
    check_history(archive, told, verdict)
    check_replay(archive, tables, verdict)
    if cache_url is not None:
        with redis.Redis.from_url(cache_url) as client:
            check_cache(client, tables["public.turns"], unsettled_sessions(told), verdict)
    if reads is not None:
        verdict.findings += check_reads(reads, told, before)
        verdict.figures |= {"cache_reads": reads.count, "rows_read": len(reads.of_row)}
    return verdict


def check_history(archive: Archive, told: Sequence[Transaction], verdict: Verdict) -> None:
    """The log is the witness's tale from the first base on, but for what recorded gaps say is missing."""
    there = {transaction.name for transaction in archive.transactions}
    expected = [
        transaction
        for transaction in told
        if transaction.end_lsn > archive.begins_lsn
        and (transaction.name in there or not archive.in_gap(transaction.end_lsn))
    ]
    differences = compare(expected, archive.transactions)
    verdict.figures |= {
        "transactions": len(archive.transactions),
        "changes": sum(len(transaction.changes) for transaction in archive.transactions),
        "segments": sum(archive.kinds.values()),
        "writers": len(archive.writers),
        "lost": len(differences.lost),
        "duplicate": len(differences.duplicate),
        "reordered": len(differences.reordered),
        "torn": len(differences.torn),
        "altered": len(differences.altered),
        "phantom": len(differences.phantom),
    }
    if differences:
        verdict.findings.append(f"archive and witness differ: {differences}")
    if expected and archive.covered_upto < expected[-1].end_lsn:
        verdict.findings.append("the archive does not say that it covers the last transaction")


def check_replay(archive: Archive, tables: Mapping[str, Table], verdict: Verdict) -> None:
    """Base and log, applied to empty tables, give the tables."""
    replayed = replay(archive)
    for name, table in tables.items():
        keys = archive.keys.get(name, ("id",))
        truth = {tuple(row[key] for key in keys): row for row in table.rows}
        found = replayed.get(name, {})
        wrong = [key for key in {**truth, **found} if truth.get(key) != found.get(key)]
        verdict.figures[f"rows_{name.split('.')[1]}"] = len(truth)
        if wrong:
            verdict.findings.append(f"replayed, {name} differs in {len(wrong)} rows: {_describe(wrong, truth, found)}")


def _describe(wrong: Sequence[Any], truth: Mapping[Any, Row], found: Mapping[Any, Row]) -> str:
    """The first few rows that differ, and where."""
    told = []
    for key in wrong[:5]:
        a, b = truth.get(key), found.get(key)
        if a is None or b is None:
            told.append(f"{key} {'should not be there' if a is None else 'is missing'}")
        else:
            told.append(f"{key} " + ", ".join(f"{n}: {a[n]!r} became {b.get(n)!r}" for n in a if a[n] != b.get(n)))
    return "; ".join(told)


def replay(archive: Archive) -> dict[str, dict[tuple[Value, ...], Row]]:
    state: dict[str, dict[tuple[Value, ...], Row]] = defaultdict(dict)

    def key_of(table: str, row: Row) -> tuple[Value, ...]:
        return tuple(row.get(name) for name in archive.keys[table])

    for table, rows in archive.base.items():
        for row in rows:
            state[table][key_of(table, row)] = row
    for transaction in archive.transactions[archive.before_base :]:
        for change in transaction.changes:
            if change.op == "t":
                state[change.table].clear()
            elif change.op != "m":
                last = change.old if change.old is not None else change.new
                before = state[change.table].pop(key_of(change.table, last or {}), {})
                if change.new is not None:
                    kept = {name: before.get(name) for name in change.unchanged}
                    state[change.table][key_of(change.table, change.new)] = {**change.new, **kept}
    return dict(state)


def read_types(dsn: str, name: str) -> dict[str, str]:
    """The type of each column of a table, in order."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return _types(connection, name)


def _types(connection: psycopg.Connection[Any], name: str) -> dict[str, str]:
    return dict(connection.execute(_COLUMNS, [name]).fetchall())


def read_table(dsn: str, name: str) -> Table:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_SESSION)
        types = _types(connection, name)
        cursor = connection.execute(f"SELECT * FROM {name}".encode())
        result = cursor.pgresult
        assert result is not None
        rows = [
            {
                column: _printed(result.get_value(row, at), type_name)
                for at, (column, type_name) in enumerate(types.items())
            }
            for row in range(result.ntuples)
        ]
    return Table(types, rows)


def _printed(value: bytes | None, type_name: str) -> Value:
    """What Postgres printed, spelled as the archive's reader spells it."""
    if value is None:
        return None
    text = value.decode()
    if type_name in ("json", "jsonb"):
        return Json.parse(text)
    if type_name == "boolean":
        return "true" if text == "t" else "false"
    return shorten(text)


def unsettled_sessions(told: Sequence[Transaction]) -> set[str]:
    """Sessions that a turn left or came to from another: their `state` may be missing.

    Whose newest turn goes has no state, for nobody told the cache which turn was second; and a turn that comes from
    another session cannot be known to be the newest where there is no state.
    """
    found: set[str] = set()
    for transaction in told:
        for change in transaction.changes:
            if change.table == "public.turns" and change.old is not None:
                before, after = change.old.get("session_hash"), (change.new or {}).get("session_hash")
                if before != after:
                    found |= {session for session in (before, after) if isinstance(session, str)}
    return found


def check_cache(client: redis.Redis, turns: Table, unsettled: set[str], verdict: Verdict) -> None:
    """Every row, every session's history and state, and no key that should not be there."""
    sessions: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(turns.rows, key=_id):
        sessions[str(row["session_hash"])].append(row)
    expected: set[str] = set()
    wrong: list[str] = []
    for row in turns.rows:
        key = f"turn:{row['turn_id']}"
        expected.add(key)
        if _cached_row(client.get(key), turns) != row:
            wrong.append(key)
    for session, rows in sessions.items():
        expected |= {f"session:{session}:turns", f"session:{session}:state"}
        wrong += _wrong_session(client, session, rows, turns, may_be_missing=session in unsettled)
    found = {key.decode() for pattern in ("turn:*", "session:*") for key in client.scan_iter(match=pattern, count=1000)}
    verdict.figures |= {"keys": len(found), "sessions": len(sessions), "stale_keys": len(wrong)}
    if wrong:
        verdict.findings.append(f"{len(wrong)} cache keys are not what Postgres holds: {wrong[:8]}")
    if found - expected:
        verdict.findings.append(f"{len(found - expected)} cache keys have no row: {sorted(found - expected)[:8]}")
    immortal = [key for key in sorted(found)[:200] if client.pttl(key) <= 0]
    if immortal:
        verdict.findings.append(f"{len(immortal)} cache keys never expire: {immortal[:8]}")


def _wrong_session(
    client: redis.Redis,
    session: str,
    rows: Sequence[Row],
    turns: Table,
    *,
    may_be_missing: bool,
) -> list[str]:
    wrong = []
    key = f"session:{session}:turns"
    members: Any = client.zrange(key, 0, -1, withscores=True)
    told = [(_cached_row(member, turns), score) for member, score in members]
    if told != [(row, float(_id(row))) for row in rows[-HISTORY_LIMIT:]]:
        wrong.append(key)
    key = f"session:{session}:state"
    state = _cached_row(client.get(key), turns)
    newest = {name: rows[-1][name] for name in STATE_COLUMNS}
    if state != newest and not (state is None and may_be_missing):
        wrong.append(key)
    return wrong


def _id(row: Row) -> int:
    return int(str(row["id"]))


def _cached_row(value: Any, table: Table) -> Row | None:
    if value is None:
        return None
    try:
        return {name: decode_value(table.types[name], found) for name, found in loads(value).items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {"unreadable": str(value[:200])}


class Sampler(Background):
    """A thread that looks on until stopped, and remembers what it saw go wrong."""

    def __init__(self, look: Callable[[], list[str]], pause_s: float, name: str) -> None:
        self.findings: list[str] = []
        self.looks = 0
        self._look = look
        self._pause_s = pause_s
        super().__init__(name)

    def _run(self) -> None:
        while not self._stopping.wait(self._pause_s):
            try:
                self.findings += self._look()
                self.looks += 1
            except (
                psycopg.OperationalError,
                redis.ConnectionError,
                redis.TimeoutError,
                redis.BusyLoadingError,
                OSError,
            ):
                continue
            except Exception as error:  # a sampler that dies unseen would prove nothing
                self.findings.append(f"the sampler failed: {type(error).__name__}: {error}")
                return


def acknowledgement_sampler(dsn: str, tail: Callable[[], bytes | None], slot: str = "cdc") -> Sampler:
    """P1: `confirmed_flush_lsn` is never above what the archive holds.

    `tail` gives the archive's last segment. The slot is read first and the archive after it; the archive only grows, so
    a finding is never a false alarm. While a slot is new and its snapshot not archived, nothing is promised yet.
    """

    def look() -> list[str]:
        confirmed = confirmed_flush_lsn(dsn, slot)
        last = tail()
        owed = None if last is None else owed_upto(last)
        if not confirmed or owed is None or confirmed <= owed:
            return []
        return [f"acknowledged {confirmed:X} while the archive held {owed:X}"]

    return Sampler(look, 0.05, "acknowledgements")


@dataclass(frozen=True, slots=True)
class _Read:
    """A value of the cache: the number that the workload gave to this version of the row, and what `Reads` wants."""

    number: int
    row_id: str
    version: Version


class CacheSampler(Sampler):
    """Looks at the cache. `reads` are for `check_reads`, which knows at the end what was committed."""

    def __init__(self, cache_url: str, dsn: str | None, flushed: bool) -> None:
        self.reads = Reads()
        self._client = redis.Redis.from_url(cache_url)
        self._flushed = flushed
        self._turns = None if dsn is None else Table(read_types(dsn, TABLES[0]), [])
        self._versions: dict[bytes, int] = {}
        self._gone: set[bytes] = set()
        self._known: dict[tuple[str, bytes], _Read] = {}
        self._dice = random.Random(1)
        super().__init__(self._look_at_both, 0.02, "cache")

    def _look_at_both(self) -> list[str]:
        findings = self._look_at_turns()
        if self._turns is not None:
            self._look_at_sessions(self._turns)
        return findings

    def _look_at_turns(self) -> list[str]:
        findings = []
        keys = list(self._client.scan_iter(match="turn:*", count=2000))
        wanted = list({*keys, *self._versions} - self._gone)
        for at in range(0, len(wanted), _KEYS_AT_ONCE):
            some = wanted[at : at + _KEYS_AT_ONCE]
            values: Any = self._client.mget(some)
            for key, value in zip(some, values, strict=True):
                if value is None:
                    if key in self._versions and not self._flushed:
                        self._gone.add(key)
                    continue
                read = self._note(key, value, FULL)
                if read.number < self._versions.get(key, 0):
                    findings.append(f"{key.decode()} went back from version {self._versions[key]} to {read.number}")
                self._versions[key] = max(read.number, self._versions.get(key, 0))
        back = [key for key in self._gone & set(keys) if self._client.get(key)]
        return findings + [f"{key.decode()} came back after it was gone" for key in back]

    def _look_at_sessions(self, turns: Table) -> None:
        """A few sessions each time: their history, row by row, and their state."""
        keys: list[bytes] = list(self._client.scan_iter(match="session:*", count=2000))
        for key in self._dice.sample(keys, min(len(keys), _SESSIONS_AT_ONCE)):
            if key.endswith(b":state"):
                state: Any = self._client.get(key)
                if state is not None:
                    self._note(key, state, STATE)
            else:
                members: Any = self._client.zrange(key, 0, -1)
                for member in members:
                    self._note(key, member, FULL)

    def _note(self, key: bytes, value: bytes, shape: str) -> _Read:
        """Most of what is read was read before: it is parsed once."""
        name = (shape, hashlib.blake2b(value, digest_size=8).digest())
        read = self._known.get(name)
        if read is None:
            if len(self._known) > _KNOWN_READS:
                self._known.clear()
            read = self._known[name] = self._parse(value, shape)
        if self._turns is not None:
            self.reads.note_version(key.decode(), read.row_id, read.version)
        return read

    def _parse(self, value: bytes, shape: str) -> _Read:
        number = int(json.loads(value).get("redaction_version", 0))
        row = None if self._turns is None else _cached_row(value, self._turns)
        return (
            _Read(number, "", (shape, b""))
            if row is None
            else _Read(number, str(row.get("id")), (shape, digest(row, shape)))
        )


def cache_sampler(cache_url: str, *, dsn: str | None = None, flushed: bool = False) -> CacheSampler:
    """P5: no `turn:` key goes back to an older version, and none that was deleted comes back.

    The workload counts the versions of a row in `redaction_version` and never uses a turn_id twice. `flushed`: somebody
    flushes the cache during the run, so that absent keys may come back. With `dsn` every projection is read, and what
    was read is kept for `check_reads`.
    """
    return CacheSampler(cache_url, dsn, flushed)


if __name__ == "__main__":
    from tests.faults.program import main

    raise SystemExit(main())
