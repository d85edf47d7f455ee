"""Writes log lines to stderr, one JSON object a line, ours and the libraries' alike.

Events are lower-case verbs with fields, never a row's value, never a secret. A traceback is printed without local
variables. The message of an exception that is not ours is withheld, because it may quote a row or a secret
(`invalid literal for int(): 'a user's text'`, Postgres's `DETAIL: Failing row contains ...`). The types and the places
remain. With level `debug` the messages are shown.
"""

import logging
import sys
import traceback
from collections import deque
from collections.abc import Iterator, MutableMapping
from types import TracebackType
from typing import Any

import structlog

from cdc.errors import CdcError

# Their messages are our own words, or name files and addresses.
_SPEAKABLE = (CdcError, OSError, ImportError, MemoryError, KeyboardInterrupt)

_WITHHELD = "(message withheld, for it may quote a row; log.level = debug shows it)"


def describe(error: BaseException, *, frankly: bool = False) -> str:
    """Format the traceback and its causes, oldest first as Python does, with only those messages that quote no data.

    `frankly` shows every message.
    """
    return "\n".join(_paragraphs(error, set(), frankly))


def _paragraphs(error: BaseException, seen: set[int], frankly: bool) -> Iterator[str]:
    seen.add(id(error))
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if earlier is not None and id(earlier) not in seen:
        yield from _paragraphs(earlier, seen, frankly)
        yield "\nThe next exception followed from it:\n"
    yield "Traceback (most recent call last):"
    yield "".join(traceback.format_tb(error.__traceback__)).rstrip()
    kind = type(error)
    speakable = frankly or isinstance(error, _SPEAKABLE)
    yield f"{kind.__module__}.{kind.__qualname__}: {error if speakable else _WITHHELD}"
    if isinstance(error, BaseExceptionGroup):
        for number, member in enumerate(error.exceptions, 1):
            yield f"\n{number} of {len(error.exceptions)} in the group:"
            yield from _paragraphs(member, seen, frankly)


class _Tracebacks:
    """Turns `exc_info` into text, for our own log calls, for the libraries' and for uncaught exceptions."""

    def __init__(self) -> None:
        self.frankly = False

    def __call__(self, _logger: Any, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        given = fields.pop("exc_info", None)
        error = given[1] if isinstance(given, tuple) else sys.exc_info()[1] if given is True else given
        if isinstance(error, BaseException):
            fields["exception"] = describe(error, frankly=self.frankly)
        return fields

    def print_uncaught(
        self, _kind: type[BaseException], error: BaseException, _traceback: TracebackType | None
    ) -> None:
        """Print the exception that ends this process: our `sys.excepthook`."""
        print(describe(error, frankly=self.frankly), file=sys.stderr)


_tracebacks = _Tracebacks()


def _only_the_first_line(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Drop asyncio's further lines, which quote the exception: `future: <Task ... exception=KeyError('a text')>`."""
    if fields.get("exc_info") and not _tracebacks.frankly:
        fields["event"] = str(fields["event"]).partition("\n")[0]
    return fields


_STAMPED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    _tracebacks,
]

_FIRST = ("timestamp", "level", "event")

# The last lines, for the status page. They may be shown, because no line holds a row's value or a secret.
recent: deque[dict[str, Any]] = deque(maxlen=200)


def _people_read_this_first(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> dict[str, Any]:
    return {**{name: fields.pop(name, "") for name in _FIRST}, **fields}


def _remember(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if fields["level"] != "debug":
        recent.append(dict(fields))
    return fields


def to_stderr(level: str = "info") -> None:
    """Send every log line of at least `level` to stderr."""
    renderer = structlog.processors.JSONRenderer()
    _tracebacks.frankly = level == "debug"
    sys.excepthook = _tracebacks.print_uncaught
    structlog.configure(
        processors=[*_STAMPED, _people_read_this_first, _remember, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    _adopt_libraries(renderer)


def _adopt_libraries(renderer: Any) -> None:
    """Log warnings of asyncio, botocore and others in the same form, but no debug lines: those hold requests."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _people_read_this_first,
                _remember,
                renderer,
            ],
            foreign_pre_chain=[_only_the_first_line, *_STAMPED, structlog.stdlib.add_logger_name],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
