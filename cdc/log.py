"""Where log lines go: one JSON object a line on stderr, ours and the libraries' alike.

Events are lower-case verbs with fields, never a row's value, never a secret. Tracebacks are printed as Python prints
them, without local variables, which may hold either.
"""

import logging
import sys
from collections import deque
from collections.abc import MutableMapping
from typing import Any

import structlog

_STAMPED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]

_FIRST = ("timestamp", "level", "event")

# The last lines, for the status page. What may be logged may be shown: no row's value, no secret.
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
    structlog.configure(
        processors=[*_STAMPED, _people_read_this_first, _remember, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    _adopt_libraries(renderer)


def _adopt_libraries(renderer: Any) -> None:
    """Warnings of asyncio, botocore and the like in the same form. Their debug lines hold requests, so never those."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _people_read_this_first,
                _remember,
                renderer,
            ],
            foreign_pre_chain=[*_STAMPED, structlog.stdlib.add_logger_name],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
