"""`cdc restore`: restores the archive's tables at a moment, or one conversation from them."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from cdc.cli.options import ConfigFile, Json, Tables
from cdc.cli.printing import print_json, print_lines, print_table

if TYPE_CHECKING:
    from cdc.restore import Outcome
    from cdc.restore.excerpt import Excerpt


def restore(
    into: Annotated[str, typer.Option(help="Database that the tables go into.", metavar="DSN")],
    file: ConfigFile = None,
    to_lsn: Annotated[str | None, typer.Option(help="Up to this commit LSN.", metavar="LSN")] = None,
    to_time: Annotated[str | None, typer.Option(help="Up to this time, with its zone.", metavar="TIME")] = None,
    to_ordinal: Annotated[int | None, typer.Option(min=0, help="Up to this transaction.", metavar="ORDINAL")] = None,
    table: Tables = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only rows like this, into a schema beside the live tables.", metavar="COLUMN=VALUE"),
    ] = None,
    schema: Annotated[
        str | None, typer.Option(help="With --where: that schema.  [default: cdc_restored]", metavar="NAME")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look at everything and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Bring the archive's tables, as they were at a moment, into an empty database; after a kill, the command goes on.

    With --where, which may be repeated, only rows that meet all conditions. The target may then be the live database.
    The rows go into a schema of their own and are compared with the live tables. Differences are no failure: exit code
    0.
    """
    from cdc.config import load_archive
    from cdc.restore import read_until, watched

    settings, until, tables = load_archive(file), read_until(to_lsn, to_time, to_ordinal), table or ()
    if where or schema is not None:
        from cdc.restore.excerpt import DEFAULT_SCHEMA, read_where, restore_rows

        wanted, side = read_where(where or ()), schema or DEFAULT_SCHEMA
        with watched() as meter:
            search = restore_rows(
                settings, into, until, wanted, schema=side, tables=tables, dry_run=dry_run, meter=meter
            )
            excerpt = asyncio.run(search)
        _print_excerpt(excerpt, as_json=as_json)
        return
    from cdc.restore.whole import restore as restore_whole

    with watched() as meter:
        work = restore_whole(settings, into, until, tables=tables, dry_run=dry_run, meter=meter)
        outcome = asyncio.run(work)
    _print_outcome(outcome, as_json=as_json)


def _print_excerpt(excerpt: "Excerpt", *, as_json: bool) -> None:
    from cdc.cli.excerpt import facts, grid, lines

    if as_json:
        print_json(facts(excerpt))
    else:
        print_table(grid(excerpt))
        print_lines(lines(excerpt))


def _print_outcome(outcome: "Outcome", *, as_json: bool) -> None:
    from cdc.cli.outcome import facts, lines

    if as_json:
        print_json(facts(outcome))
    else:
        print_lines(lines(outcome))
