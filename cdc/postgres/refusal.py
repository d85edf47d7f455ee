"""Translates Postgres's errors: each becomes `Unavailable`, `Invalid` or `SlotLost`, with a hint.

Once a session exists, the SQLSTATE decides (manual, appendix A), because messages may be in any language. While a
connection is being made, libpq gives the text alone. There we look for English phrases. A text that we do not recognise
is `Unavailable`: trying again is harmless, and the message is in the log.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import pq

from cdc.errors import CdcError, Invalid, SlotLost, Unavailable

UNDEFINED_OBJECT: Final = "42704"
NOT_IN_PREREQUISITE_STATE: Final = "55000"
INSUFFICIENT_PRIVILEGE: Final = "42501"
INVALID_PARAMETER_VALUE: Final = "22023"
QUERY_CANCELED: Final = "57014"
DUPLICATE_OBJECT: Final = "42710"


class SlotActive(Unavailable):
    """Another consumer holds the slot. The caller stands by and tries again."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One error as the server sent it. `sqlstate` is empty when the connection itself failed."""

    sqlstate: str
    message: str
    detail: str = ""
    hint: str = ""

    @property
    def explanation(self) -> str:
        """The text for an error's detail: the server's own words, and the code to look up. Never a row's value."""
        said = f"{self._message} ({self.sqlstate})" if self.sqlstate else self._message
        return "; ".join(part for part in (said, "" if self._is_about_a_row else self.detail, self.hint) if part)

    @property
    def _is_about_a_row(self) -> bool:
        """True for errors whose details quote keys or whole rows: `Failing row contains (7, what a user wrote)`."""
        return self.sqlstate.startswith(("22", "23", "44", "P0"))

    @property
    def _message(self) -> str:
        match self.sqlstate[:2]:
            case "22":  # invalid input syntax for type integer: "what a user wrote"
                return re.sub(r'".*"', '"…"', self.message, flags=re.DOTALL)
            case "P0":
                return "a function or trigger of the database raised an exception; the server's log has its words"
        return self.message


def refusal_of_result(result: pq.abc.PGresult | None) -> Refusal:
    """Read the error fields of a failed result."""
    if result is None:
        return Refusal("", "Postgres gave no answer")

    def field(code: pq.DiagnosticField) -> str:
        return (result.error_field(code) or b"").decode("utf-8", "replace")

    message = field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message.decode("utf-8", "replace").strip()
    return Refusal(
        field(pq.DiagnosticField.SQLSTATE),
        message,
        field(pq.DiagnosticField.MESSAGE_DETAIL),
        field(pq.DiagnosticField.MESSAGE_HINT),
    )


def refusal_of_exception(error: psycopg.Error) -> Refusal:
    """Read the error fields of what psycopg raised."""
    diag = error.diag
    return Refusal(
        error.sqlstate or "",
        diag.message_primary or str(error).strip(),
        diag.message_detail or "",
        diag.message_hint or "",
    )


# Phrases of libpq and of the server's FATAL messages before a session exists -> (what is wrong, hint).
_CONNECTING: Final[Sequence[tuple[str, str, str]]] = (
    (
        "password authentication failed",
        "Postgres refused the password",
        "check user and password in postgres.dsn (or ~/.pgpass); to set it: ALTER ROLE name PASSWORD '...';",
    ),
    (
        "no password supplied",
        "Postgres asks for a password and postgres.dsn has none",
        "add `password=...` to postgres.dsn, or a line to ~/.pgpass",
    ),
    (
        "channel binding",
        "postgres.dsn asks for channel binding and the server gives none",
        "store the password as scram: SET password_encryption = 'scram-sha-256'; ALTER ROLE name PASSWORD '...'; "
        "in pg_hba.conf: hostssl ... scram-sha-256   (a pooler in between cannot do it: connect past it)",
    ),
    (
        "no pg_hba.conf entry",
        "pg_hba.conf does not let this role in",
        "add to pg_hba.conf, then SELECT pg_reload_conf(): hostssl DATABASE ROLE ADDRESS scram-sha-256",
    ),
    (
        "authentication failed",
        "Postgres refused this role's authentication",
        "check user in postgres.dsn against pg_hba.conf and pg_ident.conf",
    ),
    ("is not permitted to log in", "the role may not log in", "ALTER ROLE name LOGIN;"),
    (
        "walsender",
        "the role may not replicate",
        "ALTER ROLE name REPLICATION; (`cdc init` creates such a role)",
    ),
    (
        "wal sender",
        "the role may not replicate",
        "ALTER ROLE name REPLICATION; (`cdc init` creates such a role)",
    ),
    ("permission denied for database", "the role may not connect to this database", "GRANT CONNECT ON DATABASE ...;"),
    (
        "server does not support ssl",
        "postgres.dsn asks for TLS and the server has none",
        "ALTER SYSTEM SET ssl = on; with a certificate in place",
    ),
    (
        "unsupported protocol",
        "the server's TLS is older than 1.2",
        "on the server: ALTER SYSTEM SET ssl_min_protocol_version = 'TLSv1.2'; and let ssl_max_protocol_version be",
    ),
    (
        "alert protocol version",
        "the server's TLS is older than 1.2",
        "on the server: ALTER SYSTEM SET ssl_min_protocol_version = 'TLSv1.2'; and let ssl_max_protocol_version be",
    ),
    (
        "certificate verify failed",
        "the server's certificate is not signed by a known authority",
        "add `sslrootcert=/path/to/ca.crt` (or sslrootcert=system) to postgres.dsn",
    ),
    (
        "root certificate file",
        "the authority's certificate is missing",
        "add `sslrootcert=/path/to/ca.crt` (or sslrootcert=system) to postgres.dsn",
    ),
    (
        "does not match host name",
        "the server's certificate is for another host",
        "use the certificate's host name in postgres.dsn",
    ),
    ("invalid sslmode value", "postgres.dsn has an unknown sslmode", "use sslmode=verify-full"),
)

