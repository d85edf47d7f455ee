"""Turns the sources into settings, or raises Invalid, which names every mistake."""

import os
from collections.abc import Mapping
from pathlib import Path

from cdc.config.archive import ArchiveSettings
from cdc.config.credentials import is_open_to_others
from cdc.config.mistakes import validate
from cdc.config.monitor import MonitorSettings
from cdc.config.postgres import PostgresSettings
from cdc.config.section import SectionT
from cdc.config.settings import SECTIONS, Settings
from cdc.config.sources import read


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the whole configuration. Raises Invalid, which names every mistake."""
    found = read(path, environ, tuple(SECTIONS))
    settings = validate(Settings, {name: {} for name in SECTIONS} | found.values, (), found)
    settings._exposed = tuple(file for file in found.secret_files if is_open_to_others(file))
    return settings


def load_postgres(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> PostgresSettings:
    """Read `[postgres]` alone, for commands that need nothing else. Raises Invalid."""
    return _load_section(PostgresSettings, "postgres", path, environ)


def load_monitor(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> MonitorSettings:
    """Read `[monitor]` alone, for commands that need little else. Raises Invalid."""
    return _load_section(MonitorSettings, "monitor", path, environ)


def load_archive(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> ArchiveSettings:
    """Read `[archive]` alone, for commands that need nothing else. Raises Invalid."""
    return _load_section(ArchiveSettings, "archive", path, environ)


def _load_section(section: type[SectionT], name: str, path: Path | None, environ: Mapping[str, str]) -> SectionT:
    found = read(path, environ, (name,))
    return validate(section, found.values.get(name, {}), (name,), found)
