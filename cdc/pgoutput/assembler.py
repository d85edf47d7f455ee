"""The assembler turns CopyData into committed transactions.

One `Assembler` belongs to one connection, because the server describes each table once per connection. With protocol
version 1 it sends a transaction only after its commit, in one run from Begin to Commit; there is nothing to roll back.
It returns:

- each transaction with changes, in pieces if it is large. A transaction without changes, which Postgres 14 sends for
  other tables, is only a position, like a keepalive's: `wal_end` has it;
- each logical message that is not transactional, as a transaction of its own.

A stream that contradicts itself raises DataError: a row outside a transaction, a table that was never described, a
Commit that does not belong to its Begin. So does a commit time before 1970 or after the year 9999.
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
from cdc.pgoutput.frames import PAYLOAD_BEGIN, WAL_END_BEGIN, WAL_END_END, XLOG_DATA, Keepalive, decode_frame
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

# The year 10000, in microseconds since 1970: the archive prints times with four digits of year.
_END_OF_TIME_US: Final = 253_402_300_800_000_000

# The memory of objects beside the bytes of their values, measured (tests/unit/pgoutput/test_assembler.py). The bytes
# count twice: once in the row, once in its JSON, which is made when the first sink asks for it.
_TRANSACTION_BYTES: Final = 300
_CHANGE_BYTES: Final = 150
_VALUE_BYTES: Final = 40


class Received:
    """The result of one `feed`. `wal_end` is the highest LSN that any frame of this connection named."""

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
        self._wal_end = bytes(8)
        self._begin: Begin | None = None
        self._changes: list[Change] = []
        self._first_seq = 0
        self._nbytes = 0

    @property
    def in_transaction(self) -> bool:
        """True between a Begin and its Commit."""
        return self._begin is not None

    def feed(self, copy_data: Iterable[bytes]) -> Received:
        """Take CopyData messages as they came; return the transactions that they completed, in order.

        Raises DataError for a stream that contradicts itself.
        """
        done: list[Transaction] = []
        reply_requested = False
        # In network order eight bytes compare like the number they are: the hot path makes no frame object.
        wal_end = self._wal_end
        for data in copy_data:
            if len(data) > PAYLOAD_BEGIN and data[0] == XLOG_DATA:
                position = data[WAL_END_BEGIN:WAL_END_END]
                self._apply(decode_message(data, PAYLOAD_BEGIN), data, done)
            else:
                frame = decode_frame(data)
                position = frame.wal_end.to_bytes(8, "big")
                reply_requested = reply_requested or (isinstance(frame, Keepalive) and frame.reply_requested)
            if position > wal_end:
                wal_end = position
        self._wal_end = wal_end
        return Received(done, int.from_bytes(wal_end, "big"), reply_requested)

    def _apply(self, message: Message, data: bytes, done: list[Transaction]) -> None:
        match message:
            case Insert():
                self._add_row(CREATE, message.relation_oid, message.new, None, data, done)
            case Begin():
                self._start(message)
            case Commit():
                self._finish(message, done)
            case Update():
                old = message.old
                if old is not None:
                    old = self._old_row(message.relation_oid, old, message.old_is_key, message.new)
                self._add_row(UPDATE, message.relation_oid, message.new, old, data, done)
            case Delete():
                old = self._old_row(message.relation_oid, message.old, message.old_is_key, None)
                self._add_row(DELETE, message.relation_oid, None, old, data, done)
            case RelationMessage():
                self._describe(message)
            case TypeMessage():
                self._type_names.setdefault(message.oid, f"{message.schema}.{message.name}")
            case Origin():
                pass
            case TruncateMessage():
                self._truncate(message, done)
            case EmittedMessage():
                self._emitted(message, data, done)
            case _:
                assert_never(message)

    def _start(self, begin: Begin) -> None:
        if self._begin is not None:
            raise DataError(
                "a transaction began inside another one",
                detail=f"{format_lsn(begin.final_lsn)} inside {format_lsn(self._begin.final_lsn)}",
            )
        _check_time(begin.commit_time_us)
        self._begin = begin

    def _finish(self, commit: Commit, done: list[Transaction]) -> None:
        begin = self._begin
        if begin is None or begin.final_lsn != commit.commit_lsn:
            raise DataError(
                "a Commit is not that of the Begin before it",
                detail=f"Commit {format_lsn(commit.commit_lsn)}, "
                f"Begin {'missing' if begin is None else format_lsn(begin.final_lsn)}",
            )
        if commit.end_lsn < commit.commit_lsn:
            raise DataError(
                "a transaction ends before its commit",
                detail=f"Commit {format_lsn(commit.commit_lsn)}, end {format_lsn(commit.end_lsn)}",
            )
        if self._changes or self._first_seq:
            done.append(self._take(begin, commit.end_lsn, True))
        self._begin = None
        self._first_seq = 0

    def _take(self, begin: Begin, end_lsn: int, last: bool) -> Transaction:
        """Take the gathered changes as a piece; the next piece begins behind them."""
        changes, first_seq, nbytes = self._changes, self._first_seq, self._nbytes
        self._changes = []
        self._first_seq = first_seq + len(changes)
        self._nbytes = 0
        return Transaction(
            begin.xid,
            begin.final_lsn,
            begin.commit_time_us,
            changes,
            first_seq=first_seq,
            end_lsn=end_lsn,
            last=last,
            nbytes=nbytes + _TRANSACTION_BYTES,
        )

    def _add_row(
        self, op: str, relation_oid: int, new: Row | None, old: Row | None, data: bytes, done: list[Transaction]
    ) -> None:
        relation = self._relations.get(relation_oid)
        if relation is None:
            raise _unknown_table(relation_oid)
        width = len(relation.columns)
        if new is not None and len(new) != width:
            raise _wrong_width(new, relation)
        change = RowChange(op, self._first_seq + len(self._changes), relation, new, old)
        self._add(change, 2 * len(data) + _VALUE_BYTES * width + _CHANGE_BYTES, done)

    def _add(self, change: Change, nbytes: int, done: list[Transaction]) -> None:
        if self._begin is None:
            raise DataError("a change came outside BEGIN and COMMIT", detail=type(change).__name__)
        self._changes.append(change)
        self._nbytes += nbytes
        if self._nbytes > self._piece_bytes:
            done.append(self._take(self._begin, 0, False))

    def _relation(self, oid: int) -> Relation:
        relation = self._relations.get(oid)
        if relation is None:
            raise _unknown_table(oid)
        return relation

    def _old_row(self, relation_oid: int, old: Row, old_is_key: bool, new: Row | None) -> Row:
        """The old row, with ABSENT for what was not sent. A whole old row gives `new` its unchanged TOAST values."""
        relation = self._relation(relation_oid)
        if len(old) != len(relation.columns):
            raise _wrong_width(old, relation)
        if old_is_key:
            # Postgres sends NULL for the columns outside the key: those values are not known.
            return [value if column.key else ABSENT for value, column in zip(old, relation.columns, strict=True)]
        if new is not None and ABSENT in new and len(new) == len(old):
            new[:] = [before if after is ABSENT else after for before, after in zip(old, new, strict=True)]
        return old

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
            change = Truncate(
                self._first_seq + len(self._changes),
                self._relation(oid),
                cascade=message.cascade,
                restart_identity=message.restart_identity,
            )
            self._add(change, _CHANGE_BYTES, done)

    def _emitted(self, message: EmittedMessage, data: bytes, done: list[Transaction]) -> None:
        seq = self._first_seq + len(self._changes)
        change = LogicalMessage(seq, message.prefix, message.content, transactional=message.transactional)
        nbytes = 2 * len(data) + _CHANGE_BYTES
        if self._begin is not None or message.transactional:
            self._add(change, nbytes, done)
        else:
            # The message's record ends at `lsn`, and a commit record may begin just there. The last byte of its own
            # record is a position that no other transaction has.
            time_us = decode_frame(data).send_time_us
            _check_time(time_us)
            done.append(
                Transaction(
                    0, message.lsn - 1, time_us, [change], end_lsn=message.lsn, nbytes=nbytes + _TRANSACTION_BYTES
                )
            )


def _check_time(time_us: int) -> None:
    if not 0 <= time_us < _END_OF_TIME_US:
        raise DataError("a transaction's time is not of this age", detail=f"{time_us} microseconds since 1970")


def _unknown_table(oid: int) -> DataError:
    return DataError("a change names a table that the stream has not described", detail=f"relation oid {oid}")


def _wrong_width(row: Row, relation: Relation) -> DataError:
    return DataError(
        f"a row of {relation.qualified_name} has not as many values as the table has columns",
        detail=f"{len(row)} values, {len(relation.columns)} columns",
    )
