"""Configuration: `cdc.toml`, overridden by the environment (`CDC_POSTGRES__DSN`), every mistake reported at once.

`load()` gives a complete, validated `Settings` or raises `Invalid` with all mistakes in one message. S3 credentials are
not here: they come from the usual AWS chain. Times are seconds (`_s`), sizes bytes (`_bytes`).
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from cdc.errors import Invalid

MIB = 1024 * 1024

_SLOT_NAME = r"^[a-z0-9_]{1,63}$"
_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PostgresSettings(_Section):
    dsn: SecretStr = Field(description="connection string of the role that replicates")
    slot: str = Field("cdc", pattern=_SLOT_NAME, description="name of the logical replication slot")
    publication: str = Field("cdc", min_length=1, max_length=63, description="name of the publication")
    allow_insecure: bool = Field(False, description="allow a remote host without sslmode=verify-full")
    status_interval_s: float = Field(2.0, gt=0, le=30, description="time between status updates to the server")
    slot_deadline_s: float = Field(60.0, gt=0, description="how long creating a slot may wait for open transactions")


class ArchiveSettings(_Section):
    url: str = Field(description="s3://bucket/prefix or file:///directory")
    endpoint_url: str | None = Field(None, description="S3 endpoint, as https://<account>.r2.cloudflarestorage.com")
    region: str = Field("auto", description="region to sign for; R2 wants auto")
    linger_s: float = Field(1.0, ge=0, le=60, description="how long changes gather before a PUT, under traffic")
    segment_bytes: int = Field(16 * MIB, ge=64 * 1024, le=256 * MIB, description="memory of one segment's changes")
    queue_bytes: int = Field(32 * MIB, ge=MIB, description="memory of changes waiting for the archive")
    put_timeout_s: float = Field(60.0, gt=0, description="how long one PUT may take before it is tried again")
    coverage_interval_s: float = Field(60.0, ge=1, description="least time between coverage segments when idle")
    coverage_wal_bytes: int = Field(16 * MIB, ge=MIB, description="unpublished WAL after which coverage is written")
    on_gap: Literal["stop", "resnapshot"] = Field("stop", description="what to do when the slot is lost")
    compression_level: int = Field(3, ge=1, le=19, description="zstd level of segments")

    @model_validator(mode="after")
    def _is_an_address(self) -> "ArchiveSettings":
        parts = urlsplit(self.url)
        if parts.scheme == "s3" and parts.netloc:
            return self
        if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
            return self
        raise ValueError(f"url {self.url!r} is neither s3://bucket/prefix nor file:///directory")


class HistoryProjection(_Section):
    """A sorted set of the newest rows that share a key: score = `order_by`, member = the row as JSON."""

    kind: Literal["history"] = "history"
    table: str
    key: str
    order_by: str
    limit: int = Field(200, ge=1, le=10_000)
    ttl_s: int = Field(7 * 86_400, ge=1)
    time_column: str | None = "created_at"


class RowProjection(_Section):
    """A string: the row as JSON."""

    kind: Literal["row"] = "row"
    table: str
    key: str
    ttl_s: int = Field(7 * 86_400, ge=1)
    time_column: str | None = "created_at"


class LatestProjection(_Section):
    """A string: chosen columns of the newest row that shares a key, as JSON. `order_by` is always among them."""

    kind: Literal["latest"] = "latest"
    table: str
    key: str
    order_by: str
    columns: tuple[str, ...]
    ttl_s: int = Field(45 * 60, ge=1)
    time_column: str | None = "created_at"


Projection = Annotated[HistoryProjection | RowProjection | LatestProjection, Field(discriminator="kind")]

TURNS_PROJECTIONS: tuple[HistoryProjection | RowProjection | LatestProjection, ...] = (
    HistoryProjection(table="public.turns", key="session:{session_hash}:turns", order_by="id"),
    RowProjection(table="public.turns", key="turn:{turn_id}"),
    LatestProjection(
        table="public.turns",
        key="session:{session_hash}:state",
        order_by="id",
        columns=("id", "turn_id", "role", "state", "confidence", "metadata", "created_at"),
    ),
)


def placeholders(template: str) -> tuple[str, ...]:
    """The columns that a key template names: `session:{session_hash}:turns` gives `("session_hash",)`."""
    return tuple(_PLACEHOLDER.findall(template))


class CacheSettings(_Section):
    url: SecretStr | None = Field(None, description="redis://, rediss:// or unix:// address; absent: no cache")
    projections: tuple[Projection, ...] = Field(TURNS_PROJECTIONS, description="what the cache holds")
    queue_bytes: int = Field(16 * MIB, ge=MIB, description="memory of changes waiting for the cache")
    batch_rows: int = Field(500, ge=1, le=5000, description="rows of one script call")
    batch_bytes: int = Field(MIB, ge=1024, description="bytes of one script call")
    timeout_s: float = Field(5.0, gt=0, description="how long one call may take")

    @model_validator(mode="after")
    def _keys_name_columns(self) -> "CacheSettings":
        for projection in self.projections:
            if not placeholders(projection.key):
                raise ValueError(f"key {projection.key!r} names no column, as in 'turn:{{turn_id}}'")
            if projection.table.count(".") != 1:
                raise ValueError(f"table {projection.table!r} needs its schema, as in 'public.turns'")
        return self


class HttpSettings(_Section):
    listen: str = Field("127.0.0.1:9187", description="address of /metrics and health")


class LogSettings(_Section):
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(BaseSettings):
    """The whole configuration. See `deploy/cdc.toml` for every option explained."""

    model_config = SettingsConfigDict(
        env_prefix="CDC_", env_nested_delimiter="__", extra="forbid", frozen=True, toml_file=None
    )

    postgres: PostgresSettings
    archive: ArchiveSettings
    cache: CacheSettings = CacheSettings()  # type: ignore[call-arg]
    http: HttpSettings = HttpSettings()  # type: ignore[call-arg]
    log: LogSettings = LogSettings()
