"""Projections turn a change of a row into operations on the cache's keys. Pure.

`bind` binds a projection of the configuration to a relation of the stream: it finds the columns, and refuses what
cannot work. The bound projection turns every change into operations of a `Plan`. The rules:

**Keys.** A template's placeholders are replaced with the values' text as Postgres prints it. NULL in a key column: no
key, so the row is not in the cache. Every written key expires at commit time + ttl, also when a replay writes it again:
a time in the past removes the key.

**row** - the row as JSON. Create and update set it, delete removes it; a changed key removes the old, sets the new.

**history** - the newest `limit` rows of a key: score = `order_by` (order.py), member = the row as JSON.
Insert adds. Update puts the new member in the old one's place, but only if the old one was there: an expired session
does not come back with one old row. A changed key or order moves the row. A key that does not exist is created only by
an insert or by a row that moves to it. Rows without an order (NULL) stay out.

**latest** - chosen columns of the newest row of a key, the order column first. Insert takes the place of a row whose
order is the same or lower. Update replaces only the row that is there, or takes its place by a higher order; it never
creates. When the newest row goes or moves back, the key goes: the newest row is not known then.

**Holes.** Where Postgres did not send an unchanged TOAST value, the key is removed (of a history: the whole history): a
miss is honest, a hole is not. Where the old row's key is not known (no REPLICA IDENTITY FULL) the new row's is assumed.
A delete then cannot reach its keys, and its table is named in `Plan.unreachable`.

**truncate** is not an operation of a plan: the sink finds the keys by `Template.pattern`.
"""

import re
from collections.abc import Sequence

import orjson

from cdc.cache.checkpoint import META_KEY
from cdc.cache.order import is_time, order_kind, score_of_type, time_us
from cdc.cache.plan import LatestShape, MemberIdentity, Plan
from cdc.change import UPDATE, Relation, RowChange, Transaction, Truncate
from cdc.config import HistoryProjection, LatestProjection, Projection, RowProjection
from cdc.errors import Invalid
from cdc.row import ABSENT, Row, Value

_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
_GLOB_SPECIAL = re.compile(rb"([*?\[\]\\^])")


class Template:
    """A key template of the configuration, as in `session:{session_hash}:turns`."""

    def __init__(self, text: str) -> None:
        pieces = _PLACEHOLDER.split(text)
        self.text = text
        self.literals = [piece.encode() for piece in pieces[::2]]
        self.columns = pieces[1::2]

    @property
    def pattern(self) -> bytes:
        """The SCAN pattern of every key the template gives."""
        return b"*".join(_GLOB_SPECIAL.sub(rb"\\\1", literal) for literal in self.literals)

    @property
    def regex(self) -> re.Pattern[bytes]:
        return re.compile(b".*".join(map(re.escape, self.literals)), re.DOTALL)

    @property
    def weight(self) -> int:
        """The bytes of literal text. Of two templates that fit a key, the heavier one owns it."""
        return sum(map(len, self.literals))


class _Key:
    """A template bound to a relation's columns."""

    __slots__ = ("_indexes", "_literals", "prefix", "single", "suffix")

    def __init__(self, template: Template, relation: Relation) -> None:
        self._literals = template.literals
        self._indexes = [relation.column_index[column] for column in template.columns]
        self.single = self._indexes[0] if len(self._indexes) == 1 else -1
        """The index of the only column, or -1: hot paths join a key of one column themselves."""
        self.prefix = template.literals[0]
        self.suffix = template.literals[-1]

    def of(self, row: Row) -> bytes | None:
        """The row's key; None if one of its columns is NULL or not known."""
        parts = [self.prefix]
        for index, literal in zip(self._indexes, self._literals[1:], strict=True):
            value = row[index]
            if not isinstance(value, bytes):
                return None
            parts += (value, literal)
        return b"".join(parts)

    def known(self, row: Row) -> bool:
        return all(row[index] is not ABSENT for index in self._indexes)


def _filled(row: Row, other: Row | None) -> Row:
    """The row, with unknown values taken from its other version."""
    if other is None or ABSENT not in row:
        return row
    return [theirs if value is ABSENT else value for value, theirs in zip(row, other, strict=True)]


