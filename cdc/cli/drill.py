"""`cdc drill`: restores the archive, compares the result with the live tables, and removes it again."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdc.cli.options import ConfigFile, Json, Patience, Tables
from cdc.cli.printing import print_json, print_lines
from cdc.lsn import format_lsn
from cdc.words import duration

if TYPE_CHECKING:
    from cdc.restore.drill import Drill


def drill(
    file: ConfigFile = None,
    into: Annotated[
        str | None, typer.Option(help="Server for the scratch database; default: an embedded one.", metavar="DSN")
    ] = None,
    table: Tables = None,
    sample: Annotated[int | None, typer.Option(min=1, help="So many tables, drawn at random each time.")] = None,
    budget: Annotated[float, typer.Option(min=1, help="Seconds after which it has failed.", metavar="S")] = 3600,
    wait: Patience = 120,
    as_json: Json = False,
) -> None:
    """Restore the archive aside, compare it with the live tables, clean up; exit code 1 if it is not the same."""
    from cdc.config import load
    from cdc.restore.drill import Plan, drill

    done = asyncio.run(drill(load(file), Plan(into, tuple(table or ()), sample, budget, wait)))
    if as_json:
        print_json(_facts(done))
    else:
        print_lines(_lines(done))
    raise typer.Exit(0 if done.found.equal else 1)


def _facts(done: "Drill") -> dict[str, Any]:
    """Give the drill as plain values, for `--json`."""
    from cdc.cli import comparison

    return {
        **comparison.facts(done.found),
        "tables_restored": len(done.restored.tables),
        "tables_archived": done.tables_archived,
        "rows_copied": done.restored.rows,
        "changes": done.restored.changes,
        "restore_seconds": round(done.restored.seconds, 3),
        "rows_per_s": round(done.rows_per_s),
        "seconds": round(done.seconds, 3),
        "unremembered": done.unremembered or None,
    }


def _lines(done: "Drill") -> list[str]:
    """Describe the drill for people; the differences come last."""
    from cdc.cli import comparison

    restored = done.restored
    said = [
        f"restored {len(restored.tables)} of {done.tables_archived} tables up to {format_lsn(done.found.lsn)}: "
        f"{restored.rows} rows, then {restored.changes} changes, in {duration(restored.seconds)} "
        f"({done.rows_per_s:.0f} rows/s); nothing of it is left",
    ]
    said += [f"this could not be remembered: {done.unremembered}"] if done.unremembered else []
    return [*said, *comparison.lines(done.found)]
