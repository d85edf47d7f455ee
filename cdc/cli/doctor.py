"""`cdc doctor`: says what is wrong or will be, with the lines that mend it."""

import asyncio
from typing import Annotated

import typer

from cdc.cli.options import ConfigFile, Json
from cdc.cli.printing import print_finding, print_json


def doctor(
    file: ConfigFile = None,
    as_json: Json = False,
    fix: Annotated[bool, typer.Option("--fix", help="Print a script that mends it all, and run nothing.")] = False,
) -> None:
    """Examine server, publication, bucket and cache, and say what to mend; exit code 1 if anything is wrong."""
    from cdc.config import load
    from cdc.doctor import examine, exit_code, facts, script

    findings = asyncio.run(examine(load(file)))
    if as_json:
        print_json(facts(findings))
    elif fix:
        print(script(findings), end="")
    else:
        for finding in findings:
            print_finding(f"{finding.level:7}  {finding.subject:11}", finding.message, finding.hint)
    raise typer.Exit(exit_code(findings))
