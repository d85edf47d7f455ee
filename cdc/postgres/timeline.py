"""Reads where a server's history left each earlier timeline, from its timeline history file (manual, "Timelines")."""

from cdc.config import PostgresSettings
from cdc.errors import DataError
from cdc.lsn import parse_lsn
from cdc.postgres.session import connect


async def read_switch_points(settings: PostgresSettings, timeline: int) -> dict[int, int]:
    """Read the LSN at which each ancestor of `timeline` was left, by the ancestor's number.

    Raises Unavailable, Invalid or DataError.
    """
    async with await connect(settings, replication=True) as connection:
        row = await connection.one(f"TIMELINE_HISTORY {timeline}")
    # psycopg gives bytes where the server calls the column bytea, or where client_encoding is SQL_ASCII.
    return parse_history(row[1] if isinstance(row[1], bytes) else str(row[1]).encode())


def parse_history(content: bytes) -> dict[int, int]:
    """Parse the lines `timeline <tab> LSN <tab> reason`, with empty lines and comments between. Raises DataError."""
    points = {}
    for line in content.decode(errors="replace").splitlines():
        words = line.partition("#")[0].split(None, 2)
        if not words:
            continue
        try:
            points[int(words[0])] = parse_lsn(words[1])
        except (ValueError, IndexError):
            raise DataError("the server's timeline history cannot be read", detail=line) from None
    return points
