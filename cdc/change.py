"""The values that flow from sources to sinks: a `Batch` is a run of transactions, each a run of changes.

Three sources make batches: the replication stream, a snapshot and the archive's reader. Two sinks take them: the cache
and the archive. A transaction is identified by `commit_lsn` and acknowledged by `end_lsn`. A change is identified by
`(commit_lsn, seq)`. All of it is immutable by custom: no sink alters a change.

A large transaction flows in pieces, so that memory stays bounded. `Transaction.first_seq` says where a piece begins
and `Transaction.last` whether the commit is in it: a transaction counts only when its last piece is there.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from cdc.row import ABSENT, Row, RowCodec

CREATE: Final = "c"
UPDATE: Final = "u"
DELETE: Final = "d"
READ: Final = "r"

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Column:
    """One published column. `key` marks the row's identity: the primary key, or the replica identity's index."""

    __slots__ = ("key", "name", "type_name", "type_oid", "typmod")

    def __init__(self, name: str, type_name: str, type_oid: int, typmod: int, key: bool) -> None:
        self.name = name
        self.type_name = type_name
        self.type_oid = type_oid
        self.typmod = typmod
        self.key = key


class Relation:
    """A table as one connection's stream described it. `replica_identity` is one of `d n f i` (pg_class).

    `identity` names the columns that find a row again. It is empty where all of them together do (REPLICA IDENTITY FULL
    without a primary key: every column is marked as key), and where nothing does (no column is).
    """

    __slots__ = (
        "codec", "column_index", "columns", "identity", "key_indexes", "name", "oid", "qualified_name",
        "replica_identity", "schema"
    )  # fmt: skip

    def __init__(self, oid: int, schema: str, name: str, replica_identity: str, columns: Sequence[Column]) -> None:
        self.oid = oid
        self.schema = schema
        self.name = name
        self.replica_identity = replica_identity
        self.columns = tuple(columns)
        self.qualified_name = f"{schema}.{name}"
        self.codec = RowCodec([column.name for column in columns], [column.type_oid for column in columns])
        self.key_indexes = [index for index, column in enumerate(columns) if column.key]
        self.column_index = {column.name: index for index, column in enumerate(columns)}
        key_names = tuple([column.name for column in columns if column.key])
        whole_row = replica_identity == "f" and len(key_names) == len(columns)
        self.identity: tuple[str, ...] = () if whole_row else key_names


class RowChange:
    """A row created, updated, deleted or (from a snapshot) read.

    `new` is the row after the change, None for a delete. `old` is what Postgres sent of the row before: nothing, its
    key columns (the others ABSENT), or under REPLICA IDENTITY FULL all of it. ABSENT in `new` is an unchanged TOAST
    value that the old row did not have either.
    """

    __slots__ = ("_after", "new", "old", "op", "relation", "seq")

    def __init__(self, op: str, seq: int, relation: Relation, new: Row | None, old: Row | None) -> None:
        self.op = op
        self.seq = seq
        self.relation = relation
        self.new = new
        self.old = old
        self._after: bytes | None = None

    @property
    def after(self) -> bytes | None:
        """The new row as JSON, encoded once and shared by every sink."""
        if self._after is None and self.new is not None:
            self._after = self.relation.codec.encode(self.new)
        return self._after

    @property
    def before(self) -> bytes | None:
        """The old row as JSON, as far as it is known; None if Postgres sent nothing of it."""
        return None if self.old is None else self.relation.codec.encode(self.old)

    @property
    def key(self) -> bytes:
        """The key columns as a JSON object, after the change or, for a delete, before it; `{}` without a key."""
        row = self.old if self.new is None else self.new
        return b"{}" if row is None else self.relation.codec.encode_key(row, self.relation.key_indexes)

    @property
    def unchanged(self) -> list[str]:
        """Names of the columns that Postgres did not send because they are TOASTed and did not change."""
        if self.new is None or ABSENT not in self.new:
            return []
        return [c.name for c, value in zip(self.relation.columns, self.new, strict=True) if value is ABSENT]


class Truncate:
    """One table emptied. A TRUNCATE of several tables gives one of these for each."""

    __slots__ = ("cascade", "relation", "restart_identity", "seq")

    def __init__(self, seq: int, relation: Relation, *, cascade: bool, restart_identity: bool) -> None:
        self.seq = seq
        self.relation = relation
        self.cascade = cascade
        self.restart_identity = restart_identity


class LogicalMessage:
    """A message that `pg_logical_emit_message(transactional, prefix, content)` put into the stream."""

    __slots__ = ("content", "prefix", "seq", "transactional")

    def __init__(self, seq: int, prefix: str, content: bytes, *, transactional: bool) -> None:
        self.seq = seq
        self.prefix = prefix
        self.content = content
        self.transactional = transactional


Change = RowChange | Truncate | LogicalMessage


class Transaction:
    """A committed transaction, or a piece of a large one.

    `commit_time_us` is microseconds since 1970 (UTC). `nbytes` estimates the memory the piece holds, not its size on
    the wire. `end_lsn` is 0 in a piece that is not the last. A logical message outside any transaction flows as a
    transaction of its own: xid 0, `end_lsn` where its WAL record ends, and `commit_lsn` one byte before that, because a
    commit record may begin right there (seen) and two transactions must never share a `commit_lsn`.
    """

    __slots__ = ("changes", "commit_lsn", "commit_time_us", "end_lsn", "first_seq", "last", "nbytes", "xid")

    def __init__(
        self,
        xid: int,
        commit_lsn: int,
        commit_time_us: int,
        changes: list[Change],
        *,
        first_seq: int = 0,
        end_lsn: int = 0,
        last: bool = True,
        nbytes: int = 0,
    ) -> None:
        self.xid = xid
        self.commit_lsn = commit_lsn
        self.commit_time_us = commit_time_us
        self.changes = changes
        self.first_seq = first_seq
        self.end_lsn = end_lsn
        self.last = last
        self.nbytes = nbytes

    @property
    def whole(self) -> bool:
        return self.last and self.first_seq == 0


class Batch:
    """A run of transactions in commit order; only its first and its last may be pieces."""

    __slots__ = ("nbytes", "transactions")

    def __init__(self, transactions: list[Transaction]) -> None:
        self.transactions = transactions
        self.nbytes = sum(transaction.nbytes for transaction in transactions)

    def __iter__(self) -> Iterator[Transaction]:
        return iter(self.transactions)

    def __len__(self) -> int:
        return len(self.transactions)

    @property
    def end_lsn(self) -> int:
        """`end_lsn` of the last transaction whose commit is in here; 0 if there is none."""
        return next((t.end_lsn for t in reversed(self.transactions) if t.last), 0)


def format_time(time_us: int) -> str:
    """Print microseconds since 1970 as `2026-11-22T18:07:13.802498Z`."""
    moment = _UNIX_EPOCH + timedelta(microseconds=time_us)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> int:
    """Read a time as `format_time` prints it; return microseconds since 1970. Raises ValueError."""
    delta = datetime.fromisoformat(text) - _UNIX_EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
