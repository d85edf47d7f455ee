"""`cdc drill`: restores the archive where it does no harm, compares the result with the live tables, and cleans up.

1. the moment: a temporary slot on the source exports a snapshot at one LSN (`cdc/restore/comparison.py`);
2. a scratch database, in an embedded Postgres or on the server of `--into`, with the tables' archived shapes;
3. a restore up to that LSN (`cdc/restore/whole.py`), whose duration is measured;
4. the restored rows against the live ones of the snapshot;
5. the scratch is dropped, and `proof/drill.json` says how it ended: a metric, and a line of `cdc status`.

A sample consists of whole tables, because an archive gives states of whole tables. It is the tables of `--table`, or
`--sample` tables that are drawn at random each time. By default as many are drawn as half of the budget should suffice
for, at the pace of the last good drill; of a small archive that is all. The budget is also a limit: a drill that
exceeds it has failed.
"""

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.bucket.opening import open_bucket
from cdc.archive.format.header import relation_of
from cdc.archive.proof.proofs import DRILL_KEY, RememberedRun, only_of, read_proofs, remember_run, success
from cdc.archive.reader.history import History, RestorePoint
from cdc.archive.reader.tail import Tail, read_tail
from cdc.archive.state.table_state import TableState
from cdc.change import READ, Relation, RowChange
from cdc.config import Settings
from cdc.errors import CdcError, Invalid, Unavailable
from cdc.postgres.publication import PublishedTable
from cdc.postgres.session import connect
from cdc.postgres.snapshot import SnapshotReader
from cdc.postgres.target.database import settings_of
from cdc.postgres.target.scratch import prepare_tables, read_missing_values, scratch_database
from cdc.restore import Outcome, comparison, restore
from cdc.restore.comparison import Comparison

# The pace of a first drill, in rows and changes a second: a slow disk's. The other half of the budget is a reserve.
_ROWS_PER_S = 5000.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The drill that the command line asks for. `into` None: on an embedded server."""

    into: str | None = None
    tables: tuple[str, ...] = ()
    sample: int | None = None
    budget_s: float = 3600.0
    patience_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Drill:
    """The result of a drill. `tables_archived` counts all tables of the archive, also those not drawn.

    `seconds` is the duration of the whole drill, not of the restore alone. `unremembered` says why the result could not
    be written down, or ''.
    """

    found: Comparison
    restored: Outcome
    tables_archived: int
    seconds: float
    unremembered: str

    @property
    def rows_per_s(self) -> float:
        return (self.restored.rows + self.restored.changes) / max(self.restored.seconds, 0.001)


async def drill(settings: Settings, plan: Plan) -> Drill:
    """Run a drill and remember how it ended.

    Raises Invalid for a mistake in the command line or a server's setup. It raises other CdcErrors too, and remembers
    them as a failed drill.
    """
    started = time.monotonic()
    bucket = open_bucket(settings.archive)
    try:
        tail = await read_tail(bucket)
        if tail is None:
            raise Invalid(f"there is no archive yet at {bucket.url}", hint="cdc status")
        try:
            rehearsal = await _Rehearsal.of(settings, plan, tail, bucket)
            found = await _within_budget(rehearsal, plan)
        except Invalid:
            raise
        except CdcError as error:
            await _remember(bucket, tail, error.message)
            raise
        unremembered = await _remember(bucket, tail, comparison.failure(found), found, rehearsal.outcome)
        seconds = time.monotonic() - started
        return Drill(found, rehearsal.outcome, rehearsal.tables_archived, seconds, unremembered)
    finally:
        await bucket.close()


async def _within_budget(rehearsal: "_Rehearsal", plan: Plan) -> Comparison:
    """Run the drill until its budget ends or SIGTERM comes. Both remove what was made, and then raise Unavailable."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        async with asyncio.timeout(plan.budget_s):
            return await rehearsal.run()
    except TimeoutError:
        raise Unavailable(
            f"the drill has not ended within its budget of {plan.budget_s:.0f} s",
            hint="cdc drill --budget 7200, or --sample 1, or --table SCHEMA.NAME",
        ) from None
    except asyncio.CancelledError:
        raise Unavailable("the drill was asked to stop", hint="cdc drill") from None
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


async def _remember(
    bucket: Bucket, tail: Tail, failure: str, found: Comparison | None = None, outcome: Outcome | None = None
) -> str:
    now_us = time.time_ns() // 1000
    good = None
    if found is not None and outcome is not None and not failure:
        good = success(now_us, found.lsn, found.rows, changes=outcome.changes, seconds=outcome.seconds)
    return await remember_run(
        bucket, DRILL_KEY, archive=tail.archive, command="cdc drill", now_us=now_us, failure=failure, success=good
    )


