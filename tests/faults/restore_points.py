"""P4 during a run: the database at random moments, and the same moments restored from the archive.

A moment is a temporary logical slot's exported snapshot, the one way in which Postgres ties a state of the tables to a
position of the WAL; `digests` are taken of it while everybody writes on. At the end `cdc restore --to-lsn` gives each
moment back in a scratch database, where the same digests are taken.
"""

import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.faults.background import Background
from tests.faults.history import Transaction
from tests.faults.objects import Archive
from tests.support.cdc_process import parse_lsn, query, run_cdc

TABLES = ("public.turns", "public.outbox")

# The sum of the rows' digests: no order, no sorting, and no bound of a gigabyte as for an aggregated text.
_DIGEST = "SELECT count(*), coalesce(sum(('x' || left(md5(t::text), 15))::bit(60)::bigint), 0)::text FROM {} AS t"

Digests = dict[str, tuple[int, str]]


@dataclass(frozen=True)
class Moment:
    """The tables as they were before everything that ends at or after `lsn`; looked at until `read_upto`."""

    lsn: int
    read_upto: int
    digests: Digests

    @property
    def restore_lsn(self) -> str:
        """What `--to-lsn` must say: the last byte before."""
        last = self.lsn - 1
        return f"{last >> 32:X}/{last & 0xFFFFFFFF:X}"


def digests(dsn: str) -> Digests:
    with psycopg.connect(dsn) as connection:
        return _digests(connection)


def _digests(connection: psycopg.Connection[Any]) -> Digests:
    connection.execute("SET LOCAL timezone = 'UTC'")
    found = {}
    for table in TABLES:
        row = connection.execute(_DIGEST.format(table).encode()).fetchone()
        assert row is not None
        found[table] = (int(row[0]), str(row[1]))
    return found


def look(dsn: str) -> Moment:
    """One moment of a database, exactly."""
    name = f"moment_{uuid.uuid4().hex}"
    # A replication connection speaks only the simple protocol, and its snapshot lives until its next command.
    exporter = psycopg.connect(make_conninfo(dsn, replication="database"), autocommit=True)
    with exporter, psycopg.connect(dsn) as reader:
        option = "(SNAPSHOT 'export')" if exporter.info.server_version >= 150000 else "EXPORT_SNAPSHOT"
        cursor = psycopg.ClientCursor(exporter)
        cursor.execute(f"CREATE_REPLICATION_SLOT {name} TEMPORARY LOGICAL test_decoding {option}".encode())
        made = cursor.fetchone()
        assert made is not None
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        reader.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(made[2]))
        found = _digests(reader)
        upto = query(dsn, "SELECT pg_current_wal_insert_lsn()::text")[0][0]
    return Moment(parse_lsn(made[1]), parse_lsn(upto), found)


class Moments(Background):
    """A thread that looks at random moments until the block ends.

    It keeps no more than twice `limit`; then it forgets every other one at random and looks half as often, so that the
    moments of a long run are spread over all of it, and cost little.
    """

    def __init__(self, dsn: str, *, limit: int = 20, mean_pause_s: float = 1.0, seed: int = 1) -> None:
        self.taken: list[Moment] = []
        self.findings: list[str] = []
        self._dsn = dsn
        self._limit = limit
        self._mean_pause_s = mean_pause_s
        self._dice = random.Random(seed)
        super().__init__("moments")

    def _run(self) -> None:
        while self._limit:
            if self._stopping.wait(self._dice.expovariate(1 / self._mean_pause_s)):
                return
            try:
                self.taken.append(look(self._dsn))
                self._forget()
            except psycopg.Error:
                continue  # the server is away, or promoted while we looked
            except Exception as error:  # a thread that dies unseen would prove nothing
                self.findings.append(f"no moment could be taken: {type(error).__name__}: {error}")
                return

    def _forget(self) -> None:
        if len(self.taken) == 2 * self._limit:
            self.taken = sorted(self._dice.sample(self.taken, self._limit), key=lambda moment: moment.lsn)
            self._mean_pause_s *= 2


def check_restores(
    admin_dsn: str,
    config_file: Path,
    moments: Sequence[Moment],
    told: Sequence[Transaction],
    archive: Archive,
    *,
    limit: int = 20,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, list[str]]:
    """Restore moments, each into a database of its own; how many were compared, and what differs.

    A TRUNCATE empties a table for older snapshots too (manual, "not MVCC-safe"): a moment that had one while it was
    looked at says nothing. Nor does one from before the archive's first snapshot, or from inside a gap.
    """
    fit = [moment for moment in moments if _is_comparable(moment, told, archive)]
    chosen = random.Random(1).sample(fit, min(limit, len(fit)))
    found = [_check_restore(admin_dsn, config_file, moment, environment or {}) for moment in chosen]
    return len(chosen), [finding for findings in found for finding in findings]


def _is_comparable(moment: Moment, told: Sequence[Transaction], archive: Archive) -> bool:
    recorded = moment.lsn > archive.begins_lsn and not archive.in_gap(moment.lsn)
    return recorded and not _truncated_meanwhile(moment, told)


def _truncated_meanwhile(moment: Moment, told: Sequence[Transaction]) -> bool:
    return any(
        change.op == "t"
        for transaction in told
        if moment.lsn <= transaction.end_lsn <= moment.read_upto
        for change in transaction.changes
    )


def _check_restore(admin_dsn: str, config_file: Path, moment: Moment, environment: Mapping[str, str]) -> list[str]:
    name = f"restored_{uuid.uuid4().hex[:12]}"
    into = make_conninfo(admin_dsn, dbname=name)
    query(admin_dsn, f"CREATE DATABASE {name} TEMPLATE template0")
    try:
        arguments = ("--config", str(config_file), "--into", into, "--to-lsn", moment.restore_lsn)
        done = run_cdc("restore", *arguments, environment=environment, timeout_s=600)
        if done.returncode:
            return [f"{moment.restore_lsn} cannot be restored: {done.stderr.strip()[-500:]}"]
        found = digests(into)
    finally:
        query(admin_dsn, f"DROP DATABASE {name} WITH (FORCE)")
    return [
        f"restored to {moment.restore_lsn}, {table} differs: {then[0]} rows then, {found[table][0]} restored"
        for table, then in moment.digests.items()
        if found[table] != then
    ]
