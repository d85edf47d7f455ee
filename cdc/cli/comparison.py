"""Prints a comparison with the live tables, for `cdc archive verify --against` and `cdc drill`."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from cdc.lsn import format_lsn
from cdc.restore.comparison import Comparison

# A person reads so many differences; --json has all of them.
_SHOWN = 20


def facts(found: Comparison) -> dict[str, Any]:
    """Give the comparison as plain values, for `--json`."""
    return {
        "equal": found.equal,
        "lsn": format_lsn(found.lsn),
        "rows": found.rows,
        "unknown_values": found.unknown_values,
        "unpublished": found.unpublished,
        "differences": [
            {"table": one.table, "kind": one.kind, "key": one.key, "columns": list(one.columns)}
            for one in found.differences
        ],
    }


def lines(found: Comparison) -> Iterator[str]:
    """Describe the comparison for people; the differences come last."""
    yield f"compared with the live tables at {format_lsn(found.lsn)}"
    for table, rows in found.rows.items():
        yield f"  {table}: {rows} rows"
    for table in found.unpublished:
        yield f"  {table}: archived, and not published any more"
    if found.unknown_values:
        yield f"  {found.unknown_values} values were never archived (columns added later): not compared"
    kinds = Counter(difference.kind for difference in found.differences)
    yield "equal" if found.equal else "differences: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    for difference in found.differences[:_SHOWN]:
        yield f"  {difference}"
    if len(found.differences) > _SHOWN:
        yield f"  and {len(found.differences) - _SHOWN} more; --json has all"
