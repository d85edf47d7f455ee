"""What one script call shall do: operations gathered by key, then flattened into keys, values and numbers. Pure.

Every operation touches one key, so operations on different keys may change places and those on one key keep their
order. That is what may be joined:

- of several SET or UNLINK of one string, the last counts;
- consecutive members of one history go in one ZADD, with one trim and one PEXPIREAT: the newest `limit` of a union are
  the same whether one trims once or after every member;
- of consecutive rows of one `latest`, the newest counts; an update that follows its own row's insert takes its place.

The numbers name places in KEYS and ARGV (from 1, as Lua counts), so that a row which two projections hold travels once.
"""

from collections.abc import Sequence

import orjson

from cdc.cache.order import Rank, rank
from cdc.row import Row, RowCodec

# As in script.lua.
_SET, _UNLINK, _ADD, _REPLACE, _NEWEST, _REVISE = range(1, 7)


class Identity:
    """Which history member is meant: its exact JSON, and for when that is not there, its score and key columns."""

    __slots__ = ("key_tokens", "member", "score")

    def __init__(self, member: bytes | None, score: bytes | None, key_tokens: Sequence[bytes]) -> None:
        self.member = member
        self.score = score
        self.key_tokens = key_tokens


class _Replacement:
    __slots__ = ("expiry_ms", "identity", "pair", "reordered")

    def __init__(self, identity: Identity, pair: list[bytes], expiry_ms: int, reordered: bool) -> None:
        self.identity = identity
        self.pair = pair
        self.expiry_ms = expiry_ms
        self.reordered = reordered


class _History:
    """One history's operations: what is settled, and the members (score, member, score …) that still gather."""

    __slots__ = ("expiry_ms", "gathering", "limit", "settled")

    def __init__(self, limit: int, score: bytes, member: bytes, expiry_ms: int) -> None:
        self.limit = limit
        self.settled: list[_Replacement | tuple[list[bytes], int] | None] = []
        self.gathering = [score, member]
        self.expiry_ms = expiry_ms

    def settle(self) -> None:
        if self.gathering:
            self.settled.append((self.gathering, self.expiry_ms))
            self.gathering = []


class LatestShape:
    """What the script and this module must know of a `latest` projection on one relation."""

    __slots__ = ("codec", "kind", "only", "skip")

    def __init__(self, codec: RowCodec, kind: int, only: Sequence[int], skip: int) -> None:
        self.codec = codec
        self.kind = kind
        self.only = only
        self.skip = skip


class _Revision:
    """One operation on a `latest`. Without `old_order` the row is new; without `row` it went."""

    __slots__ = ("expiry_ms", "old_order", "order", "row")

    def __init__(self, row: Row | None, order: bytes, old_order: bytes | None, expiry_ms: int) -> None:
        self.row = row
        self.order = order
        self.old_order = old_order
        self.expiry_ms = expiry_ms


class _Latest:
    __slots__ = ("revisions", "shape", "top")

    def __init__(self, shape: LatestShape, first: _Revision | None = None) -> None:
        self.shape = shape
        self.revisions: list[_Revision | None] = [] if first is None else [first]
        self.top: Rank | None = None

    def insert(self, row: Row, order: bytes, expiry_ms: int) -> None:
        previous = self.revisions[-1]
        if previous is None or previous.old_order is not None or previous.row is None:
            self.revisions.append(_Revision(row, order, None, expiry_ms))
            self.top = None
            return
        if self.top is None:
            self.top = rank(self.shape.kind, previous.order)
        new = rank(self.shape.kind, order)
        if new >= self.top:
            previous.row, previous.order, previous.expiry_ms = row, order, expiry_ms
            self.top = new

    def revise(self, row: Row | None, order: bytes, old_order: bytes, expiry_ms: int) -> None:
        previous = self.revisions[-1]
        if row and previous and previous.row and previous.order == order == old_order:
            previous.row, previous.expiry_ms = row, expiry_ms
            return
        self.revisions.append(_Revision(row, order, old_order, expiry_ms))


