"""`cdc status`: says on one screen whether all is well."""

import asyncio

import typer

from cdc.cli.options import ConfigFile, Json
from cdc.cli.printing import print_finding, print_json, print_table


def status(file: ConfigFile = None, as_json: Json = False) -> None:
    """Say in one screen whether all is well: exit code 0 well, 1 not well, 78 a person must decide."""
    from cdc.config import load
    from cdc.status import examine, facts, lines

    found = asyncio.run(examine(load(file)))
    if as_json:
        print_json(facts(found))
    else:
        print_table(lines(found))
        print(f"\n{found.verdict}")
        for trouble in found.troubles:
            print_finding(f"{trouble.subject:8}", trouble.message, trouble.hint)
    raise typer.Exit(found.exit_code)
