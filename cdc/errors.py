"""The few kinds of error. Each kind tells the caller what to do:

`Unavailable`  try again: a server is away, slow or refuses for now
`Invalid`      mend the configuration or the database's setup (exit 2)
`DataError`    bytes are not what their format says; stop and keep the evidence (exit 1)
`Moved`        a sink's destination is not where we left it (flushed, failed over, restored): open it again
`Fenced`       another writer owns the archive; end at once and touch nothing (exit 75)
`Diverged`     source and archive no longer tell one history; a person must decide (exit 78)
`ChangesLost`  the same, and what is missing is written into the archive as a gap, which `cdc repair` closes (exit 78)
`SlotLost`     the slot is gone or invalidated, and its changes with it

Anything else is a bug and crashes. Every error has Postgres's three parts: message, detail, and a hint, which is a
command or a line of configuration that can be pasted.
"""


class CdcError(Exception):
    """Base of all errors that we raise on purpose.

    `str()` gives the message alone, `one_line()` also its detail, and `explain()` all three parts.
    """

    exit_code = 1

    def __init__(self, message: str, *, detail: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint

    def one_line(self) -> str:
        """The message with its detail on one line, also if a server's words in the detail have several lines."""
        return f"{self.message} ({' '.join(self.detail.split())})" if self.detail else self.message

    def explain(self) -> str:
        """The message with its detail and hint, one part a line, as psql prints them."""
        parts = [self.message]
        parts += [f"detail: {self.detail}"] if self.detail else []
        parts += [f"hint: {self.hint}"] if self.hint else []
        return "\n".join(parts)

    def log_fields(self) -> dict[str, str]:
        """The kind and the three parts, as fields of a log event."""
        return {"kind": type(self).__name__, "reason": self.message, "detail": self.detail, "hint": self.hint}


class Unavailable(CdcError):
    pass


class Invalid(CdcError):
    exit_code = 2


class DataError(CdcError):
    pass


class Moved(CdcError):
    pass


class Fenced(CdcError):
    exit_code = 75


class Diverged(CdcError):
    exit_code = 78


class ChangesLost(Diverged):
    """Changes can no longer be read from the WAL. They begin at `from_lsn`; None: at the archive's end."""

    def __init__(self, message: str, *, detail: str = "", hint: str = "", from_lsn: int | None = None) -> None:
        super().__init__(message, detail=detail, hint=hint)
        self.from_lsn = from_lsn


class SlotLost(ChangesLost):
    pass
