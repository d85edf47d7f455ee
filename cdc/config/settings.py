"""Joins the sections into `Settings`, and checks what only two sections together can get wrong."""

from pathlib import Path
from typing import Self

from pydantic import PrivateAttr, model_validator

from cdc.config.archive import ArchiveSettings
from cdc.config.cache import CacheSettings
from cdc.config.http import HttpSettings
from cdc.config.log import LogSettings
from cdc.config.monitor import MonitorSettings
from cdc.config.postgres import PostgresSettings
from cdc.config.projection import HistoryProjection, LatestProjection, RowProjection
from cdc.config.section import Section


class Settings(Section):
    """The whole configuration. See `deploy/cdc.toml` for every option explained."""

    postgres: PostgresSettings
    archive: ArchiveSettings
    cache: CacheSettings = CacheSettings()
    http: HttpSettings = HttpSettings()
    monitor: MonitorSettings = MonitorSettings()
    log: LogSettings = LogSettings()

    _exposed: tuple[Path, ...] = PrivateAttr(())

    @property
    def exposed_files(self) -> tuple[Path, ...]:
        """Files that hold our secrets and that any user of this machine may read."""
        return self._exposed

    @model_validator(mode="after")
    def _can_catch_up(self) -> Self:
        if self.archive.recipients and self.cache.url is not None and self.archive.identity is None:
            raise ValueError("archive.identity is needed: the cache catches up from the encrypted archive")
        return self


SECTIONS: dict[str, type[Section]] = {
    "postgres": PostgresSettings,
    "archive": ArchiveSettings,
    "cache": CacheSettings,
    "http": HttpSettings,
    "monitor": MonitorSettings,
    "log": LogSettings,
}
KINDS: dict[str, type[Section]] = {"history": HistoryProjection, "row": RowProjection, "latest": LatestProjection}
