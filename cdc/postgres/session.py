"""Sessions: from `postgres.dsn` to a connection whose text output is always the same.

Every connection of ours, SQL or replication, starts with `SESSION_SETTINGS`. So a snapshot prints a value exactly as
the stream does, and no default of the role or the database matters. A remote host is refused without
`sslmode=verify-full`. The password never leaves the DSN: no error of ours quotes the DSN.

`Connection` is the one door to psycopg: what the driver raises leaves it as an error of ours.
"""

import contextlib
import ipaddress
from collections.abc import AsyncIterator, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self, TypeVar

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from cdc.config import PostgresSettings
from cdc.errors import Invalid, Unavailable
from cdc.postgres.refusal import Refusal, in_session, refusal_of_exception, refused_as, while_connecting

Parameters = Sequence[Any] | Mapping[str, Any] | None

_Answer = TypeVar("_Answer")

# Postgres's own subscriber uses an empty search_path, too: names print qualified, and no function of a user's schema
# can take the place of a built-in one.
SESSION_SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "client_encoding": "UTF8",
        "datestyle": "ISO",
        "intervalstyle": "iso_8601",
        "timezone": "UTC",
        "extra_float_digits": "3",
        "bytea_output": "hex",
        "search_path": "",
    }
)

# ALTER ROLE may give a role these limits. They would kill an idle sentinel, a long COPY or an exported snapshot.
_NO_LIMITS: Final = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}

# Half-open connections (a cable pulled, a NAT entry dropped) are noticed within about a minute.
_KEEPALIVES: Final = {
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "20",
    "keepalives_interval": "10",
    "keepalives_count": "4",
    # Keepalives stop while sent data waits for its acknowledgement, and a stream always has a status update on its way.
    # Then only this deadline (milliseconds) ends the retransmissions. Without it they go on for a quarter of an hour.
    "tcp_user_timeout": "60000",
}


def session_settings(server_encoding: str) -> dict[str, str]:
    """Give the settings of a connection that carries rows. In SQL_ASCII databases bytes pass without conversion."""
    client_encoding = "SQL_ASCII" if server_encoding == "SQL_ASCII" else "UTF8"
    return {**SESSION_SETTINGS, "client_encoding": client_encoding}


def read_dsn(settings: PostgresSettings) -> dict[str, str]:
    """Read the DSN's parameters. Raises Invalid, which quotes nothing: the mistake may be inside the password."""
    try:
        parameters = conninfo_to_dict(settings.dsn.get_secret_value())
    except psycopg.Error:
        raise Invalid(
            "postgres.dsn is not a connection string",
            hint='dsn = "postgresql://cdc@db.example.com/app?sslmode=verify-full" '
            "(in a URL, percent-encode special characters of the password)",
        ) from None
    return {name: str(value) for name, value in parameters.items() if value is not None}


def check_dsn(settings: PostgresSettings) -> None:
    """Refuse a remote host without sslmode=verify-full, unless `allow_insecure`. Raises Invalid."""
    parameters = _from_environment() | read_dsn(settings)
    remote = [host for host in _hosts(parameters) if not _is_local(host)]
    if not remote or settings.allow_insecure or parameters.get("sslmode") == "verify-full":
        return
    url = settings.dsn.get_secret_value().strip().startswith(("postgresql://", "postgres://"))
    piece = "?sslmode=verify-full&sslrootcert=system" if url else "sslmode=verify-full sslrootcert=system"
    raise Invalid(
        f"postgres.dsn names a remote host without sslmode=verify-full: {', '.join(remote)}",
        detail="an attacker on the network could read the rows, or answer in the server's place",
        hint=f"add `{piece}` to postgres.dsn (or set postgres.allow_insecure = true in a network you trust)",
    )


def _from_environment() -> dict[str, str]:
    """Read the parameters that libpq takes from PGHOST, PGHOSTADDR and PGSSLMODE when the DSN does not say."""
    wanted = ("host", "hostaddr", "sslmode")
    return {
        option.keyword.decode(): option.val.decode()
        for option in pq.Conninfo.get_defaults()
        if option.val is not None and option.keyword.decode() in wanted
    }


def _hosts(parameters: Mapping[str, str]) -> list[str]:
    if "service" in parameters and "host" not in parameters and "hostaddr" not in parameters:
        return [f"service {parameters['service']}"]
    return (parameters.get("hostaddr") or parameters.get("host") or "").split(",")