_AWAY: Final[Sequence[tuple[str, str, str]]] = (
    ("starting up", "Postgres is starting up", ""),
    ("shutting down", "Postgres is shutting down", ""),
    ("recovery", "Postgres is in recovery", ""),
    (
        "max_wal_senders",
        "Postgres has no free WAL sender",
        "ALTER SYSTEM SET max_wal_senders = 20; and restart Postgres",
    ),
    ("too many clients", "Postgres has no free connection", "raise max_connections, or close idle sessions"),
    ("remaining connection slots", "Postgres has no free connection", "raise max_connections, or close idle sessions"),
    ("connection refused", "no server listens at this address", "check host and port in postgres.dsn; is Postgres up?"),
    ("no such file or directory", "no server listens at this address", "check host and port in postgres.dsn"),
    ("resolve host", "the host name is unknown", "check host in postgres.dsn"),
    ("name or service not known", "the host name is unknown", "check host in postgres.dsn"),
    ("timeout", "Postgres did not answer in time", "check host and port in postgres.dsn, and the network"),
)


def while_connecting(refusal: Refusal) -> CdcError:
    """Make the error of a connection that did not come about: Invalid or Unavailable."""
    said = refusal.message.lower()
    if " does not exist" in said and ("role " in said or "database " in said):
        what = "role" if "role " in said else "database"
        return Invalid(
            f"the {what} named in postgres.dsn does not exist",
            detail=refusal.explanation,
            hint=f"check postgres.dsn, or: CREATE {what.upper()} ...; (`cdc init` creates the roles)",
        )
    for phrase, message, hint in _CONNECTING:
        if phrase in said:
            return Invalid(message, detail=refusal.explanation, hint=hint)
    for phrase, message, hint in _AWAY:
        if phrase in said:
            return Unavailable(message, detail=refusal.explanation, hint=hint)
    return Unavailable("no connection to Postgres", detail=refusal.explanation, hint="check postgres.dsn")


def in_session(refusal: Refusal) -> CdcError:
    """Make the error of a command or a stream, from the SQLSTATE alone: Invalid or Unavailable."""
    match refusal.sqlstate[:2], refusal.sqlstate:
        case _, "42501":
            return Invalid(
                "the role lacks a privilege", detail=refusal.explanation, hint="grant it; `cdc init` prints the grants"
            )
        case (("28" | "3D" | "0A" | "22" | "42"), _):
            return Invalid("Postgres refused the command", detail=refusal.explanation)
        case _, "53400":
            return Invalid(
                "Postgres has no free replication slot",
                detail=refusal.explanation,
                hint="ALTER SYSTEM SET max_replication_slots = 20; and restart Postgres, or drop one without a reader",
            )
        case _, "57P01":
            return Unavailable("Postgres ended the connection", detail=refusal.explanation)
        case _, "":
            return Unavailable("the connection to Postgres was lost", detail=refusal.explanation)
    return Unavailable("Postgres could not do it", detail=refusal.explanation)


@contextlib.contextmanager
def refused_as(explain: Callable[[Refusal], CdcError] = in_session) -> Iterator[None]:
    """Turn what psycopg raises inside into the error that `explain` makes of it. Nothing of psycopg's leaves with it.

    Raises what `explain` returns.
    """
    try:
        yield
    except psycopg.Error as error:
        raise explain(refusal_of_exception(error)) from None


def at_slot(refusal: Refusal, slot: str) -> CdcError:
    """Make the error of a command that uses the slot, such as START_REPLICATION.

    It is SlotActive, SlotLost or Invalid, or else what `in_session` makes.
    """
    said = refusal.message.lower()
    match refusal.sqlstate:
        case "55006":
            return SlotActive(
                f"replication slot {slot} is in use by another consumer",
                detail=refusal.explanation,
                hint=f"SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{slot}';",
            )
        case "42704":
            return SlotLost(
                f"replication slot {slot} does not exist",
                detail=refusal.explanation,
                hint="cdc slots; then cdc repair",
            )
        case "55000" if "can no longer" in said or "invalidated" in (said + refusal.detail.lower()):
            return SlotLost(
                f"replication slot {slot} was invalidated: its WAL is gone",
                detail=refusal.explanation,
                hint="cdc repair   # and find out why: max_slot_wal_keep_size too low, or no reader for too long",
            )
        case "55000" if "wal_level" in said:
            return wal_level_is_too_low(refusal.explanation)
        case "55000" if "physical" in said or "not created in this database" in said:
            return Invalid(
                f"replication slot {slot} belongs to something else",
                detail=refusal.explanation,
                hint='set another postgres.slot, for example slot = "cdc2"',
            )
    return in_session(refusal)


def in_stream(refusal: Refusal, slot: str, publication: str) -> CdcError:
    """Make the error that ended a running stream: about the publication, or else what `at_slot` makes."""
    match refusal.sqlstate:
        case "42704":
            # A publication created after the slot is unknown to the changes before it.
            return Invalid(
                f"publication {publication} does not exist for the changes being read",
                detail=refusal.explanation,
                hint=f"CREATE PUBLICATION {publication} FOR TABLE ...; "
                "if it is younger than the slot, the slot must be created again",
            )
        case "55000":
            return at_slot(refusal, slot)
    return in_session(refusal)


def wal_level_is_too_low(detail: str) -> Invalid:
    return Invalid(
        "wal_level is not logical: Postgres writes too little WAL for logical decoding",
        detail=detail,
        hint="ALTER SYSTEM SET wal_level = logical; and restart Postgres",
    )
