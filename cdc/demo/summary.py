"""Compares what the demo wrote with what arrived, and reports only what was looked at.

1. the archive is verified: its chain, order, density and checksums;
2. its transactions are counted against those that the application committed;
3. it is replayed, and the result compared with the tables, row by row and value by value;
4. the cache is compared with the tables: every history, row and latest, and no key more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from cdc.archive.bucket.bucket import Bucket, read_object
from cdc.archive.format.segment import decode_segment
from cdc.archive.proof.audit import verify
from cdc.archive.reader.reader import ArchiveReader
from cdc.cache.reader import CacheReader
from cdc.config import Projection
from cdc.demo.expectation import Expectation, expectations
from cdc.demo.replay import Key, Replay, compare, key_of
from cdc.demo.workload import Tally
from cdc.errors import CdcError
from cdc.postgres.quoting import quote_identifier
from cdc.postgres.session import Connection
from cdc.row import Row


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    what: str
    good: bool
    found: str


@dataclass(slots=True)
class Summary:
    checks: list[Check] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return bool(self.checks) and all(check.good for check in self.checks)

    def note_service(self, exit_code: int | None, address: str, verdict: str) -> None:
        """Check the verdict of /readyz, and the exit code after SIGTERM: only `ok` and 0 are good."""
        found = f"{address}readyz said {verdict}; "
        found += "stopped by SIGTERM with exit code 0" if exit_code == 0 else f"ended with exit code {exit_code}"
        self.checks.append(Check("service", exit_code == 0 and verdict == "ok", found))


async def summarise(
    connection: Connection, bucket: Bucket, cache: CacheReader, projections: Sequence[Projection], tally: Tally
) -> Summary:
    """Make every check, also after one has failed."""
    summary = Summary()
    summary.checks.append(await check_archive(bucket))
    try:
        replay = await replay_archive(bucket)
    except CdcError as error:
        summary.checks.append(Check("replay", False, error.explain()))
        return summary
    summary.checks.append(check_transactions(replay, tally))
    tables = await read_tables(connection, replay)
    summary.checks += check_tables(tables, replay)
    summary.checks.append(await check_cache(cache, projections, tables, replay))
    return summary


async def check_archive(bucket: Bucket) -> Check:
    try:
        report = await verify(bucket)
    except CdcError as error:
        return Check("archive", False, error.explain())
    if report.findings:
        first = report.findings[0]
        return Check("archive", False, f"{len(report.findings)} findings; {first.key} {first.problem}")
    found = (
        f"verified: {report.segments:,} segments, {report.transactions:,} transactions, {report.changes:,} changes, "
        f"{report.base_rows:,} rows from before"
    )
    return Check("archive", report.segments > 0, found)


async def replay_archive(bucket: Bucket) -> Replay:
    """Replay the archive: its snapshot's rows, then its transactions. Raises DataError."""
    replay, reader = Replay(), ArchiveReader(bucket)
    async for segment in reader.segments():
        for chunk in segment.header.base.chunks if segment.header.base else ():
            replay.begin_with(decode_segment(await read_object(bucket, chunk.key)).rows())
    async for transaction in reader.transactions(None):
        replay.apply(transaction)
    return replay


def check_transactions(replay: Replay, tally: Tally) -> Check:
    lost = max(0, tally.transactions - replay.transactions)
    duplicate = max(0, replay.transactions - tally.transactions)
    found = (
        f"{tally.transactions:,} committed, {replay.transactions:,} archived: {lost:,} lost, {duplicate:,} duplicate "
        f"({tally.rolled_back:,} rolled back, none archived)"
    )
    return Check("transactions", not lost and not duplicate, found)


async def read_tables(connection: Connection, replay: Replay) -> dict[str, dict[Key, Row]]:
    """Read the tables that the archive knows, as Postgres prints them now."""
    tables = {}
    for name, relation in replay.relations.items():
        columns = ", ".join(quote_identifier(column.name) for column in relation.columns)
        table = f"{quote_identifier(relation.schema)}.{quote_identifier(relation.name)}"
        rows: list[Row] = [[*row] for row in await connection.printed(f"SELECT {columns} FROM {table}")]
        tables[name] = {key_of(relation, row): row for row in rows}
    return tables


def check_tables(tables: Mapping[str, Mapping[Key, Row]], replay: Replay) -> list[Check]:
    """Make one check for each table."""
    return [_check_table(name, rows, replay) for name, rows in tables.items()] or [
        Check("tables", False, "the archive knows no table")
    ]


def _check_table(name: str, rows: Mapping[Key, Row], replay: Replay) -> Check:
    difference = compare(rows, replay.tables.get(name, {}))
    misfits = replay.duplicates.get(name, 0), replay.missing.get(name, 0)
    found = (
        f"{len(rows):,} rows compared with the archive's: {difference.lost:,} lost, "
        f"{difference.extra + misfits[0]:,} duplicate, {difference.unequal:,} different"
    )
    found += f", {misfits[1]:,} changes of rows that were not there" if misfits[1] else ""
    return Check(name, difference.none and not any(misfits), found)


async def check_cache(
    cache: CacheReader, projections: Sequence[Projection], tables: Mapping[str, Mapping[Key, Row]], replay: Replay
) -> Check:
    expected: list[Expectation] = []
    for name, rows in tables.items():
        relation, deleted = replay.relations[name], replay.deleted.get(name, [])
        expected += expectations(projections, relation, list(rows.values()), deleted)
    missing = wrong = 0
    for expectation in expected:
        found = await _read(cache, expectation)
        missing += found is None and not expectation.may_be_absent
        wrong += found is not None and found != expectation.rows
    extra = len(await cache.keys() - {expectation.key for expectation in expected})
    text = f"{len(expected):,} keys compared with the tables: {missing:,} missing, {wrong:,} wrong, {extra:,} too many"
    return Check("cache", bool(expected) and not (missing or wrong or extra), text)


async def _read(cache: CacheReader, expectation: Expectation) -> object:
    if expectation.is_history:
        return [orjson.loads(member) for member in await cache.members(expectation.key)] or None
    value = await cache.value(expectation.key)
    return None if value is None else orjson.loads(value)