class Bound:
    """A projection bound to one relation."""

    def __init__(self, projection: Projection, relation: Relation) -> None:
        self._key = _Key(Template(projection.key), relation)
        self._single, self._prefix, self._suffix = self._key.single, self._key.prefix, self._key.suffix
        self._relation = relation
        self._ttl_ms = projection.ttl_s * 1000
        time_index = relation.column_index.get(projection.time_column or "", -1)
        usable = time_index >= 0 and is_time(relation.columns[time_index].type_oid)
        self._time_index = time_index if usable else -1

    def apply(self, change: RowChange, commit_ms: int, plan: Plan) -> None:
        """Add this change's operations to the plan. `commit_ms` is its commit time in milliseconds since 1970."""
        new = change.new
        if new is None:
            self._apply_delete(change, commit_ms + self._ttl_ms, plan)
        elif change.op == UPDATE:
            self._apply_update(change, new, commit_ms + self._ttl_ms, plan)
        else:
            value = new[self._single]
            if self._single < 0 or value.__class__ is not bytes:
                key = self._key.of(new)
            else:
                key = self._prefix + value + self._suffix
            if key is not None:
                self._insert(key, change, new, commit_ms + self._ttl_ms, plan)

    def _apply_delete(self, change: RowChange, expiry_ms: int, plan: Plan) -> None:
        if change.old is None or not self._key.known(change.old):
            plan.unreachable.add(self._relation.qualified_name)
            return
        key = self._key.of(change.old)
        if key is not None:
            self._delete(key, change.old, expiry_ms, plan)

    def _apply_update(self, change: RowChange, new: Row, expiry_ms: int, plan: Plan) -> None:
        old = None if change.old is None else _filled(change.old, new)
        whole = _filled(new, old)
        key = self._key.of(whole)
        old_key = key if old is None else self._key.of(old)
        if key == old_key:
            if key is not None:
                self._update(key, change, new, expiry_ms, plan)
            return
        if old_key is not None and change.old is not None:
            self._delete(old_key, change.old, expiry_ms, plan)
        if key is not None:
            self._insert(key, change, new, expiry_ms, plan)

    def read(self, change: RowChange, snapshot_ms: int, plan: Plan) -> None:
        """Add a snapshot's row, unless it has expired. It expires as if written at its own time, never later."""
        row = change.new
        if row is None:
            return
        key = self._key.of(row)
        expiry_ms = min(self._written_ms(row, snapshot_ms), snapshot_ms) + self._ttl_ms
        if key is not None and expiry_ms > snapshot_ms:
            self._read(key, change, row, int(expiry_ms), plan)

    def _read(self, key: bytes, change: RowChange, row: Row, expiry_ms: int, plan: Plan) -> None:
        self._insert(key, change, row, expiry_ms, plan)

    def _written_ms(self, row: Row, snapshot_ms: int) -> int | float:
        value = row[self._time_index] if self._time_index >= 0 else None
        return time_us(value) / 1000 if isinstance(value, bytes) else snapshot_ms

    def _insert(self, key: bytes, change: RowChange, new: Row, expiry_ms: int, plan: Plan) -> None:
        raise NotImplementedError

    def _update(self, key: bytes, change: RowChange, new: Row, expiry_ms: int, plan: Plan) -> None:
        raise NotImplementedError

    def _delete(self, key: bytes, old: Row, expiry_ms: int, plan: Plan) -> None:
        raise NotImplementedError


class BoundRow(Bound):
    def _insert(self, key: bytes, change: RowChange, new: Row, expiry_ms: int, plan: Plan) -> None:
        after = change.after
        if after is None or (change.op == UPDATE and ABSENT in new):
            plan.unlink(key)
        else:
            plan.set(key, after, expiry_ms)

    def _update(self, key: bytes, change: RowChange, new: Row, expiry_ms: int, plan: Plan) -> None:
        self._insert(key, change, new, expiry_ms, plan)

    def _delete(self, key: bytes, old: Row, expiry_ms: int, plan: Plan) -> None:
        plan.unlink(key)


