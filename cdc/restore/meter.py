"""Shows a restore's progress bar: how much is done, rows a second, and the time that remains."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text


class Meter(Protocol):
    """Learns how many rows there will be at most (`expect`), and then of each batch that is done (`advance`)."""

    def expect(self, rows: int) -> None: ...

    def advance(self, rows: int) -> None: ...


class _Rate(ProgressColumn):
    """A column that shows rows a second, over the last seconds."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} rows/s", style="progress.data.speed")


class _Bar:
    """The bar. `expect` may come again, where work is done over: the bar then grows by that."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("reading the log", total=None)
        self._expected = 0

    def expect(self, rows: int) -> None:
        self._expected += rows
        self._progress.update(self._task, total=self._expected, description="restoring")

    def advance(self, rows: int) -> None:
        self._progress.advance(self._task, rows)


@contextlib.contextmanager
def watched() -> Iterator[Meter | None]:
    """Give a progress bar on stderr; None if stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    rate = _Rate(Column(no_wrap=True))
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Bar(progress)
