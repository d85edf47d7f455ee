"""Configuration: `cdc.toml`, overridden by the environment (`CDC_POSTGRES__DSN`), every mistake reported at once.

`load()` returns complete, validated `Settings`, or raises `Invalid`, which names every mistake with a line to paste.
Commands that need one neighbour only ask for its section alone: `load_postgres()`, `load_archive()`. A secret may also
be in a file or in a systemd credential (cdc/config/credentials.py). S3 credentials are not here: they come from the
usual AWS chain. Times are seconds (`_s`), sizes bytes (`_bytes`).

Each section has its file. `sources` reads the file and the environment; `mistakes` explains what is wrong in them.
"""

from cdc.config.archive import ArchiveSettings as ArchiveSettings
from cdc.config.cache import CacheSettings as CacheSettings
from cdc.config.http import HttpSettings as HttpSettings
from cdc.config.loading import load as load
from cdc.config.loading import load_archive as load_archive
from cdc.config.loading import load_monitor as load_monitor
from cdc.config.loading import load_postgres as load_postgres
from cdc.config.monitor import MonitorSettings as MonitorSettings
from cdc.config.option import Option as Option
from cdc.config.option import options as options
from cdc.config.postgres import PostgresSettings as PostgresSettings
from cdc.config.projection import TURNS_PROJECTIONS as TURNS_PROJECTIONS
from cdc.config.projection import AnyProjection as AnyProjection
from cdc.config.projection import HistoryProjection as HistoryProjection
from cdc.config.projection import LatestProjection as LatestProjection
from cdc.config.projection import Projection as Projection
from cdc.config.projection import RowProjection as RowProjection
from cdc.config.projection import placeholders as placeholders
from cdc.config.settings import KINDS as KINDS
from cdc.config.settings import SECTIONS as SECTIONS
from cdc.config.settings import Settings as Settings