def _is_local(host: str) -> bool:
    if host in ("", "localhost") or host.startswith(("/", "@")):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Connection:
    """One session, in autocommit. Every method that asks raises Unavailable or Invalid, never an error of psycopg's.

    A query is text; bytes that are no UTF-8 may stand in it as `surrogateescape` has them. Without parameters a percent
    sign is plain text, and several statements may follow one another. `raw` is psycopg's own connection, for what has
    no method here: COPY, the replication stream, notices.
    """

    def __init__(self, raw: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
        self.raw = raw

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def backend_pid(self) -> int:
        """The process that serves us, as the server announced it."""
        return self.raw.info.backend_pid

    @property
    def server_version(self) -> int:
        """The server's version as libpq has it: 170002 is 17.2."""
        return self.raw.info.server_version

    @property
    def server_encoding(self) -> str:
        return (self.raw.pgconn.parameter_status(b"server_encoding") or b"").decode()

    @property
    def closed(self) -> bool:
        return self.raw.closed

    async def close(self) -> None:
        await self.raw.close()

    async def execute(self, query: str, parameters: Parameters = None) -> None:
        """Run a statement and ignore its rows. Raises Unavailable or Invalid."""
        await self.all(query, parameters)

    async def one(self, query: str, parameters: Parameters = None) -> tuple[Any, ...]:
        """Return the first row, which must be there. Raises Unavailable or Invalid."""
        return _first(await self.all(query, parameters))

    async def all(self, query: str, parameters: Parameters = None) -> list[tuple[Any, ...]]:
        """Return every row; none for a statement that has no result. Raises Unavailable or Invalid."""
        found = await self.attempt(query, parameters)
        if isinstance(found, Refusal):
            raise in_session(found)
        return found

    async def attempt(self, query: str, parameters: Parameters = None) -> list[tuple[Any, ...]] | Refusal:
        """Return every row, or the refusal. For a caller that goes on after it, or explains it in other words."""
        try:
            cursor = await self.raw.execute(_encode(query), parameters)
            return await cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            return refusal_of_exception(error)

    async def named(self, query: str, parameters: Parameters = None) -> list[dict[str, Any]]:
        """Return every row, its values by the names of the columns. Raises Unavailable or Invalid."""
        with refused_as(in_session):
            async with self.raw.cursor(row_factory=dict_row) as cursor:
                return await (await cursor.execute(_encode(query), parameters)).fetchall()

    async def one_named(self, query: str, parameters: Parameters = None) -> dict[str, Any]:
        """Return the first row, its values by the names of the columns. Raises Unavailable or Invalid."""
        return _first(await self.named(query, parameters))

    async def printed(self, query: str) -> list[list[bytes | None]]:
        """Return every row, its values as Postgres prints them. Raises Unavailable or Invalid."""
        with refused_as(in_session):
            result = (await self.raw.execute(_encode(query))).pgresult
        if result is None:
            return []
        return [[result.get_value(row, column) for column in range(result.nfields)] for row in range(result.ntuples)]

    @contextlib.asynccontextmanager
    async def transaction(self, *, force_rollback: bool = False) -> AsyncIterator[None]:
        """Open a transaction, or within one a savepoint. It commits at the end, and rolls back after an error.

        Raises Unavailable or Invalid.
        """
        with refused_as(in_session):
            async with self.raw.transaction(force_rollback=force_rollback):
                yield


def _encode(query: str) -> bytes:
    return query.encode(errors="surrogateescape")


def _first(rows: Sequence[_Answer]) -> _Answer:
    if not rows:
        raise Unavailable("Postgres did not answer")
    return rows[0]


async def connect(
    settings: PostgresSettings,
    *,
    application_name: str = "waltier",
    server_encoding: str = "UTF8",
    replication: bool = False,
) -> Connection:
    """Open a connection in autocommit with the session settings applied. Raises Invalid or Unavailable, with a hint."""
    check_dsn(settings)
    given = read_dsn(settings)
    session = {**session_settings(server_encoding), **_NO_LIMITS}
    client_encoding = session.pop("client_encoding")
    options = " ".join(f"-c {name}={value}" for name, value in session.items())
    parameters = {
        **_KEEPALIVES,
        **given,
        "application_name": application_name,
        "client_encoding": client_encoding,
        "options": f"{given.get('options', '')} {options}".strip(),
        **({"replication": "database"} if replication else {}),
    }
    try:
        raw = await psycopg.AsyncConnection.connect(autocommit=True, **parameters)  # type: ignore[arg-type]
        if raw.info.server_version >= 170000:
            # Unknown before 17, where naming it at the start would end the session.
            await raw.execute("SET transaction_timeout = 0")
    except psycopg.Error as error:
        raise while_connecting(refusal_of_exception(error)) from None
    except OSError as error:
        raise Unavailable("no connection to Postgres", detail=str(error), hint="check postgres.dsn") from None
    return Connection(raw)
