"""Prints what the rooms return: JSON for programs; tables, lines and findings for people."""

import json
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import typer

from cdc.errors import Invalid


def print_json(facts: Any) -> None:
    print(json.dumps(facts, indent=2))


def print_lines(lines: Iterable[str]) -> None:
    print("\n".join(lines))


def print_table(rows: Iterable[Sequence[str]]) -> None:
    """Print columns as wide as their widest cell. They are never cut to a terminal's width: a pipe has none."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_finding(subject: str, message: str, hint: str) -> None:
    """Print a finding and, below its message, the hint that mends it."""
    print(f"{subject}  {message}")
    for line in f"hint: {hint}".splitlines() if hint else ():
        print(f"{'':{len(subject)}}  {line.strip()}")


async def write(lines: AsyncIterator[bytes]) -> None:
    """Write lines to stdout as they come."""
    async for line in lines:
        sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def confirm(unasked: str) -> None:
    """Go on only after a yes. Raises Invalid in a script, where no answer comes.

    `unasked` is the command that does not ask, for the error's hint.
    """
    try:
        agreed = typer.confirm("Go on?")
    except typer.Abort:
        raise Invalid("no answer came, so nothing was done", hint=unasked) from None
    if not agreed:
        raise typer.Abort
