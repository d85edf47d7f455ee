"""The assembler: CopyData in, committed transactions out.

One `Assembler` belongs to one connection, because the server describes each table once per connection. With protocol
version 1 it sends a transaction only after its commit, in one run from Begin to Commit; there is nothing to roll back.
What leaves here:

- each transaction, also an empty one (it must be acknowledged), in pieces if it is large;
- each logical message that was emitted outside any transaction's fate, as a transaction of its own.

A stream that contradicts itself (a row outside a transaction, a table never described, a Commit that is not its
Begin's) raises DataError.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, assert_never

from cdc.change import (
    CREATE,
    DELETE,
    UPDATE,
    Change,
    LogicalMessage,
    Relation,
    RowChange,
    Transaction,
    Truncate,
)
from cdc.errors import DataError
from cdc.lsn import format_lsn
from cdc.pgoutput.frames import PAYLOAD_BEGIN, Keepalive, XLogData, decode_frame
from cdc.pgoutput.messages import (
    Begin,
    Commit,
    Delete,
    EmittedMessage,
    Insert,
    Message,
    Origin,
    RelationMessage,
    TruncateMessage,
    TypeMessage,
    Update,
    decode_message,
)
from cdc.row import ABSENT, Row

PIECE_BYTES: Final = 1024 * 1024

_CHANGE_BYTES: Final = 300


class Received:
    """What one `feed` gave. `wal_end` is the highest that any frame of this connection named."""

    __slots__ = ("reply_requested", "transactions", "wal_end")

    def __init__(self, transactions: list[Transaction], wal_end: int, reply_requested: bool) -> None:
        self.transactions = transactions
        self.wal_end = wal_end
        self.reply_requested = reply_requested


class Assembler:
    """Assembles the transactions of one connection's stream.

    `type_names` names types by oid; Type messages add what it lacks. `primary_keys` names each table's primary key by
    qualified name, because under REPLICA IDENTITY FULL the stream calls every column a key.
    """

    def __init__(
        self, type_names: Mapping[int, str], primary_keys: Mapping[str, Sequence[str]], piece_bytes: int = PIECE_BYTES
    ) -> None:
        self._type_names = dict(type_names)
        self._primary_keys = dict(primary_keys)
        self._piece_bytes = piece_bytes
        self._relations: dict[int, Relation] = {}
        self._wal_end = 0
        self._begin: Begin | None = None
        self._changes: list[Change] = []
        self._first_seq = 0
        self._nbytes = 0

    @property
    def in_transaction(self) -> bool:
        """Whether a Begin has come whose Commit has not."""
        return self._begin is not None

    def feed(self, copy_data: Iterable[bytes]) -> Received:
        """Take CopyData as they came; give what they completed, in order. Raises DataError."""
        transactions: list[Transaction] = []
        reply_requested = False
        for data in copy_data:
            frame = decode_frame(data)
            self._wal_end = max(self._wal_end, frame.wal_end)
            match frame:
                case XLogData():
                    self._apply(decode_message(data, PAYLOAD_BEGIN), frame, len(data) * 2 + 300, transactions)
                case Keepalive():
                    reply_requested = reply_requested or frame.reply_requested
                case _:
                    assert_never(frame)
        return Received(transactions, self._wal_end, reply_requested)

    def _apply(self, message: Message, frame: XLogData, nbytes: int, done: list[Transaction]) -> None:
        match message:
            case Insert():
                relation = self._relation(message.relation_oid, message.new)
                self._add(RowChange(CREATE, self._next_seq(), relation, message.new, None), nbytes, done)
            case Update():
                relation = self._relation(message.relation_oid, message.new)
                self._add(self._update(message, relation), nbytes, done)
            case Delete():
                relation = self._relation(message.relation_oid, message.old)
                old = _key_of(message.old, relation) if message.old_is_key else message.old
                self._add(RowChange(DELETE, self._next_seq(), relation, None, old), nbytes, done)
            case Begin():
                self._start(message)
            case Commit():
                self._finish(message, done)
            case RelationMessage():
                self._describe(message)
            case TypeMessage():
                self._type_names.setdefault(message.oid, f"{message.schema}.{message.name}")
            case Origin():
                pass
            case TruncateMessage():
                self._truncate(message, done)
            case EmittedMessage():
                self._emitted(message, frame, nbytes, done)
            case _:
                assert_never(message)

    def _start(self, begin: Begin) -> None:
        if self._begin is not None:
            raise DataError(
                "a transaction began inside another one",
                detail=f"{format_lsn(begin.final_lsn)} inside {format_lsn(self._begin.final_lsn)}",
            )
        self._begin = begin

    def _finish(self, commit: Commit, done: list[Transaction]) -> None:
        begin = self._begin
        if begin is None or begin.final_lsn != commit.commit_lsn:
            raise DataError(
                "a Commit is not that of the Begin before it",
                detail=f"Commit {format_lsn(commit.commit_lsn)}, "
                f"Begin {'none' if begin is None else format_lsn(begin.final_lsn)}",
            )
        done.append(self._take(begin, end_lsn=commit.end_lsn, last=True))
        self._begin = None
        self._first_seq = 0

    def _take(self, begin: Begin, *, end_lsn: int, last: bool) -> Transaction:
        """What has gathered, as a piece; the next one begins behind it."""
        piece = Transaction(
            begin.xid,
            begin.final_lsn,
            begin.commit_time_us,
            self._changes,
            first_seq=self._first_seq,
            end_lsn=end_lsn,
            last=last,
            nbytes=self._nbytes,
        )
        self._first_seq += len(self._changes)
        self._changes = []
        self._nbytes = 0
        return piece

    def _next_seq(self) -> int:
        return self._first_seq + len(self._changes)

    def _add(self, change: Change, nbytes: int, done: list[Transaction]) -> None:
        if self._begin is None:
            raise DataError("a change came outside BEGIN and COMMIT", detail=type(change).__name__)
        self._changes.append(change)
        self._nbytes += nbytes
        if self._nbytes > self._piece_bytes:
            done.append(self._take(self._begin, end_lsn=0, last=False))

    def _relation(self, oid: int, row: Row) -> Relation:
        relation = self._relations.get(oid)
        if relation is None:
            raise DataError("a change names a table that the stream has not described", detail=f"relation oid {oid}")
        if len(row) != len(relation.columns):
            raise DataError(
                f"a row of {relation.qualified_name} has not as many values as the table has columns",
                detail=f"{len(row)} values, {len(relation.columns)} columns",
            )
        return relation

    def _update(self, message: Update, relation: Relation) -> RowChange:
        old = message.old
        if old is not None:
            self._relation(message.relation_oid, old)
            if message.old_is_key:
                old = _key_of(old, relation)
            elif ABSENT in message.new:
                _merge(message.new, old)
        return RowChange(UPDATE, self._next_seq(), relation, message.new, old)

    def _describe(self, message: RelationMessage) -> None:
        columns = message.columns
        for column in columns:
            column.type_name = self._type_names.get(column.type_oid, str(column.type_oid))
        if message.replica_identity == "f":
            primary_key = set(self._primary_keys.get(f"{message.schema}.{message.name}", ()))
            if primary_key and primary_key <= {column.name for column in columns}:
                for column in columns:
                    column.key = column.name in primary_key
        self._relations[message.oid] = Relation(
            message.oid, message.schema, message.name, message.replica_identity, columns
        )

    def _truncate(self, message: TruncateMessage, done: list[Transaction]) -> None:
        for oid in message.relation_oids:
            relation = self._relations.get(oid)
            if relation is None:
                raise DataError(
                    "a TRUNCATE names a table that the stream has not described", detail=f"relation oid {oid}"
                )
            change = Truncate(
                self._next_seq(), relation, cascade=message.cascade, restart_identity=message.restart_identity
            )
            self._add(change, _CHANGE_BYTES, done)

    def _emitted(self, message: EmittedMessage, frame: XLogData, nbytes: int, done: list[Transaction]) -> None:
        change = LogicalMessage(self._next_seq(), message.prefix, message.content, transactional=message.transactional)
        if self._begin is not None or message.transactional:
            self._add(change, nbytes, done)
            return
        done.append(Transaction(0, message.lsn, frame.send_time_us, [change], end_lsn=message.lsn, nbytes=nbytes))


def _key_of(row: Row, relation: Relation) -> Row:
    """A key-only old tuple: what is not in the key was sent as NULL and means nothing."""
    return [value if column.key else ABSENT for column, value in zip(relation.columns, row, strict=True)]


def _merge(new: Row, old: Row) -> None:
    """Under REPLICA IDENTITY FULL the old row has the TOAST values that did not change."""
    for index, value in enumerate(new):
        if value is ABSENT:
            new[index] = old[index]
