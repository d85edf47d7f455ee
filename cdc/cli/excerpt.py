"""Prints an excerpt, one conversation as it was, for `cdc restore --where`."""

from collections.abc import Iterator
from typing import Any

from cdc.restore.excerpt import Excerpt, TableExcerpt

# A person reads so many differences; --json has all of them.
_SHOWN = 20


def facts(excerpt: Excerpt) -> dict[str, Any]:
    """Give the excerpt as plain values, for `--json`."""
    history = excerpt.history
    return {
        "dry_run": excerpt.dry_run,
        "archive": history.archive,
        "until": str(history.until),
        "where": {name: None if value is None else value.decode(errors="replace")
                  for name, value in excerpt.where.items()},
        "schema": excerpt.schema,
        "rows": excerpt.rows,
        "tables": [_table_facts(table) for table in excerpt.tables],
        "left_out": excerpt.left_out,
        "interruptions": [str(interruption) for interruption in history.skipped],
        "forks": [str(fork) for fork in history.forks],
        "passes": excerpt.passes,
        "seconds": round(excerpt.seconds, 3),
    }  # fmt: skip


def _table_facts(table: TableExcerpt) -> dict[str, Any]:
    return {
        "table": table.name,
        "restored_as": table.side_name,
        "rows": table.rows,
        "unknown_values": table.unknown_values,
        "live": table.live,
        "missing_live": table.count("missing live"),
        "only_live": table.count("only live"),
        "unequal": table.count("unequal"),
        "differences": [
            {"kind": one.kind, "key": one.key, "columns": list(one.columns)} for one in table.differences
        ],
        "put_back": table.put_back,
    }  # fmt: skip


def grid(excerpt: Excerpt) -> list[list[str]]:
    """Make a line for each table, with headings."""
    kinds = ("missing live", "only live", "unequal")
    counts = [["" if excerpt.dry_run or not t.live else str(t.count(kind)) for kind in kinds] for t in excerpt.tables]
    rows = [
        [t.name, t.side_name, str(t.rows), *count] for t, count in zip(excerpt.tables, counts, strict=True)
    ]  # fmt: skip
    return [["table", "restored as", "rows then", *kinds], *rows]


def lines(excerpt: Excerpt) -> Iterator[str]:
    """Describe what `grid` does not say, for people: each difference, and how rows are put back."""
    yield from excerpt.history.remarks()
    if excerpt.left_out:
        yield f"without a column of the WHERE, so left out: {', '.join(excerpt.left_out)}"
    for table in excerpt.tables:
        if table.unknown_values:
            yield f"{table.name}: {table.unknown_values} values were never archived (columns added later); NULL here"
        if not table.live and not excerpt.dry_run:
            yield f"{table.name}: the target has no such table to compare with"
    found = [(table.name, difference) for table in excerpt.tables for difference in table.differences]
    for name, difference in found[:_SHOWN]:
        key = " ".join(f"{column}={value}" for column, value in difference.key.items()) or "a row without a key"
        yield f"  {name} {key}: {difference.kind}" + (f" in {', '.join(difference.columns)}" * bool(difference.columns))
    if len(found) > _SHOWN:
        yield f"  and {len(found) - _SHOWN} more; --json has all"
    for table in excerpt.tables:
        if table.put_back:
            yield f"hint: {table.put_back}"
    if not excerpt.dry_run:
        yield f"hint: DROP SCHEMA {excerpt.schema} CASCADE;   -- when it has served"
