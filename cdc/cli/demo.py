"""`cdc demo`: shows everything at work on embedded servers."""

import asyncio
from typing import Annotated

import typer


def demo(
    seconds: Annotated[float, typer.Option(min=1, help="How long the workload runs.")] = 20,
    rate: Annotated[int, typer.Option(min=1, help="Transactions a second.")] = 200,
) -> None:
    """Show everything at work on embedded servers; ends by itself with a checked summary."""
    from cdc.demo import run

    raise typer.Exit(asyncio.run(run(seconds, rate)))
