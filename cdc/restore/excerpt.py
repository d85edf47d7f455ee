"""`cdc restore --where`: restores one conversation into a schema beside the live tables, and compares the two.

1. walk the log to the moment, its chain checked;
2. check the target: the schema must be free. It may be the live source, for nothing else there is touched;
3. read snapshot and transactions, and hold the rows that match the WHERE, or may. Where an update brought a row in
   without all its values, read again and follow that row from the start (`cdc/restore/selection.py`);
4. the schema, with all rows, in one transaction;
5. each table against the live one of its name.

Memory grows with the rows that match, not with the archive. Nothing is written before step 4, and that is one
transaction. A run that is killed before its commit leaves the target as it was, and the command is given again.
"""

import re
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.bucket.opening import open_bucket
from cdc.archive.bucket.unlocked import keys_of
from cdc.archive.format.header import RelationShape, relation_of
from cdc.archive.format.segment import decode_segment
from cdc.archive.reader.history import History, RestorePoint, read_history
from cdc.change import LogicalMessage, Relation, Truncate
from cdc.config import ArchiveSettings
from cdc.errors import Invalid
from cdc.postgres.target.database import TargetDatabase, open_target
from cdc.postgres.target.side_schema import LiveDifference, SideSchema, check_free
from cdc.restore.meter import Meter
from cdc.restore.selection import Identity, Selection, Where
from cdc.row import Row

DEFAULT_SCHEMA = "cdc_restored"

_IS_NULL = re.compile(r"(.+?)\s+is\s+null", re.IGNORECASE)


@dataclass(slots=True)
class TableExcerpt:
    """One table's rows then, and how the live table differs. `unknown_values` are of columns that were added later."""

    name: str
    side_name: str
    rows: int
    unknown_values: int
    live: bool = False
    put_back: str = ""
    differences: list[LiveDifference] = field(default_factory=list)

    def count(self, kind: str) -> int:
        return sum(difference.kind == kind for difference in self.differences)


@dataclass(slots=True)
class Excerpt:
    """The result of a restore, or with `dry_run` its forecast. `left_out` are tables without a column of the WHERE."""

    history: History
    where: Where
    schema: str
    dry_run: bool
    left_out: list[str]
    tables: list[TableExcerpt] = field(default_factory=list)
    passes: int = 0
    seconds: float = 0.0

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)


def read_where(conditions: Sequence[str]) -> dict[str, bytes | None]:
    """Read `COLUMN=VALUE` and `COLUMN IS NULL` as a command line gives them. Raises Invalid."""
    if not conditions:
        raise Invalid(
            "--schema belongs to --where", hint="--where COLUMN=VALUE; whole tables go into an empty database"
        )
    where: dict[str, bytes | None] = {}
    for condition in conditions:
        column, equals, value = condition.partition("=")
        is_null = None if equals else _IS_NULL.fullmatch(condition.strip())
        if is_null is not None:
            column = is_null[1]
        if not column or not (equals or is_null):
            raise Invalid(
                "a condition of --where cannot be read",
                detail="The value is compared with what Postgres prints: t and f, 2026-11-22 18:07:13+00.",
                hint="--where session_hash=4f2a91, or --where 'parent_id IS NULL'",
            )
        if column in where:
            raise Invalid(f"--where names column {column} twice", detail="All conditions must be true of a row.")
        where[column] = None if is_null else value.encode(errors="surrogateescape")
    return where


async def restore_rows(
    settings: ArchiveSettings,
    into: str,
    until: RestorePoint,
    where: Where,
    *,
    schema: str = DEFAULT_SCHEMA,
    tables: Sequence[str] = (),
    dry_run: bool = False,
    meter: Meter | None = None,
) -> Excerpt:
    """Restore the rows that match `where` into `schema`. Raises Invalid before anything is written.

    Raises Unavailable, or DataError for a damaged archive.
    """
    started = time.monotonic()
    bucket = open_bucket(settings)
    try:
        history = await read_history(bucket, until)  # 1
        chosen, left_out = _choose(history, where, tables)
        async with open_target(into) as target:
            await check_free(target, schema)  # 2
            excerpt = Excerpt(history, where, schema, dry_run, left_out)
            found = await _Search(bucket, history, where, chosen, meter).run(excerpt)  # 3
            if not dry_run:
                await _write(target, excerpt, found)  # 4, 5
    finally:
        await bucket.close()
    excerpt.seconds = time.monotonic() - started
    return excerpt


