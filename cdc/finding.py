"""Findings, which doctor, status, readiness and warnings are made of: a thing that was examined, its state, a hint."""

from dataclasses import dataclass
from typing import Literal

from cdc.errors import CdcError, DataError, Diverged

Level = Literal["ok", "info", "warning", "error"]
Subject = Literal[
    "archive", "cache", "loop", "monitor", "postgres", "proof", "publication", "secrets", "service", "slot", "task"
]


@dataclass(frozen=True, slots=True)
class Finding:
    """One statement about a subject, with its level and a hint that can be pasted.

    `sql` (for an administrator of the database) and `command` (for a shell) mend it as they stand; neither holds a
    secret. `optional` means that a person must agree first, because the line ends something that others own, or costs
    something. `needs_person` means that the trouble does not go away by itself.
    """

    subject: Subject
    message: str
    hint: str = ""
    level: Level = "warning"
    needs_person: bool = False
    sql: str = ""
    command: str = ""
    optional: bool = False

    def __str__(self) -> str:
        """Everything on one line, also if a part holds line breaks."""
        hint = f"; hint: {self.hint}" if self.hint else ""
        return " ".join(f"{self.subject}: {self.message}{hint}".split())

    @property
    def told(self) -> dict[str, str]:
        """The three parts as they stand in JSON."""
        return {"subject": self.subject, "message": self.message, "hint": self.hint}


def failure(subject: Subject, error: CdcError) -> Finding:
    """The finding that a neighbour could not be asked, or refused."""
    person = isinstance(error, DataError) or error.exit_code == Diverged.exit_code
    return Finding(subject, error.one_line(), error.hint, level="error", needs_person=person)


def mended_by_sql(
    level: Level, subject: Subject, message: str, sql: str, remark: str = "", *, optional: bool = False
) -> Finding:
    """A finding whose hint is the SQL, with a remark behind it."""
    return Finding(subject, message, f"{sql}  ({remark})" if remark else sql, level=level, sql=sql, optional=optional)
