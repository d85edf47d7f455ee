"""`cdc restore`: restores the archive's tables at a moment, row for row, into another database.

1. walk the log to the moment, its chain checked (`cdc/archive/reader/history.py`);
2. check the target: it is not the source itself, and its tables are empty, or are created from their archived shapes;
3. the snapshot's rows by COPY, a chunk a transaction;
4. transactions in order, some to a commit, a large one in pieces and one commit;
5. sequences go on after the rows.

With each commit the target remembers how far the restore is. After a kill at any point, the same command goes on there.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.bucket.opening import open_bucket
from cdc.archive.bucket.unlocked import keys_of
from cdc.archive.format.header import relation_of
from cdc.archive.reader.history import History, RestorePoint, read_history
from cdc.change import Relation, RowChange, Transaction, parse_time
from cdc.config import ArchiveSettings
from cdc.crash import crash_point
from cdc.errors import DataError, Invalid
from cdc.lsn import parse_lsn
from cdc.postgres.target.database import Record, TargetDatabase, open_target
from cdc.postgres.target.statement import Script, Statement, TargetTable, Writers
from cdc.restore.ahead import ahead
from cdc.restore.chunk import CopyPiece, copy_pieces
from cdc.restore.meter import Meter

# One commit for so many bytes: rare enough to cost nothing, often enough to lose little when killed.
_COMMIT_BYTES = 2 * 1024 * 1024

# About a millisecond of decoding. After it the target's socket gets its turn.
_PAUSE_CHANGES = 128

# Pieces of chunks that wait for the target: some megabytes.
_PIECES_AHEAD = 8

_Script = tuple[list[Statement], Record | None, int]


@dataclass(slots=True)
class Outcome:
    """The result of a restore, or with `dry_run` its forecast."""

    history: History
    tables: list[str]
    dry_run: bool
    created: list[str] = field(default_factory=list)
    sequences: list[str] = field(default_factory=list)
    triggers_fired: bool = False
    resumed: bool = False
    rows: int = 0
    changes: int = 0
    transactions: int = 0
    next_ordinal: int = 0
    last_commit_lsn: int = 0
    seconds: float = 0.0


async def restore(
    settings: ArchiveSettings,
    into: str,
    until: RestorePoint,
    *,
    tables: Sequence[str] = (),
    dry_run: bool = False,
    meter: Meter | None = None,
) -> Outcome:
    """Restore whole tables, or say what would be done.

    Raises Invalid before anything is written, for all that can be known then. Raises Unavailable, or DataError for an
    archive that is damaged or does not fit the target.
    """
    started = time.monotonic()
    bucket = open_bucket(settings)
    try:
        history = await read_history(bucket, until)
        wanted = _choose(history, tables)
        async with open_target(into) as target:
            outcome = Outcome(history, [relation.qualified_name for relation in wanted], dry_run)
            await _Restore(bucket, target, history, wanted, outcome, meter).run()
    finally:
        await bucket.close()
    outcome.seconds = time.monotonic() - started
    return outcome


def _choose(history: History, tables: Sequence[str]) -> list[Relation]:
    unknown = [name for name in tables if name not in history.shapes]
    if unknown:
        raise Invalid(
            f"the archive has no table {', '.join(unknown)} at {history.until}",
            detail=f"It has {', '.join(sorted(history.shapes))}.",
            hint="--table SCHEMA.NAME",
        )
    return [relation_of(history.shapes[name]) for name in sorted(tables or history.shapes)]


class _Restore:
    """Runs one restore, from the check of the target to its sequences."""

    def __init__(
        self,
        bucket: Bucket,
        target: TargetDatabase,
        history: History,
        wanted: list[Relation],
        outcome: Outcome,
        meter: Meter | None,
    ) -> None:
        self._bucket = bucket
        self._target = target
        self._history = history
        self._wanted = wanted
        self._outcome = outcome
        self._advance: Callable[[int], None] = meter.advance if meter else lambda rows: None
        self._meter = meter

    async def run(self) -> None:
        _refuse_source(self._history, self._target)
        record = await self._find_record()
        self._expect(record)
        missing = await self._find_missing()
        if self._outcome.dry_run:
            self._outcome.created = missing
            self._outcome.next_ordinal = record.next_ordinal
            return
        tables = await self._prepare(record, missing)
        self._outcome.triggers_fired = not await self._target.put_off_triggers()
        writers = Writers(tables)
        record = await self._copy_base(record, tables)
        record = await self._replay(record, writers)
        for table in tables.values():
            self._outcome.sequences += await self._target.set_sequences(table)
        await self._target.finish(replace(record, finished=True))

    def _expect(self, record: Record) -> None:
        """Tell the meter what is left."""
        if self._meter is not None:
            chunks = self._history.base.chunks[record.chunks :]
            base_rows = sum(chunk.rows for chunk in chunks if chunk.table in self._outcome.tables)
            self._meter.expect(base_rows + self._history.changes_from(record.next_ordinal))

    async def _find_record(self) -> Record:
        """Find where an earlier run of the same restore stopped, or the beginning."""
        history = self._history
        tables = tuple(self._outcome.tables)
        fresh = Record(history.archive, history.base_seq, tables, 0, history.first_ordinal, False)
        records = await self._target.read_records()
        if not records:
            return fresh
        record = records[0]
        same = (record.archive, record.base_seq, record.tables) == (history.archive, history.base_seq, tables)
        if len(records) > 1 or not same or record.finished or record.next_ordinal > self._end_ordinal():
            raise Invalid(
                "the target holds another restore" if not record.finished else "the target holds a finished restore",
                detail=f"Archive {record.archive}, snapshot {record.base_seq}, tables {', '.join(record.tables)}, "
                f"restored up to ordinal {record.next_ordinal - 1}. Only the same restore goes on where it stopped.",
                hint="restore into a new database; or DROP TABLE cdc.restore; there, and empty the tables",
            )
        for fork in history.forks:
            if fork.lost_ordinal < record.next_ordinal <= fork.next_ordinal:
                raise Invalid(
                    "the target may hold transactions that the source has lost since",
                    detail=f"It was restored up to ordinal {record.next_ordinal - 1}, and then came {fork}.",
                    hint="restore into a new database; or DROP TABLE cdc.restore; there, and empty the tables",
                )
        self._outcome.resumed = True
        return record

    def _end_ordinal(self) -> int:
        ordinal = self._history.until.ordinal
        return self._history.next_ordinal if ordinal is None else ordinal + 1

    async def _find_missing(self) -> list[str]:
        """Find the tables to create. Raises Invalid for a table that has rows, or lacks archived columns."""
        missing = []
        for relation in self._wanted:
            table = await self._target.find_table(relation.schema, relation.name)
            if table is None:
                missing.append(relation.qualified_name)
                continue
            _check_columns(relation, table)
            if not self._outcome.resumed and await self._target.has_rows(table):
                raise Invalid(
                    f"{relation.qualified_name} in the target has rows",
                    detail="A restore goes into empty tables only, or its rows could not be told from others.",
                    hint=f"restore into a new database, or TRUNCATE {table.sql_name}; there",
                )
        return missing

    async def _prepare(self, record: Record, missing: Sequence[str]) -> dict[str, TargetTable]:
        tables: dict[str, TargetTable] = {}
        for relation in self._wanted:
            if relation.qualified_name in missing:
                await self._target.create_table(relation)
                self._outcome.created.append(relation.qualified_name)
            table = await self._target.find_table(relation.schema, relation.name)
            if table is not None:
                tables[relation.qualified_name] = table
        if not self._outcome.resumed:
            await self._target.begin(record)
        return tables

    async def _copy_base(self, record: Record, tables: dict[str, TargetTable]) -> Record:
        """Copy the chunks, each in one transaction. The next is decoded meanwhile, so Postgres never waits for us."""
        chunks = self._history.base.chunks
        async with aclosing(ahead(self._base_pieces(record.chunks, tables), _PIECES_AHEAD)) as pieces:
            async for number, piece in pieces:
                table = tables[chunks[number].table]
                lines = self._lines_of_chunk(piece, pieces)
                copied = await self._target.copy(table.copy(piece.columns), lines)
                if copied != chunks[number].rows:
                    raise DataError(f"COPY took {copied} of {chunks[number].rows} rows into {table.qualified_name}")
                record = replace(record, chunks=number + 1)
                await self._target.write([], record)
                crash_point("restore_chunk_committed")
                self._outcome.rows += copied
        return record

    async def _base_pieces(self, first: int, tables: dict[str, TargetTable]) -> AsyncGenerator[tuple[int, CopyPiece]]:
        chunks = self._history.base.chunks
        async with aclosing(self._history.chunk_bodies(self._bucket, first, tables.keys())) as bodies:
            async for number, body in bodies:
                wanted = tables[chunks[number].table].writable
                for piece in copy_pieces(body, wanted, keys_of(self._bucket)):
                    yield number, piece

    async def _lines_of_chunk(
        self, piece: CopyPiece, following: AsyncGenerator[tuple[int, CopyPiece]]
    ) -> AsyncIterator[bytes]:
        yield piece.lines
        self._advance(piece.rows)
        while not piece.last:
            _, piece = await anext(following)
            yield piece.lines
            self._advance(piece.rows)

    async def _replay(self, record: Record, writers: Writers) -> Record:
        """Run the scripts on the target. While it runs one, the next is made."""
        async with aclosing(ahead(self._scripts(record, writers), 1)) as scripts:
            async for statements, then, changes in scripts:
                await self._target.write(statements, then)
                if then is not None:
                    crash_point("restore_transactions_committed")
                    record = then
                self._advance(changes)
        self._outcome.next_ordinal = record.next_ordinal
        return record

    async def _scripts(self, record: Record, writers: Writers) -> AsyncGenerator[_Script]:
        """Make scripts of the transactions. Commits fall between transactions; a large one goes out in pieces."""
        script, changes, since_pause = Script(writers), 0, 0
        async for ordinal, transaction in self._history.transactions(self._bucket, record.next_ordinal):
            self._add(script, transaction)
            changes += len(transaction.changes)
            since_pause += len(transaction.changes)
            if transaction.last:
                record = replace(record, next_ordinal=ordinal + 1)
            if script.weight >= _COMMIT_BYTES:
                yield script.finish(), record if transaction.last else None, changes
                changes = 0
            if since_pause >= _PAUSE_CHANGES:
                since_pause = 0
                await asyncio.sleep(0)
        yield script.finish(), record, changes

    def _add(self, script: Script, transaction: Transaction) -> None:
        for change in transaction.changes:
            script.add(change)
        script.weight += transaction.nbytes
        outcome = self._outcome
        outcome.changes += sum(isinstance(change, RowChange) for change in transaction.changes)
        outcome.transactions += transaction.last
        outcome.last_commit_lsn = transaction.commit_lsn


def _refuse_source(history: History, target: TargetDatabase) -> None:
    source, server = history.source, target.server
    if (source.epoch.system_identifier, source.database) == (server.epoch.system_identifier, server.database):
        raise Invalid(
            f"the target is the archive's own source, database {source.database}",
            detail="Restored rows would be archived again, as new changes.",
            hint=f"CREATE DATABASE {source.database}_restored;   -- and cdc restore --into that",
        )


def _check_columns(relation: Relation, table: TargetTable) -> None:
    absent = [column.name for column in relation.columns if column.name not in table.columns]
    if absent:
        raise Invalid(
            f"{relation.qualified_name} in the target lacks archived columns: {', '.join(absent)}",
            hint="pg_dump --schema-only of the source as it was then, or drop the table and it is made from its shape",
        )


def read_until(lsn: str | None, moment: str | None, ordinal: int | None) -> RestorePoint:
    """Read the moment as a command line names it. Raises Invalid."""
    if sum(given is not None for given in (lsn, moment, ordinal)) > 1:
        raise Invalid("only one of --to-lsn, --to-time and --to-ordinal can be meant")
    try:
        return RestorePoint(
            None if lsn is None else parse_lsn(lsn), None if moment is None else parse_time(moment), ordinal
        )
    except (ValueError, TypeError) as error:
        raise Invalid(
            "the moment to restore to cannot be read",
            detail=str(error),
            hint="--to-lsn 16/B374D848, or --to-time 2026-11-22T18:07:13Z (with its zone)",
        ) from None
