"""A plan gathers the operations of one script call by key, then flattens them into keys, values and numbers. Pure.

Every operation touches one key. Operations on different keys may change places; those on one key keep their order. Some
may be joined:

- several SET or UNLINK of one string: the last counts;
- consecutive members of one history: they go in one ZADD, with one trim and one PEXPIREAT. A single trim leaves the
  same newest `limit` members as a trim after each;
- consecutive rows of one `latest`: the newest counts. An update that follows its own row's insert takes its place.

The numbers name places in KEYS and ARGV (from 1, as Lua counts), so that a row which two projections hold travels once.
"""

from collections.abc import Sequence

import orjson

from cdc.cache.order import rank
from cdc.row import Row, RowCodec

# These numbers are the same in script.lua.
_SET, _UNLINK, _ADD, _REPLACE, _NEWEST, _REVISE = range(1, 7)


class MemberIdentity:
    """Names a member of a history by its exact JSON, and, in case that is not there, by its score and key columns."""

    __slots__ = ("key_tokens", "member", "score")

    def __init__(self, member: bytes | None, score: bytes | None, key_tokens: Sequence[bytes]) -> None:
        self.member = member
        self.score = score
        self.key_tokens = key_tokens


class _Replacement:
    __slots__ = ("expiry_ms", "identity", "pair", "reordered")

    def __init__(self, identity: MemberIdentity, pair: list[bytes], expiry_ms: int, reordered: bool) -> None:
        self.identity = identity
        self.pair = pair
        self.expiry_ms = expiry_ms
        self.reordered = reordered


class _History:
    """The operations on one history: those that are settled, and the members (score, member, score …) that gather."""

    __slots__ = ("expiry_ms", "limit", "members", "settled")

    def __init__(self, limit: int, members: list[bytes], expiry_ms: int) -> None:
        self.limit = limit
        self.members = members
        self.expiry_ms = expiry_ms
        self.settled: list[_Replacement | _Members | None] = []

    def settle(self) -> None:
        if self.members:
            self.settled.append(_Members(self.members, self.expiry_ms))
            self.members = []


class _Members:
    __slots__ = ("expiry_ms", "members")

    def __init__(self, members: list[bytes], expiry_ms: int) -> None:
        self.members = members
        self.expiry_ms = expiry_ms


class LatestShape:
    """The facts of a `latest` projection on one relation that the script and this module need."""

    __slots__ = ("codec", "kind", "only", "skip")

    def __init__(self, codec: RowCodec, kind: int, only: Sequence[int], skip: int) -> None:
        self.codec = codec
        self.kind = kind
        self.only = only
        self.skip = skip


class _Revision:
    """One operation on a `latest`: a row is new (no `old_order`), changed or gone (no `row`), or the key is dropped."""

    __slots__ = ("expiry_ms", "old_order", "order", "row")

    def __init__(self, row: Row | None, order: bytes, old_order: bytes | None, expiry_ms: int) -> None:
        self.row = row
        self.order = order
        self.old_order = old_order
        self.expiry_ms = expiry_ms


class _Latest(_Revision):
    """The last operation on a `latest`, and those before it that it could not be joined with."""

    __slots__ = ("settled", "shape")

    def __init__(
        self, shape: LatestShape, row: Row | None, order: bytes, old_order: bytes | None, expiry_ms: int
    ) -> None:
        self.shape = shape
        self.row = row
        self.order = order
        self.old_order = old_order
        self.expiry_ms = expiry_ms
        self.settled: list[_Revision] = []

    def insert(self, row: Row, order: bytes, expiry_ms: int) -> None:
        if self.old_order is not None or not self.order:
            self._settle(row, order, None, expiry_ms)
        elif order == self.order or rank(self.shape.kind, order) >= rank(self.shape.kind, self.order):
            self.row, self.order, self.expiry_ms = row, order, expiry_ms

    def revise(self, row: Row | None, order: bytes, old_order: bytes, expiry_ms: int) -> None:
        if row is not None and self.row is not None and self.order == order == old_order:
            self.row, self.expiry_ms = row, expiry_ms
        else:
            self._settle(row, order, old_order, expiry_ms)

    def forget(self) -> None:
        self._settle(None, b"", None, 0)

    def _settle(self, row: Row | None, order: bytes, old_order: bytes | None, expiry_ms: int) -> None:
        self.settled.append(_Revision(self.row, self.order, self.old_order, self.expiry_ms))
        self.row, self.order, self.old_order, self.expiry_ms = row, order, old_order, expiry_ms


