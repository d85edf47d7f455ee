"""Collects `part` segments. A series counts once its last part has arrived; an incomplete one is ignored."""

from typing import Generic, Protocol, TypeVar

from cdc.archive.format.header import Part


class HasPart(Protocol):
    @property
    def part(self) -> Part | None: ...


_Step = TypeVar("_Step", bound=HasPart)


class Series(Generic[_Step]):
    """Takes segments in their order. A part other than the expected next one abandons those before it."""

    def __init__(self) -> None:
        self._waiting: list[_Step] = []

    def add(self, step: _Step) -> list[_Step]:
        """Add a segment; return the segments that count now: itself, a complete series, or none yet."""
        part = step.part
        if part is None:
            self._waiting = []
            return [step]
        before = self._waiting[-1].part if self._waiting else None
        follows = before is not None and (before.commit_lsn, before.index + 1) == (part.commit_lsn, part.index)
        self._waiting = [*self._waiting, step] if follows else [step] if part.index == 0 else []
        if not part.last:
            return []
        complete, self._waiting = self._waiting, []
        return complete