class _Rehearsal:
    """Runs the restore in the middle of a comparison."""

    outcome: Outcome

    def __init__(self, settings: Settings, plan: Plan, tail: Tail, rows_per_s: float) -> None:
        self._settings = settings
        self._plan = plan
        self._tail = tail
        self._affordable_rows = int(rows_per_s * plan.budget_s / 2)
        self._server = ""
        self.tables_archived = 0

    @classmethod
    async def of(cls, settings: Settings, plan: Plan, tail: Tail, bucket: Bucket) -> "_Rehearsal":
        """Make one with the pace of the last good drill."""
        last: RememberedRun | None = only_of(await read_proofs(bucket), tail.archive).drill
        good = None if last is None else last.success
        return cls(settings, plan, tail, good.rows_per_s if good is not None and good.seconds else _ROWS_PER_S)

    async def run(self) -> Comparison:
        patience_s = self._plan.patience_s
        async with _lent_server(self._plan.into) as self._server:
            return await comparison.compare(
                self._settings.archive, self._settings.postgres, patience_s=patience_s, replay=self._restore
            )

    async def _restore(self, _bucket: Bucket, history: History) -> tuple[dict[str, TableState], int]:
        names = choose(history, self._plan, self._affordable_rows, random.SystemRandom())
        relations = [relation_of(history.shapes[name]) for name in names]
        self.tables_archived = len(history.shapes)
        async with await connect(self._settings.postgres) as source:
            missing = await read_missing_values(source, relations)
        encoding = self._tail.source.server_encoding
        identifier = self._tail.source.epoch.system_identifier
        async with scratch_database(self._server, source_identifier=identifier, encoding=encoding) as dsn:
            await prepare_tables(dsn, relations, missing)
            until = RestorePoint(lsn=history.until.lsn)
            self.outcome = await restore(self._settings.archive, dsn, until, tables=names)
            return await _read_state(dsn, relations, encoding), self.outcome.next_ordinal


@contextlib.asynccontextmanager
async def _lent_server(into: str | None) -> AsyncIterator[str]:
    if into is not None:
        yield into
        return
    from cdc.embedded.scratch import scratch_server  # here, because with --into it need not be installed

    async with scratch_server() as dsn:
        yield dsn


def choose(history: History, plan: Plan, affordable_rows: int, dice: random.Random) -> list[str]:
    """Choose the tables to restore. Raises Invalid for one that the archive does not have."""
    unknown = [name for name in plan.tables if name not in history.shapes]
    if unknown:
        raise Invalid(
            f"the archive has no table {', '.join(unknown)}",
            detail=f"It has {', '.join(sorted(history.shapes))}.",
            hint="cdc drill --table SCHEMA.NAME",
        )
    if plan.tables:
        return sorted(set(plan.tables))
    drawn = sorted(history.shapes)
    dice.shuffle(drawn)
    return sorted(drawn[: plan.sample] if plan.sample is not None else _affordable(history, drawn, affordable_rows))


def _affordable(history: History, drawn: Sequence[str], affordable_rows: int) -> list[str]:
    """Choose drawn tables as long as their rows fit beside the log's changes. The first one is always restored.

    The log is walked as a whole for any choice of tables.
    """
    rows: Counter[str] = Counter()
    for chunk in history.base.chunks:
        rows[chunk.table] += chunk.rows
    left, chosen = affordable_rows - history.changes, list[str]()
    for name in drawn:
        if not chosen or rows[name] <= left:
            chosen.append(name)
            left -= rows[name]
    return chosen


async def _read_state(dsn: str, relations: Sequence[Relation], encoding: str) -> dict[str, TableState]:
    """Read the restored rows, printed as the source prints the live ones."""
    state = {}
    async with await connect(settings_of(dsn, "--into"), server_encoding=encoding) as connection:
        reader = SnapshotReader(connection)
        for relation in relations:
            table = state[relation.qualified_name] = TableState(relation)
            async for rows in reader.rows(_as_published(relation)):
                for row in rows:
                    table.apply(RowChange(READ, 0, relation, row, None))
    return state


def _as_published(relation: Relation) -> PublishedTable:
    return PublishedTable(
        relation.schema,
        relation.name,
        relation.oid,
        tuple(relation.columns),
        relation.replica_identity,
        identity_columns=(),
        primary_key=(),
        row_filter=None,
        is_partitioned=False,
        partitions=(),
    )
