"""The sentinel: an idle session that tells us at once when Postgres wants to shut down.

Fast shutdown waits for every WAL sender until its receiver has acknowledged everything. We must not do that while the
archive is away. But the server ends an idle session at the very start of a shutdown (measured: 0.03 s). A service that
waits on the sentinel then closes the replication connection, and the server is down a moment later.
"""

from types import TracebackType
from typing import Self

import psycopg
import structlog
from psycopg.errors import Diagnostic

from cdc.config import PostgresSettings
from cdc.postgres.refusal import refusal_of_exception
from cdc.postgres.session import Connection, connect
from cdc.postgres.stream.pump import Pump

log = structlog.get_logger()


class Sentinel:
    """Watches for one shutdown: `open`, then `wait_ended` in a task of its own, then `close`."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings
        self._connection: Connection | None = None
        self._ending = ""

    async def open(self) -> None:
        """Connect. Raises Unavailable or Invalid."""
        self._connection = await connect(self._settings, application_name="waltier sentinel")
        self._connection.raw.add_notice_handler(self._note)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def wait_ended(self) -> str:
        """Return the server's words the moment it ends the session; safe to cancel. At once if it is not open."""
        if self._connection is None or self._connection.closed:
            return self._ending or "the session is closed"
        pgconn = self._connection.raw.pgconn
        pump = Pump(pgconn)
        while not self._ending:
            await pump.readable()
            try:
                pgconn.consume_input()
                # libpq parses what an idle session is told only when notifications are asked for.
                pgconn.notifies()
            except psycopg.Error as error:
                self._ending = self._ending or refusal_of_exception(error).message
        log.info("sentinel_ended", reason=self._ending)
        return self._ending

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    def _note(self, diagnostic: Diagnostic) -> None:
        """Keep the server's message. A FATAL one to an idle session arrives as a notice, before the connection ends."""
        if diagnostic.severity_nonlocalized in ("FATAL", "PANIC"):
            self._ending = f"{diagnostic.message_primary} ({diagnostic.sqlstate})"