class Plan:
    """The operations of one call, gathered change by change."""

    __slots__ = ("_histories", "_latests", "_strings", "nbytes", "rows", "unlinked", "unreachable")

    def __init__(self) -> None:
        self.rows = 0
        self.nbytes = 0
        self.unreachable: set[str] = set()
        """Tables of which a change's old key is not known, for want of REPLICA IDENTITY FULL."""
        self.unlinked: list[bytes] = []
        self._strings: dict[bytes, tuple[bytes, int] | None] = {}
        self._histories: dict[bytes, _History] = {}
        self._latests: dict[bytes, _Latest] = {}

    def set(self, key: bytes, value: bytes, expiry_ms: int) -> None:
        self._strings[key] = (value, expiry_ms)

    def unlink(self, key: bytes) -> None:
        self._strings[key] = None

    def add(self, key: bytes, limit: int, score: bytes, member: bytes, expiry_ms: int) -> None:
        """A new member of a history."""
        history = self._histories.get(key)
        if history is None:
            self._histories[key] = _History(limit, score, member, expiry_ms)
            return
        history.gathering += (score, member)
        history.expiry_ms = expiry_ms

    def replace(
        self, key: bytes, limit: int, old: Identity, pair: list[bytes], expiry_ms: int, *, reordered: bool
    ) -> None:
        """Take the old member out of a history and put the new `pair` (score, member; or nothing) in its place."""
        self._settled(key, limit).append(_Replacement(old, pair, expiry_ms, reordered))

    def forget(self, key: bytes, limit: int) -> None:
        """Let a whole history go."""
        self._settled(key, limit).append(None)

    def _settled(self, key: bytes, limit: int) -> list[_Replacement | tuple[list[bytes], int] | None]:
        history = self._histories.get(key)
        if history is None:
            history = self._histories[key] = _History(limit, b"", b"", 0)
            history.gathering = []
        history.settle()
        return history.settled

    def newest(self, key: bytes, shape: LatestShape, row: Row, order: bytes, expiry_ms: int) -> None:
        """A new row that may be the newest."""
        latest = self._latests.get(key)
        if latest is None:
            self._latests[key] = _Latest(shape, _Revision(row, order, None, expiry_ms))
        else:
            latest.insert(row, order, expiry_ms)

    def revise(
        self, key: bytes, shape: LatestShape, row: Row | None, order: bytes, old_order: bytes, expiry_ms: int
    ) -> None:
        """The row with `old_order` is now `row` with `order`, or went."""
        latest = self._latests.get(key)
        if latest is None:
            self._latests[key] = _Latest(shape, _Revision(row, order, old_order, expiry_ms))
        else:
            latest.revise(row, order, old_order, expiry_ms)

    def forget_latest(self, key: bytes, shape: LatestShape) -> None:
        """Let the key go, whichever row is there."""
        latest = self._latests.setdefault(key, _Latest(shape))
        latest.revisions.append(None)

    def flatten(self, first_value: int) -> tuple[list[bytes], bytes, list[bytes]]:
        """KEYS after the checkpoint, the plan as JSON, and the values; the first of these is ARGV[first_value]."""
        flat = _Flat(first_value)
        flat.histories(self._histories)
        flat.strings(self._strings)
        flat.latests(self._latests)
        for key in self.unlinked:
            flat.numbers += (_UNLINK, flat.key(key))
        return flat.keys, orjson.dumps(flat.numbers), flat.values


class _Flat:
    """KEYS, ARGV and the plan while they grow."""

    __slots__ = ("_base", "_expiries", "_members", "keys", "numbers", "values")

    def __init__(self, first_value: int) -> None:
        self.keys: list[bytes] = []
        self.values: list[bytes] = []
        self.numbers: list[int] = []
        self._base = first_value
        self._expiries: dict[int, int] = {}
        self._members: dict[int, int] = {}

    def key(self, key: bytes) -> int:
        self.keys.append(key)
        return len(self.keys) + 1  # KEYS[1] is the checkpoint

    def value(self, value: bytes) -> int:
        self.values.append(value)
        return self._base + len(self.values) - 1

    def optional(self, value: bytes | None) -> int:
        return 0 if value is None else self.value(value)

    def run(self, values: Sequence[bytes]) -> tuple[int, int]:
        """Places of the first and the last of several values; an empty run ends before it begins."""
        first = self._base + len(self.values)
        self.values += values
        return first, first + len(values) - 1

    def expiry(self, expiry_ms: int) -> int:
        place = self._expiries.get(expiry_ms)
        if place is None:
            place = self._expiries[expiry_ms] = self.value(b"%d" % expiry_ms)
        return place

    def strings(self, strings: dict[bytes, tuple[bytes, int] | None]) -> None:
        members, numbers = self._members, self.numbers
        for key, content in strings.items():
            if content is None:
                numbers += (_UNLINK, self.key(key))
                continue
            value, expiry_ms = content
            numbers += (_SET, self.key(key), self.expiry(expiry_ms), members.get(id(value)) or self.value(value))

    def histories(self, histories: dict[bytes, _History]) -> None:
        for key, history in histories.items():
            place = self.key(key)
            for operation in history.settled:
                if operation is None:
                    self.numbers += (_UNLINK, place)
                elif isinstance(operation, _Replacement):
                    self._replace(place, history.limit, operation)
                else:
                    self._add(place, history.limit, *operation)
            if history.gathering:
                self._add(place, history.limit, history.gathering, history.expiry_ms)

    def _add(self, place: int, limit: int, pairs: list[bytes], expiry_ms: int) -> None:
        first, last = self.run(pairs)
        for index in range(1, len(pairs), 2):
            self._members[id(pairs[index])] = first + index
        self.numbers += (_ADD, place, limit, self.expiry(expiry_ms), first, last)

    def _replace(self, place: int, limit: int, replacement: _Replacement) -> None:
        old = replacement.identity
        expiry = self.expiry(replacement.expiry_ms)
        member, score = self.optional(old.member), self.optional(old.score)
        identity_first, identity_last = self.run(old.key_tokens)
        first, last = self.run(replacement.pair) if replacement.pair else (0, 0)
        if last:
            self._members[id(replacement.pair[1])] = last
        self.numbers += (_REPLACE, place, limit, expiry, member, score, identity_first, identity_last, first, last)
        self.numbers.append(int(replacement.reordered))

    def latests(self, latests: dict[bytes, _Latest]) -> None:
        for key, latest in latests.items():
            place, shape = self.key(key), latest.shape
            for revision in latest.revisions:
                if revision is None:
                    self.numbers += (_UNLINK, place)
                    continue
                row = revision.row
                value = 0 if row is None else self.value(shape.codec.encode(row, shape.only))
                expiry = self.expiry(revision.expiry_ms)
                if revision.old_order is None:
                    self.numbers += (_NEWEST, place, shape.kind, shape.skip, expiry, value)
                else:
                    old = self.value(revision.old_order)
                    self.numbers += (_REVISE, place, shape.kind, shape.skip, expiry, value, old)