class Plan:
    """The operations of one call, gathered change by change."""

    __slots__ = ("_histories", "_latests", "_strings", "nbytes", "rows", "unlinked", "unreachable")

    def __init__(self) -> None:
        self.rows = 0
        self.nbytes = 0
        self.unreachable: set[str] = set()
        """Tables where a change's old key is not known, for want of REPLICA IDENTITY FULL."""
        self.unlinked: list[bytes] = []
        self._strings: dict[bytes, tuple[bytes, int] | None] = {}
        self._histories: dict[bytes, _History] = {}
        self._latests: dict[bytes, _Latest] = {}

    def set(self, key: bytes, value: bytes, expiry_ms: int) -> None:
        self._strings[key] = (value, expiry_ms)

    def unlink(self, key: bytes) -> None:
        self._strings[key] = None

    def add(self, key: bytes, limit: int, score: bytes, member: bytes, expiry_ms: int) -> None:
        """Add a new member to a history. `expiry_ms` is milliseconds since 1970."""
        history = self._histories.get(key)
        if history is None:
            self._histories[key] = _History(limit, [score, member], expiry_ms)
        else:
            history.members += (score, member)
            history.expiry_ms = expiry_ms

    def replace(
        self, key: bytes, limit: int, old: MemberIdentity, pair: list[bytes], expiry_ms: int, *, reordered: bool
    ) -> None:
        """Take the old member out of a history and put the new `pair` (score, member; or nothing) in its place."""
        self._settled(key, limit).append(_Replacement(old, pair, expiry_ms, reordered))

    def forget(self, key: bytes, limit: int) -> None:
        """Remove a whole history, the key with all its members."""
        self._settled(key, limit).append(None)

    def _settled(self, key: bytes, limit: int) -> list["_Replacement | _Members | None"]:
        history = self._histories.get(key)
        if history is None:
            history = self._histories[key] = _History(limit, [], 0)
        history.settle()
        return history.settled

    def newest(self, key: bytes, shape: LatestShape, row: Row, order: bytes, expiry_ms: int) -> None:
        """Offer a new row, which may be the newest of its key."""
        latest = self._latests.get(key)
        if latest is None:
            self._latests[key] = _Latest(shape, row, order, None, expiry_ms)
        else:
            latest.insert(row, order, expiry_ms)

    def revise(
        self, key: bytes, shape: LatestShape, row: Row | None, order: bytes, old_order: bytes, expiry_ms: int
    ) -> None:
        """Change the row with `old_order` to `row` with `order`; None: it is gone."""
        latest = self._latests.get(key)
        if latest is None:
            self._latests[key] = _Latest(shape, row, order, old_order, expiry_ms)
        else:
            latest.revise(row, order, old_order, expiry_ms)

    def forget_latest(self, key: bytes, shape: LatestShape) -> None:
        """Remove the key of a `latest`, with any row that it holds."""
        latest = self._latests.get(key)
        if latest is None:
            self._latests[key] = _Latest(shape, None, b"", None, 0)
        else:
            latest.forget()

    def flatten(self, first_value: int) -> tuple[list[bytes], bytes, list[bytes]]:
        """Return KEYS after the checkpoint, the plan as JSON, and the values. The first value is ARGV[first_value]."""
        flat = _Flat(first_value)
        flat.histories(self._histories)
        flat.strings(self._strings)
        flat.latests(self._latests)
        for key in self.unlinked:
            flat.numbers += (_UNLINK, flat.key(key))
        return flat.keys, orjson.dumps(flat.numbers), flat.values


