"""What happened, as either witness tells it: committed transactions, their changes, values; and how two tales differ.

Values are text as Postgres printed it; NULL is None; json and jsonb are `Json`, compared by content, for the archive
may change white space. Text that is long is replaced by its digest, so that a long run fits into memory.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_LONG = 200


@dataclass(frozen=True, slots=True)
class Json:
    """A JSON value in one canonical spelling; numbers keep their digits."""

    text: str

    @classmethod
    def of(cls, parsed: Any) -> "Json":
        return cls(shorten(json.dumps(parsed, sort_keys=True)))

    @classmethod
    def parse(cls, text: str) -> "Json":
        return cls.of(loads(text))


Value = str | Json | None
Row = dict[str, Value]


def loads(text: str | bytes) -> Any:
    """Parse JSON; numbers become `["number", digits]`, which no rounding can touch."""
    return json.loads(text, parse_int=_number, parse_float=_number, parse_constant=_number)


def _number(digits: str) -> list[str]:
    return ["number", digits]


def shorten(text: str) -> str:
    if len(text) <= _LONG:
        return text
    return f"{len(text)} characters, sha256 {hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Change:
    """`op` is one of `c u d t m`. `old` has no NULLs: test_decoding leaves them out. `note` is what t and m carry."""

    op: str
    table: str = ""
    new: Row | None = None
    old: Row | None = None
    unchanged: frozenset[str] = frozenset()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Transaction:
    """`start_lsn < end_lsn`; the archive knows both, test_decoding only the end."""

    xid: int
    end_lsn: int
    changes: tuple[Change, ...]
    commit_lsn: int | None = None

    @property
    def name(self) -> tuple[int, int]:
        return (self.xid, self.end_lsn)


@dataclass
class Differences:
    """Each list names transactions as (xid, end_lsn). Empty lists mean that both tell the same."""

    lost: list[tuple[int, int]] = field(default_factory=list)
    phantom: list[tuple[int, int]] = field(default_factory=list)
    duplicate: list[tuple[int, int]] = field(default_factory=list)
    reordered: list[tuple[int, int]] = field(default_factory=list)
    torn: list[tuple[int, int]] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any((self.lost, self.phantom, self.duplicate, self.reordered, self.torn, self.altered))

    def __str__(self) -> str:
        parts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return "; ".join(f"{len(found)} {name}: {found[:5]}" for name, found in parts.items() if found) or "none"


def compare(expected: Sequence[Transaction], actual: Sequence[Transaction]) -> Differences:
    """What is wrong with `actual`, if `expected` is the truth. Both in the order in which they were told."""
    found = Differences()
    truth = {transaction.name: transaction for transaction in expected}
    told = Counter(transaction.name for transaction in actual)
    found.lost = [name for name in truth if name not in told]
    found.phantom = [name for name in told if name not in truth]
    found.duplicate = [name for name, times in told.items() if times > 1]
    for before, after in itertools.pairwise(actual):
        if (after.commit_lsn or after.end_lsn) < before.end_lsn and after.name != before.name:
            found.reordered.append(after.name)
    for transaction in actual:
        if transaction.name in truth:
            _compare_changes(truth[transaction.name], transaction, found)
    return found


def _compare_changes(expected: Transaction, actual: Transaction, found: Differences) -> None:
    if len(expected.changes) != len(actual.changes):
        found.torn.append(actual.name)
        return
    for seq, (truth, told) in enumerate(zip(expected.changes, actual.changes, strict=True)):
        if truth != told:
            found.altered.append(f"{actual.name} change {seq}: {_describe(truth, told)}")


def _describe(truth: Change, told: Change) -> str:
    wrong = [name for name in ("op", "table", "unchanged", "note") if getattr(truth, name) != getattr(told, name)]
    for side in ("new", "old"):
        a, b = getattr(truth, side) or {}, getattr(told, side) or {}
        names = [name for name in {**a, **b} if a.get(name, "absent") != b.get(name, "absent")]
        wrong += [f"{side}.{name}: {a.get(name, 'absent')!r} became {b.get(name, 'absent')!r}" for name in names]
    return ", ".join(wrong) or f"{truth!r} became {told!r}"