class BoundHistory(Bound):
    def __init__(self, projection: HistoryProjection, relation: Relation) -> None:
        super().__init__(projection, relation)
        self._read_key: bytes | None = None
        self._read_expiry_ms = 0
        self._limit = projection.limit
        self._order = relation.column_index[projection.order_by]
        self._score = score_of_type(relation.columns[self._order].type_oid)
        self._key_names = [(index, orjson.dumps(relation.columns[index].name)) for index in relation.key_indexes]

    def _insert(self, key: bytes, change: RowChange, new: Row, expiry_ms: int, plan: Plan) -> None:
        order, after = new[self._order], change.after
        if after is None or not isinstance(order, bytes):
            return
        if change.op == UPDATE and ABSENT in new:
            plan.forget(key, self._limit)
        else:
            plan.add(key, self._limit, self._score(order), after, expiry_ms)

    def _read(self, key: bytes, change: RowChange, row: Row, expiry_ms: int, plan: Plan) -> None:
        """Add a snapshot's row to a history, which expires with the last of its rows. They arrive one after another."""
        if key == self._read_key:
            expiry_ms = max(expiry_ms, self._read_expiry_ms)
        self._read_key, self._read_expiry_ms = key, expiry_ms
        self._insert(key, change, row, expiry_ms, plan)

    def _update(self, key: bytes, change: RowChange, new: Row, expiry_ms: int, plan: Plan) -> None:
        order, after = new[self._order], change.after
        if ABSENT in new:
            plan.forget(key, self._limit)
            return
        known = isinstance(order, bytes) and after is not None
        pair = [self._score(order), after] if isinstance(order, bytes) and after is not None else []
        old = change.old
        reordered = known and old is not None and old[self._order] is not ABSENT and old[self._order] != order
        plan.replace(key, self._limit, self._identity(old, new), pair, expiry_ms, reordered=reordered)

    def _delete(self, key: bytes, old: Row, expiry_ms: int, plan: Plan) -> None:
        plan.replace(key, self._limit, self._identity(old, None), [], expiry_ms, reordered=False)

    def _identity(self, old: Row | None, new: Row | None) -> MemberIdentity:
        if old is None:
            return MemberIdentity(None, None, self._key_tokens(new))
        order = old[self._order]
        score = self._score(order) if isinstance(order, bytes) else None
        member = None if ABSENT in old else self._relation.codec.encode(old)
        return MemberIdentity(member, score, self._key_tokens(old))

    def _key_tokens(self, row: Row | None) -> list[bytes]:
        """The key columns as they stand in a member: `"id"`, `42`, and so on. Empty if a value is not known."""
        if row is None or any(row[index] is ABSENT for index, _ in self._key_names):
            return []
        encode = self._relation.codec.encode
        tokens: list[bytes] = []
        for index, name in self._key_names:
            tokens += (name, encode(row, (index,))[len(name) + 2 : -1])
        return tokens


class BoundLatest(Bound):
    def __init__(self, projection: LatestProjection, relation: Relation) -> None:
        super().__init__(projection, relation)
        self._order = relation.column_index[projection.order_by]
        chosen = [relation.column_index[name] for name in projection.columns if name != projection.order_by]
        self._only = [self._order, *dict.fromkeys(chosen)]
        kind = order_kind(relation.columns[self._order].type_oid)
        skip = len(b"{" + orjson.dumps(projection.order_by) + b":")
        self._shape = LatestShape(relation.codec, 0 if kind is None else kind, self._only, skip)

    def _insert(self, key: bytes, change: RowChange, new: Row, expiry_ms: int, plan: Plan) -> None:
        order = new[self._order]
        if not isinstance(order, bytes):
            return
        if change.op == UPDATE and self._has_hole(new):
            plan.forget_latest(key, self._shape)
        elif change.op == UPDATE:
            # It came from another key. Where nothing is stored, the newest may be gone or expired, and an older row may
            # not take its place. With an order that no row has, it gets in only as the newest of a key that is there.
            plan.revise(key, self._shape, new, order, b"", expiry_ms)
        else:
            plan.newest(key, self._shape, new, order, expiry_ms)

    def _update(self, key: bytes, change: RowChange, new: Row, expiry_ms: int, plan: Plan) -> None:
        order: Value = new[self._order]
        old_order = order if change.old is None or change.old[self._order] is ABSENT else change.old[self._order]
        if self._has_hole(new):
            plan.forget_latest(key, self._shape)
        elif not isinstance(order, bytes):
            if isinstance(old_order, bytes):
                plan.revise(key, self._shape, None, b"", old_order, expiry_ms)
        else:
            # A row without an order was not there until now: with one that no row has, it gets in only as the newest.
            plan.revise(key, self._shape, new, order, old_order if isinstance(old_order, bytes) else b"", expiry_ms)

    def _delete(self, key: bytes, old: Row, expiry_ms: int, plan: Plan) -> None:
        order = old[self._order]
        if order is ABSENT:
            plan.forget_latest(key, self._shape)
        elif order is not None:
            plan.revise(key, self._shape, None, b"", order, expiry_ms)

    def _has_hole(self, row: Row) -> bool:
        return any(row[index] is ABSENT for index in self._only)


def bind(projection: Projection, relation: Relation) -> Bound:
    """Bind the projection to this relation. Raises Invalid, with every mistake, if it cannot work."""
    mistakes = find_mistakes(projection, relation)
    if mistakes:
        raise Invalid(
            f"the projection {projection.key!r} does not fit {relation.qualified_name}",
            detail="; ".join(mistakes),
            hint=f"mend [[cache.projections]] key = {projection.key!r} in cdc.toml",
        )
    if isinstance(projection, HistoryProjection):
        return BoundHistory(projection, relation)
    if isinstance(projection, LatestProjection):
        return BoundLatest(projection, relation)
    return BoundRow(projection, relation)