def _choose(history: History, where: Where, tables: Sequence[str]) -> tuple[list[Relation], list[str]]:
    """Choose the tables that have all columns of the WHERE; return also those that lack one, unless `tables` is given.

    Raises Invalid for a table that is named and cannot be restored.
    """
    shapes = history.shapes
    able = sorted(name for name, shape in shapes.items() if where.keys() <= {column.name for column in shape.columns})
    unable = sorted(shapes.keys() - set(able))
    wrong = [name for name in tables if name not in able]
    if wrong or not able:
        _refuse_tables(shapes, where, wrong, able)
    chosen = sorted(tables) if tables else able
    names = Counter(shapes[name].name for name in chosen)
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        raise Invalid(
            f"several schemas have a table {', '.join(twice)}, and one schema has room for one of them",
            hint="--table SCHEMA.NAME, and the others into another --schema",
        )
    return [relation_of(shapes[name]) for name in chosen], [] if tables else unable


def _refuse_tables(shapes: dict[str, RelationShape], where: Where, wrong: list[str], able: list[str]) -> None:
    absent = [name for name in wrong if name not in shapes]
    if absent:
        raise Invalid(
            f"the archive has no table {', '.join(absent)} at that moment",
            detail=f"It has {', '.join(sorted(shapes))}.",
            hint="--table SCHEMA.NAME",
        )
    lacking = ", ".join(wrong) if wrong else "no table"
    columns = ", ".join(where)
    raise Invalid(
        f"{lacking} has no column {columns}" if wrong else f"no table has a column {columns}",
        detail="; ".join(
            f"{name}: {', '.join(column.name for column in shape.columns)}" for name, shape in sorted(shapes.items())
        ),
        hint=" ".join(f"--table {name}" for name in able) or "--where COLUMN=VALUE",
    )


class _Search:
    """Finds the rows that match at the moment, by replaying the archive's states."""

    def __init__(
        self, bucket: Bucket, history: History, where: Where, chosen: list[Relation], meter: Meter | None
    ) -> None:
        self._bucket = bucket
        self._history = history
        self._where = where
        self._chosen = chosen
        self._meter = meter
        self._followed: dict[str, set[Identity]] = {relation.qualified_name: set() for relation in chosen}

    async def run(self, excerpt: Excerpt) -> dict[Relation, list[Row]]:
        """Read the archive as often as needed, until every value is known."""
        while True:
            selections = {name: Selection(self._where, followed) for name, followed in self._followed.items()}
            await self._read(selections)
            excerpt.passes += 1
            if not self._follow_more(selections):
                return self._collect(selections, excerpt)

    async def _read(self, selections: dict[str, Selection]) -> None:
        history, tables = self._history, selections.keys()
        if self._meter is not None:
            base_rows = sum(chunk.rows for chunk in history.base.chunks if chunk.table in tables)
            self._meter.expect(base_rows + history.changes)
        async with aclosing(history.chunk_bodies(self._bucket, tables=tables)) as bodies:
            async for _, body in bodies:
                rows = decode_segment(body, keys_of(self._bucket)).rows()
                for row in rows:
                    selections[row.relation.qualified_name].apply(row)
                self._advance(len(rows))
        async for _, transaction in history.transactions(self._bucket, history.first_ordinal):
            for change in transaction.changes:
                if isinstance(change, LogicalMessage):
                    continue
                selection = selections.get(change.relation.qualified_name)
                if selection is None:
                    continue
                if isinstance(change, Truncate):
                    selection.clear()
                else:
                    selection.apply(change)
            self._advance(len(transaction.changes))

    def _advance(self, rows: int) -> None:
        if self._meter is not None:
            self._meter.advance(rows)

    def _follow_more(self, selections: dict[str, Selection]) -> bool:
        """Note the rows that must be followed too; True if there are such rows."""
        more = False
        for name, selection in selections.items():
            sources = selection.sources() - self._followed[name]
            self._followed[name] |= sources
            more = more or bool(sources)
        return more

    def _collect(self, selections: dict[str, Selection], excerpt: Excerpt) -> dict[Relation, list[Row]]:
        found: dict[Relation, list[Row]] = {}
        for relation in self._chosen:
            rows = list(selections[relation.qualified_name].rows(relation))
            found[relation] = [row for row, _ in rows]
            unknown = sum(count for _, count in rows)
            side_name = f"{excerpt.schema}.{relation.name}"
            excerpt.tables.append(TableExcerpt(relation.qualified_name, side_name, len(rows), unknown))
        return found


async def _write(target: TargetDatabase, excerpt: Excerpt, found: dict[Relation, list[Row]]) -> None:
    history, server = excerpt.history, target.server
    source = history.source
    is_source = (source.epoch.system_identifier, source.database) == (server.epoch.system_identifier, server.database)
    side = SideSchema(target, excerpt.schema, unlogged=is_source)
    comment = f"waltier: rows restored from archive {history.archive}, as of {history.until}"
    await side.create(found, comment)
    for relation, table in zip(found, excerpt.tables, strict=True):
        live = await target.find_table(relation.schema, relation.name)
        if live is not None:
            table.live = True
            table.differences = await side.compare(relation, live, excerpt.where)
            table.put_back = side.put_back(relation, live) if table.count("missing live") else ""
