"""What the doctor says: one thing that was looked at, and what mends it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cdc.errors import CdcError

Level = Literal["ok", "info", "warning", "error"]
Subject = Literal["secrets", "postgres", "publication", "slot", "archive", "cache"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `hint` is for people: a command or a line to paste.

    `sql` (for an administrator of the database) and `command` (for a shell) mend it as they stand; neither holds a
    secret. `optional` says that a person must want it: it ends something of somebody else's, or costs something.
    """

    level: Level
    subject: Subject
    message: str
    hint: str = ""
    sql: str = ""
    command: str = ""
    optional: bool = False


def exit_code(findings: Sequence[Finding]) -> int:
    """1 if anything is wrong; warnings are not."""
    return 1 if any(finding.level == "error" for finding in findings) else 0


def failure(subject: Subject, error: CdcError) -> Finding:
    """The neighbour could not be asked, or refused."""
    return Finding("error", subject, one_line(error), error.hint)


def one_line(error: CdcError) -> str:
    """Message and detail; a detail may hold what a server said in several lines."""
    return f"{error.message} ({' '.join(error.detail.split())})" if error.detail else error.message


def mended_by_sql(
    level: Level, subject: Subject, message: str, sql: str, remark: str = "", *, optional: bool = False
) -> Finding:
    """A finding whose hint is the SQL, with a remark behind it."""
    return Finding(level, subject, message, f"{sql}  ({remark})" if remark else sql, sql=sql, optional=optional)
