"""Decides what may be acknowledged, from what was received and what is durable. No other place decides it (pure).

The rule: Postgres is told `flush = x` only when the archive holds every transaction that ends at or before x. Two
kinds of position can become such an x:

- the `end_lsn` of the last archived transaction;
- the position K of a keepalive, which says "there was nothing for you up to K". It counts only if nothing is open and
  every transaction received is archived, and only after the archive has recorded it as covered. Acknowledging a
  keepalive over anything undurable is the bug of this field: it loses what is in flight.

Nothing here awaits, logs or reads a clock. Positions are integers (see `lsn.py`) of one epoch; a `Progress` lives as
long as one replication connection.
"""


class Progress:
    """The positions of one replication connection, which starts at the slot's `confirmed_flush_lsn`."""

    __slots__ = ("_in_transaction", "_last_end_lsn", "_server_lsn", "archived_lsn", "received_lsn")

    def __init__(self, confirmed_flush_lsn: int) -> None:
        self.archived_lsn = confirmed_flush_lsn
        self.received_lsn = confirmed_flush_lsn
        self._last_end_lsn = confirmed_flush_lsn
        self._server_lsn = 0
        self._in_transaction = False

    def received(self, end_lsn: int, server_lsn: int, in_transaction: bool) -> None:
        """Note what one read gave.

        `end_lsn` is that of the last transaction that it completed (0 if none), `server_lsn` the highest position that
        the server mentioned. `in_transaction` is True if a transaction is open after it.
        """
        self._last_end_lsn = max(self._last_end_lsn, end_lsn)
        self._server_lsn = max(self._server_lsn, server_lsn)
        self._in_transaction = in_transaction
        self.received_lsn = max(self.received_lsn, self._last_end_lsn, self._server_lsn)

    def archived(self, lsn: int) -> None:
        """Note that the archive is durable up to `lsn`: an `end_lsn`, or a position it has recorded as covered."""
        self.archived_lsn = max(self.archived_lsn, lsn)

    @property
    def acknowledged_lsn(self) -> int:
        """The position that we may report to the server as flushed. Never decreases."""
        return self.archived_lsn

    @property
    def idle(self) -> bool:
        """True if nothing is open and everything that was received is archived."""
        return not self._in_transaction and self._last_end_lsn <= self.archived_lsn

    @property
    def coverable_lsn(self) -> int | None:
        """A position that the archive may record as covered, or None if there is nothing to gain or we are not idle.

        It stays true while the record is being written: a transaction that is received meanwhile ends after it.
        """
        return self._server_lsn if self.idle and self._server_lsn > self.archived_lsn else None
