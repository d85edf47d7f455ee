"""Prints the table of `cdc slots`.

A slot without a reader keeps WAL until the disk is full, ours or not. So all slots are shown, each with the WAL that it
retains, when that becomes too much, and why. A slot that is lost retains infinitely much, never 0.
"""

import math
from collections.abc import Iterator

from cdc.lsn import format_lsn
from cdc.monitor.forecast import Forecast
from cdc.monitor.reason import name_of
from cdc.monitor.report import Report
from cdc.postgres.observation import WatchedSlot
from cdc.words import remaining, since, size

# With two spaces between columns this fits a terminal of 100 columns. A longer name has a line of its own.
_ROW = "{:<24}  {:<20}  {:<10}  {:>8}  {:>8}  {:>8}  {:>8}"
_NAME_WIDTH, _READER_WIDTH = 24, 20


def lines(found: Report) -> Iterator[str]:
    """Make the table, with the reason below each slot that has one, and the server's own line."""
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
