"""Reads and applies the operator's SQL (`sql/`): the sample's tables, the publication, the roles.

Every file may be applied again and then changes nothing. `apply` does all of them in one transaction, so that a
database has the whole installation or none of it, and waits for no lock longer than an application would notice.

Files with a number are the installation; one without is applied only if it is asked for.
"""

from dataclasses import dataclass
from importlib.resources import files

import psycopg
import structlog

from cdc.errors import CdcError, Invalid, Unavailable

log = structlog.get_logger()

# While we wait for a lock, every later request for it waits behind us.
_LOCK_TIMEOUT = "5s"

DDL_SENTINEL = "ddl_sentinel.sql"

# Two operators at once would both find nothing and both create it. The key is the command's name in ASCII: "cdc_init".
_ADVISORY_LOCK = 0x6364635F696E6974


@dataclass(frozen=True, slots=True)
class SqlFile:
    name: str
    text: str


def read_sql(*, ddl_sentinel: bool = False) -> list[SqlFile]:
    """The files in the order in which they are applied. `cdc/sql` is the checkout's `sql/`, in a wheel a copy of it."""
    found = [file for file in files("cdc").joinpath("sql").iterdir() if file.name.endswith(".sql")]
    chosen = [file for file in found if file.name[0].isdigit() or (ddl_sentinel and file.name == DDL_SENTINEL)]
    return [SqlFile(file.name, file.read_text(encoding="utf-8")) for file in sorted(chosen, key=lambda file: file.name)]


async def apply(dsn: str, *, ddl_sentinel: bool = False) -> list[str]:
    """Install `sql/` with an administrator's dsn; return the names of the files. All of it, or nothing.

    Raises Invalid where the role may not or the database's own objects are in the way, Unavailable where trying again
    may help.
    """
    try:
        connection = await psycopg.AsyncConnection.connect(dsn, application_name="waltier init", connect_timeout=10)
    except psycopg.OperationalError as error:
        raise Unavailable(
            "cannot connect to Postgres in order to install sql/",
            detail=str(error).strip(),
            hint="cdc init --dsn postgresql://postgres@localhost/DATABASE",
        ) from error
    except psycopg.ProgrammingError:
        # libpq quotes the part that it cannot read, which may be the password.
        raise Invalid(
            "the administrator's dsn cannot be read",
            detail="it is neither a postgresql:// address nor key=value pairs",
            hint="cdc init --dsn postgresql://postgres@localhost/DATABASE "
            "(in a URL, percent-encode special characters of the password)",
        ) from None
    async with connection:
        await _begin(connection)
        return [await _apply_file(connection, file) for file in read_sql(ddl_sentinel=ddl_sentinel)]


async def _begin(connection: psycopg.AsyncConnection) -> None:
    await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
    await connection.execute("SET LOCAL client_min_messages = warning")
    await connection.execute("SET LOCAL search_path = pg_catalog")
    try:
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", [_ADVISORY_LOCK])
    except psycopg.Error as error:
        raise _translate(error, "the lock against a second cdc init") from error


async def _apply_file(connection: psycopg.AsyncConnection, file: SqlFile) -> str:
    try:
        # Ours, from the package, and without parameters: nothing of a user's is in it.
        await connection.execute(file.text)
    except psycopg.Error as error:
        raise _translate(error, file.name) from error
    log.info("sql_applied", file=file.name)
    return file.name


def _translate(error: psycopg.Error, name: str) -> CdcError:
    said = error.diag.message_primary or str(error).strip()
    match error:
        case psycopg.errors.InsufficientPrivilege():
            return Invalid(
                f"this role may not apply {name}",
                detail=said,
                hint="cdc init --dsn postgresql://SUPERUSER@HOST/DATABASE, or hand an administrator: cdc init --print",
            )
        case psycopg.errors.LockNotAvailable():
            return Unavailable(
                f"{name} waited {_LOCK_TIMEOUT} for a lock, and then let the application go first",
                detail=said,
                hint="SELECT pid, state, xact_start, query FROM pg_stat_activity WHERE xact_start IS NOT NULL "
                "ORDER BY xact_start;",
            )
        case psycopg.errors.UndefinedColumn() | psycopg.errors.WrongObjectType() | psycopg.errors.DuplicateObject():
            return Invalid(
                f"{name} meets something else of the same name in this database",
                detail=said,
                hint="cdc init --print, and apply the parts that you need",
            )
        case psycopg.OperationalError():
            return Unavailable(f"Postgres went away while {name} was applied", detail=said)
        case _:
            return Invalid(f"{name} cannot be applied", detail=said, hint="cdc init --print, and see what is refused")
