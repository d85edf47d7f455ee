"""`cdc slots`: lists every replication slot of the server, once or repeatedly."""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdc.cli.options import ConfigFile, Json
from cdc.cli.printing import print_finding, print_json, print_lines
from cdc.errors import CdcError

if TYPE_CHECKING:
    from cdc.config import MonitorSettings, PostgresSettings
    from cdc.monitor.report import Report


def slots(
    file: ConfigFile = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every SECONDS, until Ctrl-C.")] = False,
    seconds: Annotated[
        float, typer.Argument(min=0.1, help="With --watch: time between looks.", metavar="[SECONDS]")
    ] = 2,
) -> None:
    """List every replication slot of the server, the WAL that it retains, and when that becomes too much."""
    from cdc.config import load_monitor, load_postgres

    postgres, monitor = load_postgres(file), load_monitor(file)
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_follow(postgres, monitor, seconds, as_json=as_json))
        return
    _print_once(postgres, monitor, as_json=as_json)


def _print_once(postgres: "PostgresSettings", monitor: "MonitorSettings", *, as_json: bool) -> None:
    from cdc.cli.slot_table import lines
    from cdc.monitor.watcher import look

    found = asyncio.run(look(postgres, monitor))
    if as_json:
        print_json(_facts(found, monitor.warn_s))
        return
    print_lines(lines(found))
    for warning in found.warnings(monitor.warn_s):
        print_finding(f"{warning.subject:8}", warning.message, warning.hint)


def _facts(found: "Report", warn_s: float) -> dict[str, Any]:
    """Give everything as plain values; the slots and the server as in /status.json."""
    from cdc.monitor.report import postgres_facts, slot_facts

    return {
        "postgres": postgres_facts(found),
        "slots": [slot_facts(watched, found) for watched in found.observation.slots],
        "warnings": [warning.told for warning in found.warnings(warn_s)],
    }


async def _follow(
    postgres: "PostgresSettings", monitor: "MonitorSettings", interval_s: float, *, as_json: bool
) -> None:
    """Show one report after another until interrupted.

    On a terminal each takes the place of the one before, else it follows below. As JSON each is one line.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from cdc.monitor.watcher import watch

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        async with aclosing(watch(postgres, monitor, interval_s)) as looks:
            async for found in looks:
                if as_json:
                    print(_json_line(found, monitor.warn_s), flush=True)
                elif console.is_terminal:
                    live.update(Text("\n".join(_page(found, monitor.warn_s))), refresh=True)
                else:
                    print("\n".join(_page(found, monitor.warn_s)), flush=True)


def _page(found: "Report | CdcError", warn_s: float) -> Iterator[str]:
    """Make one report: its time, the table, and what is not well."""
    from cdc.cli.slot_table import lines

    if isinstance(found, CdcError):
        yield f"{time.strftime('%H:%M:%S')}  cdc: {found.explain()}"
        return
    yield time.strftime("%H:%M:%S")
    yield from lines(found)
    for warning in found.warnings(warn_s):
        yield f"{warning.message}\n    hint: {warning.hint}"


def _json_line(found: "Report | CdcError", warn_s: float) -> str:
    if isinstance(found, CdcError):
        return json.dumps({"error": found.message, "hint": found.hint})
    return json.dumps(_facts(found, warn_s))
