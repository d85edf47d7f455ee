"""Asks the three neighbours."""

from dataclasses import replace

from cdc.config import Settings
from cdc.status.neighbours import look_at_archive, look_at_cache, look_at_postgres
from cdc.status.verdict import Status


async def examine(settings: Settings) -> Status:
    """Ask in the order that makes the answers comparable. Raises nothing that we foresee.

    The slot is read before the archive's tail and the tail before the cache, so that each may only be ahead of what was
    read before it, and `confirmed_flush_lsn <= covered_upto` can be checked while all of them move.
    """
    postgres = await look_at_postgres(settings.postgres)
    archive = await look_at_archive(settings.archive)
    if archive.tail is not None and (postgres.current_lsn or 0) < archive.tail.covered_upto:
        # The WAL has grown since we asked; or it has not, and the server was set back.
        postgres = replace(postgres, current_lsn=(await look_at_postgres(settings.postgres)).current_lsn)
    cache = await look_at_cache(settings.cache)
    return Status(postgres, archive, cache)
