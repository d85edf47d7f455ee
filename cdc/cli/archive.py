"""`cdc archive`: lists and prints what is in the archive, and proves that it is whole."""

import asyncio
from typing import Annotated

import typer

from cdc.cli.options import ConfigFile, Json, Patience
from cdc.cli.printing import print_json, print_lines, write

app = typer.Typer(help="Look into the archive: ls, cat, verify.", no_args_is_help=True)

From = Annotated[int, typer.Option("--from", min=0, help="First segment.", metavar="SEQ")]
To = Annotated[int | None, typer.Option("--to", min=0, help="Last segment.", metavar="SEQ")]


@app.command()
def ls(file: ConfigFile = None, first: From = 0, last: To = None, as_json: Json = False) -> None:
    """List segments: kind, positions, transactions, changes, time and size."""
    from cdc.cli.segments import listed
    from cdc.config import load_archive

    asyncio.run(write(listed(load_archive(file), first, last, as_json=as_json)))


@app.command()
def cat(
    file: ConfigFile = None,
    first: From = 0,
    last: To = None,
    table: Annotated[str | None, typer.Option(help="Of this table only, as public.turns.", metavar="NAME")] = None,
) -> None:
    """Print changes as they are archived, one JSON object a line."""
    from cdc.cli.segments import changes
    from cdc.config import load_archive

    asyncio.run(write(changes(load_archive(file), first, last, table=table)))


@app.command()
def verify(
    file: ConfigFile = None,
    against: Annotated[
        str | None, typer.Option(help="Compare with the live tables of the source too.", metavar="DSN")
    ] = None,
    wait: Patience = 120,
    full: Annotated[bool, typer.Option("--full", help="Read everything again, not only what is new.")] = False,
    as_json: Json = False,
) -> None:
    """Prove chain, order, density and checksums of what is new; exit code 1 if the archive is damaged, or differs."""
    from cdc.cli import verification
    from cdc.cli.segments import prove
    from cdc.config import load_archive

    settings = load_archive(file)
    run = asyncio.run(prove(settings, full=full))
    facts, lines, well = verification.facts(run), list(verification.lines(run)), run.report.intact
    if against is not None and well:
        from cdc.cli import comparison
        from cdc.restore.comparison import compare_and_remember

        found = asyncio.run(compare_and_remember(settings, against, patience_s=wait))
        facts["against"], well = comparison.facts(found), found.equal
        lines += comparison.lines(found)
    if as_json:
        print_json(facts)
    else:
        print_lines(lines)
    raise typer.Exit(0 if well else 1)
