"""Asks Postgres, the archive and the cache for their state, in an order that makes the answers comparable."""

from dataclasses import replace

from cdc.config import Settings
from cdc.status.neighbours import look_at_archive, look_at_cache, look_at_postgres
from cdc.status.verdict import Status


async def examine(settings: Settings) -> Status:
    """Ask the three neighbours. A CdcError of one of them stands in its part of the status, and is not raised.

    The slot is read before the archive's tail and the tail before the cache, so that each may only be ahead of what was
    read before it, and `confirmed_flush_lsn <= covered_upto` can be checked while all of them move.
    """
    postgres = await look_at_postgres(settings.postgres)
    archive = await look_at_archive(settings.archive)
    if archive.tail is not None and (postgres.current_lsn or 0) < archive.tail.covered_upto:
        # Either the WAL has grown since we asked, or the server was set back: asking again tells.
        postgres = replace(postgres, current_lsn=(await look_at_postgres(settings.postgres)).current_lsn)
    cache = await look_at_cache(settings.cache)
    return Status(postgres, archive, cache)
