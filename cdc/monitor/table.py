"""Every replication slot of the server, as `cdc slots` shows them.

A slot that nobody drains keeps WAL until the disk is full, whoever made it, so all are shown, each with what it
retains, when that becomes too much, and why. A slot that is lost retains infinitely much, never 0.
"""

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cdc.config import MonitorSettings, PostgresSettings
from cdc.errors import CdcError
from cdc.finding import Finding
from cdc.lsn import format_lsn
from cdc.monitor.forecast import Forecast
from cdc.monitor.reason import name_of
from cdc.monitor.report import Report, postgres_facts, slot_facts
from cdc.monitor.watcher import Watcher
from cdc.postgres.observation import WatchedSlot
from cdc.words import remaining, since, size

# A rate takes two looks: the last checkpoint stands for an earlier one, but it says nothing of the readers.
_BETWEEN_LOOKS_S = 1.0

# With two spaces between columns this fits a terminal of 100; a longer name has a line of its own.
_ROW = "{:<24}  {:<20}  {:<10}  {:>8}  {:>8}  {:>8}  {:>8}"
_NAME_WIDTH, _READER_WIDTH = 24, 20


async def look(postgres: PostgresSettings, settings: MonitorSettings) -> Report:
    """All slots now, with forecasts. Raises Unavailable or Invalid."""
    watcher = Watcher(postgres, settings)
    try:
        await watcher.look()
        await asyncio.sleep(_BETWEEN_LOOKS_S)
        return await watcher.look()
    finally:
        await watcher.close()


async def watch(
    postgres: PostgresSettings, settings: MonitorSettings, interval_s: float
) -> AsyncGenerator[Report | CdcError, None]:
    """A report every `interval_s`, or the error that kept us from one. The second is soon: the first knows no rate."""
    watcher, pause_s = Watcher(postgres, settings), min(interval_s, _BETWEEN_LOOKS_S)
    try:
        while True:
            try:
                yield await watcher.look()
            except CdcError as error:
                yield error
            await asyncio.sleep(pause_s)
            pause_s = interval_s
    finally:
        await watcher.close()


async def follow(
    postgres: PostgresSettings, settings: MonitorSettings, interval_s: float, *, as_json: bool = False
) -> None:
    """Show every look, for ever: in one place on a terminal, else below one another; as JSON an object a line."""
    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        async with aclosing(watch(postgres, settings, interval_s)) as looks:
            async for found in looks:
                if as_json:
                    print(_json_line(found, settings.warn_s), flush=True)
                elif console.is_terminal:
                    live.update(Text("\n".join(_page(found, settings.warn_s))), refresh=True)
                else:
                    print("\n".join(_page(found, settings.warn_s)), flush=True)


def _page(found: Report | CdcError, warn_s: float) -> Iterator[str]:
    """One look: its time, the table, and what is not well."""
    if isinstance(found, CdcError):
        yield f"{time.strftime('%H:%M:%S')}  cdc: {found.explain()}"
        return
    yield time.strftime("%H:%M:%S")
    yield from lines(found)
    for warning in found.warnings(warn_s):
        yield f"{warning.message}\n    hint: {warning.hint}"


def _json_line(found: Report | CdcError, warn_s: float) -> str:
    if isinstance(found, CdcError):
        return json.dumps({"error": found.message, "hint": found.hint})
    return json.dumps(report_facts(found, found.warnings(warn_s)))


# For people -----------------------------------------------------------------------------------------------------------


def lines(found: Report) -> Iterator[str]:
    """The table, with the reason below each slot that has one, and the server's own line."""
    if found.observation.slots:
        yield _ROW.format("slot", "reader", "status", "retained", "unacked", "limit", "forecast")
    else:
        yield "no replication slots"
    for watched in found.observation.slots:
        yield from _slot_lines(watched, found)
    yield ""
    yield from _server_lines(found)


def _slot_lines(watched: WatchedSlot, found: Report) -> Iterator[str]:
    name, lsn, expected = watched.slot.name, found.observation.wal_lsn, found.forecasts[watched.slot.name]
    if len(name) > _NAME_WIDTH:
        yield name
        name = ""
    yield _ROW.format(
        name,
        _reader(watched),
        "lost" if watched.lost else watched.slot.wal_status or "unused",
        _size(watched.retained_bytes(lsn)),
        _size(watched.unacknowledged_bytes(lsn)),
        _limit(found, expected),
        "lost" if watched.lost else remaining(expected.seconds),
    ).rstrip()
    if expected.reason:
        yield f"    {expected.reason}"


def _reader(watched: WatchedSlot) -> str:
    reader = watched.reader
    if reader is None:
        return "nobody"
    said = f"{reader.pid} {reader.application_name or reader.role or ''}".rstrip()
    return said if len(said) <= _READER_WIDTH else f"{said[: _READER_WIDTH - 1]}…"


def _size(nbytes: float) -> str:
    return "lost" if math.isinf(nbytes) else size(nbytes)


def _limit(found: Report, expected: Forecast) -> str:
    if expected.limit == "disk":
        return "disk"
    observation = found.observation
    keep = max(observation.keep_bytes, observation.wal_keep_bytes)
    return "none" if math.isinf(keep) else size(keep)


def _server_lines(found: Report) -> Iterator[str]:
    observation, disk = found.observation, found.disk
    parts = [f"WAL at {format_lsn(observation.wal_lsn)} grows {size(found.wal_bytes_per_s)}/s"]
    if observation.wal_dir_bytes is not None:
        parts.append(f"pg_wal {size(observation.wal_dir_bytes)}")
    if disk is not None:
        parts.append(f"disk {size(disk.free_bytes)} of {size(disk.total_bytes)} free")
    yield ", ".join(parts)
    if observation.transactions:
        oldest = observation.transactions[0]
        yield f"oldest: {name_of(oldest)}{since(oldest.since, observation.at)}, {oldest.state or 'state hidden'}"


# Plain values ---------------------------------------------------------------------------------------------------------


def report_facts(found: Report, warnings: list[Finding]) -> dict[str, Any]:
    """Everything, for `cdc slots --json`; the slots and the server as in /status.json."""
    return {
        "postgres": postgres_facts(found),
        "slots": [slot_facts(watched, found) for watched in found.observation.slots],
        "warnings": [warning.told for warning in warnings],
    }
