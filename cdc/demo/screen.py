"""Shows the figures while the demo runs: a table that renews itself on a terminal, plain lines elsewhere."""

import contextlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from cdc.lsn import format_lsn
from cdc.words import duration, size

# A terminal is renewed often; a log file is read later, and has a line now and then.
LIVE_INTERVAL_S, PLAIN_INTERVAL_S = 0.25, 2.0


@dataclass(frozen=True, slots=True)
class Moment:
    """The figures at one moment. A latency is None until one was measured."""

    elapsed_s: float
    seconds: float
    phase: str
    rate: float
    committed: int
    rolled_back: int
    cache_p50_s: float | None
    cache_p99_s: float | None
    cache_keys: int
    archive_p50_s: float | None
    archive_p99_s: float | None
    archive_segments: int
    archive_bytes: int
    archive_lsn: int
    confirmed_lsn: int | None
    lag_bytes: float
    retained_bytes: float


def latency(seconds: float | None) -> str:
    """A latency for people; a dash if none was measured."""
    return "-" if seconds is None else duration(seconds)


def _backlog(nbytes: float) -> str:
    return "unknown" if math.isinf(nbytes) else size(nbytes)


def facts(moment: Moment) -> list[tuple[str, str]]:
    """The rows of the table, each a label and its text."""
    confirmed = "none yet" if moment.confirmed_lsn is None else format_lsn(moment.confirmed_lsn)
    return [
        ("application", f"{moment.rate:.0f} tx/s, {moment.committed:,} committed, {moment.rolled_back:,} rolled back"),
        (
            "commit → Redis",
            f"p50 {latency(moment.cache_p50_s)}, p99 {latency(moment.cache_p99_s)}, {moment.cache_keys:,} keys",
        ),
        (
            "commit → archive",
            f"p50 {latency(moment.archive_p50_s)}, p99 {latency(moment.archive_p99_s)}, "
            f"{moment.archive_segments} segments, {size(moment.archive_bytes)}, "
            f"up to {format_lsn(moment.archive_lsn)}",
        ),
        (
            "slot",
            f"confirmed {confirmed}, {_backlog(moment.lag_bytes)} behind, "
            f"{_backlog(moment.retained_bytes)} of WAL retained",
        ),
    ]


class Screen(Protocol):
    """Shows one moment after another."""

    interval_s: float

    def show(self, moment: Moment) -> None: ...


class _LiveScreen:
    interval_s = LIVE_INTERVAL_S

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, moment: Moment) -> None:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        table.add_column()
        for label, text in facts(moment):
            table.add_row(label, text)
        title = f"waltier demo: {moment.phase}, {moment.elapsed_s:.0f} s of {moment.seconds:.0f} s"
        self._live.update(Panel(table, title=title, title_align="left", expand=False), refresh=True)


class _PlainScreen:
    interval_s = PLAIN_INTERVAL_S

    def show(self, moment: Moment) -> None:
        told = "; ".join(f"{label}: {text}" for label, text in facts(moment))
        print(f"[{moment.elapsed_s:5.1f} s] {moment.phase}: {told}", flush=True)


@contextlib.contextmanager
def open_screen() -> Iterator[Screen]:
    """Yield the screen that suits stdout: a terminal, or a file."""
    if not sys.stdout.isatty():
        yield _PlainScreen()
        return
    with Live(console=Console(), auto_refresh=False) as live:
        yield _LiveScreen(live)
