"""Compares the published tables with those that the archive knows.

A table that leaves the publication, or is dropped and created again, loses rows silently.

At a start, with the slot held, the tables that the archive's headers name are compared with the publication (`begin`).
Before idle WAL is covered, and now and then under traffic, they are compared again (`recheck`).
"""

from collections.abc import Mapping

import structlog

from cdc.archive.writer.sink import ArchiveSink
from cdc.config import Settings
from cdc.postgres.publication import Publication, read_publication
from cdc.postgres.publication_check import check_publication
from cdc.postgres.session import Connection, connect
from cdc.service.gap import check_tables

log = structlog.get_logger()


class PublicationWatch:
    """Watches the publication for one service. `publication` is as it was seen last; None before the first stream."""

    def __init__(self, settings: Settings) -> None:
        self.publication: Publication | None = None
        self._settings = settings
        self._tables: dict[str, int] = {}
        self._looked_lsn = 0

    async def begin(
        self, connection: Connection, archive: ArchiveSink, known: Mapping[str, int], covered_upto: int
    ) -> dict[str, int]:
        """Compare the archive's `known` tables (oids by name); return all that are known now. Raises ChangesLost."""
        publication = await read_publication(connection, self._settings.postgres.publication)
        self._tables = await check_tables(connection, publication, known, archive)
        self._looked_lsn = covered_upto
        return self._tables

    async def recheck(self, archive: ArchiveSink) -> None:
        """Compare again, over a connection of its own.

        Raises ChangesLost, Unavailable, or Invalid for what cannot be served now.
        """
        covered_upto = archive.covered_upto
        async with await connect(self._settings.postgres) as connection:
            publication = await read_publication(connection, self._settings.postgres.publication)
            self._tables = await check_tables(
                connection, publication, self._tables, archive, since_lsn=self._looked_lsn
            )
        self._looked_lsn = covered_upto
        known = self.publication
        if known is not None and publication.fingerprint != known.fingerprint:
            log.warning("publication_changed", publication=publication.name, tables=len(publication.tables))
            check_publication(publication, self._settings.cache.served)
        self.publication = publication