class _Flat:
    """KEYS, ARGV and the plan while they grow. Places count from 1; KEYS[1] is the checkpoint."""

    __slots__ = ("_base", "_expiries", "keys", "numbers", "values")

    def __init__(self, first_value: int) -> None:
        self.keys: list[bytes] = []
        self.values: list[bytes] = []
        self.numbers: list[int] = []
        self._base = first_value
        self._expiries: dict[int, int] = {}

    def key(self, key: bytes) -> int:
        self.keys.append(key)
        return len(self.keys) + 1

    def value(self, value: bytes) -> int:
        self.values.append(value)
        return self._base + len(self.values) - 1

    def optional(self, value: bytes | None) -> int:
        return 0 if value is None else self.value(value)

    def run(self, values: Sequence[bytes]) -> tuple[int, int]:
        """Return the places of the first and the last of several values; an empty run ends before it begins."""
        first = self._base + len(self.values)
        self.values += values
        return first, first + len(values) - 1

    def expiry(self, expiry_ms: int) -> int:
        place = self._expiries.get(expiry_ms)
        if place is None:
            place = self._expiries[expiry_ms] = self.value(b"%d" % expiry_ms)
        return place

    def histories(self, histories: dict[bytes, _History]) -> None:
        keys, values, base = self.keys, self.values, self._base
        for key, history in histories.items():
            keys.append(key)
            if history.settled:
                self._settled(history)
            members = history.members
            if members:
                expiry = self.expiry(history.expiry_ms)
                first = base + len(values)
                values += members
                self.numbers += (_ADD, len(keys) + 1, history.limit, expiry, first, first + len(members) - 1)

    def _settled(self, history: _History) -> None:
        place = len(self.keys) + 1
        for operation in history.settled:
            if operation is None:
                self.numbers += (_UNLINK, place)
            elif isinstance(operation, _Replacement):
                self._replace(place, history.limit, operation)
            else:
                expiry = self.expiry(operation.expiry_ms)
                self.numbers += (_ADD, place, history.limit, expiry, *self.run(operation.members))

    def _replace(self, place: int, limit: int, replacement: _Replacement) -> None:
        old = replacement.identity
        expiry = self.expiry(replacement.expiry_ms)
        member, score = self.optional(old.member), self.optional(old.score)
        identity_first, identity_last = self.run(old.key_tokens)
        first, last = self.run(replacement.pair) if replacement.pair else (0, 0)
        self.numbers += (_REPLACE, place, limit, expiry, member, score, identity_first, identity_last, first, last)
        self.numbers.append(int(replacement.reordered))

    def strings(self, strings: dict[bytes, tuple[bytes, int] | None]) -> None:
        keys, numbers = self.keys, self.numbers
        # A row that is also a history's member is the same object, and travels once.
        members = dict(zip(map(id, self.values), range(self._base, self._base + len(self.values)), strict=True))
        for key, content in strings.items():
            keys.append(key)
            if content is None:
                numbers += (_UNLINK, len(keys) + 1)
            else:
                value, expiry_ms = content
                numbers += (
                    _SET, len(keys) + 1, self.expiry(expiry_ms), members.get(id(value)) or self.value(value)
                )  # fmt: skip

    def latests(self, latests: dict[bytes, _Latest]) -> None:
        for key, latest in latests.items():
            self.keys.append(key)
            for revision in latest.settled:
                self._revision(latest.shape, revision)
            self._revision(latest.shape, latest)

    def _revision(self, shape: LatestShape, revision: _Revision) -> None:
        place, row, old_order = len(self.keys) + 1, revision.row, revision.old_order
        if row is None and old_order is None:
            self.numbers += (_UNLINK, place)
            return
        value = 0 if row is None else self.value(shape.codec.encode(row, shape.only))
        expiry = self.expiry(revision.expiry_ms)
        if old_order is None:
            self.numbers += (_NEWEST, place, shape.kind, shape.skip, expiry, value)
        else:
            self.numbers += (_REVISE, place, shape.kind, shape.skip, expiry, value, self.value(old_order))