class Projector:
    """All projections. It binds them to the relations of one stream as they turn up."""

    __slots__ = ("_bound", "_projections")

    def __init__(self, projections: Sequence[Projection]) -> None:
        self._projections = projections
        self._bound: dict[str, tuple[Relation, list[Bound]]] = {}

    def bound_to(self, relation: Relation) -> list[Bound]:
        """The bound projections of the relation's table. Raises Invalid if one cannot work."""
        known = self._bound.get(relation.qualified_name)
        if known is not None and known[0] is relation:
            return known[1]
        mine = [projection for projection in self._projections if projection.table == relation.qualified_name]
        bound = [bind(projection, relation) for projection in mine]
        self._bound[relation.qualified_name] = (relation, bound)
        return bound

    def forget(self) -> None:
        """Forget the relations: they will turn up again, perhaps with other columns."""
        self._bound.clear()

    def project(self, change: RowChange, commit_ms: int, plan: Plan) -> None:
        """Add one change's operations to the plan. Raises Invalid if a projection cannot work on its relation."""
        bound = self.bound_to(change.relation)
        if not bound:
            return
        for projection in bound:
            projection.apply(change, commit_ms, plan)
        plan.rows += 1
        after = change.after
        if after is not None:
            plan.nbytes += len(after)

    def project_whole(self, transaction: Transaction, plan: Plan) -> bool:
        """Add a whole transaction's operations; False, and nothing added, if it holds a truncate. Raises Invalid."""
        changes = transaction.changes
        for change in changes:
            if isinstance(change, Truncate):
                return False
        commit_ms = transaction.commit_time_us // 1000
        for change in changes:
            if isinstance(change, RowChange):
                self.project(change, commit_ms, plan)
        return True


def find_mistakes(projection: Projection, relation: Relation) -> list[str]:
    """Find the mistakes of the projection on this relation, in words; empty if it can work."""
    wanted = list(Template(projection.key).columns)
    if isinstance(projection, LatestProjection):
        wanted += projection.columns
    if not isinstance(projection, RowProjection):
        wanted.append(projection.order_by)
    missing = [name for name in dict.fromkeys(wanted) if name not in relation.column_index]
    mistakes = [f"column {name!r} is not published" for name in missing]
    if not isinstance(projection, RowProjection) and projection.order_by not in missing:
        column = relation.columns[relation.column_index[projection.order_by]]
        if order_kind(column.type_oid) is None:
            mistakes.append(f"order_by {column.name!r} is {column.type_name}, neither a number nor a time")
    return mistakes


def find_conflicts(projections: Sequence[Projection]) -> list[str]:
    """Find keys that two projections would share, or one projection and the checkpoint; in words, empty if none."""
    conflicts = []
    seen: dict[bytes, Projection] = {}
    for projection in projections:
        template = Template(projection.key)
        if template.regex.fullmatch(META_KEY):
            conflicts.append(f"key {projection.key!r} can be {META_KEY.decode()!r}, which holds the position")
        twin = seen.setdefault(template.pattern, projection)
        if twin is not projection:
            conflicts.append(f"keys {twin.key!r} and {projection.key!r} can be the same key")
    return conflicts


class WarmQuery:
    """The query of a warm-up for one table.

    It leaves out rows whose `time_column` is more than `window_s` seconds before the snapshot. Without a column it
    reads all rows. `order_by` makes a history arrive whole, so that its rows go in few calls.
    """

    __slots__ = ("order_by", "table", "time_column", "window_s")

    def __init__(self, table: str, time_column: str | None, window_s: int, order_by: tuple[str, ...]) -> None:
        self.table = table
        self.time_column = time_column
        self.window_s = window_s
        self.order_by = order_by


def warm_queries(projections: Sequence[Projection]) -> list[WarmQuery]:
    """Make one query for each projected table, wide enough for all its projections."""
    tables: dict[str, list[Projection]] = {}
    for projection in projections:
        tables.setdefault(projection.table, []).append(projection)
    return [_warm_query(table, group) for table, group in tables.items()]


def _warm_query(table: str, projections: list[Projection]) -> WarmQuery:
    times = {projection.time_column for projection in projections}
    ordered = [p for p in projections if isinstance(p, HistoryProjection | LatestProjection)]
    order_by: tuple[str, ...] = ()
    if ordered:
        main = min(ordered, key=lambda projection: projection.kind)  # a history before a latest
        order_by = tuple(dict.fromkeys([*Template(main.key).columns, main.order_by]))
    return WarmQuery(table, times.pop() if len(times) == 1 else None, max(p.ttl_s for p in projections), order_by)
