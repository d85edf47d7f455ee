"""`[monitor]`: how often slots and the disk are looked at, when that warns, and barriers."""

from pydantic import Field, field_validator

from cdc.config.section import Section


class MonitorSettings(Section):
    interval_s: float = Field(10.0, ge=0.1, le=3600, description="time between looks at the server's slots")
    warn_s: float = Field(
        21_600.0, ge=0, description="a forecast nearer than this is a warning: a slot at its limit, or a full disk"
    )
    barrier_interval_s: float = Field(
        60.0,
        ge=0,
        le=3600,
        description="time between barriers, messages in the WAL by which the recovery point is measured; 0: none",
    )
    disk_path: str | None = Field(
        None,
        description="directory on the disk of the server's WAL; absent: the data directory, if it is on this machine",
        examples=["/var/lib/postgresql"],
    )

    @field_validator("disk_path")
    @classmethod
    def _is_absolute(cls, path: str | None) -> str | None:
        if path is None or path.startswith("/"):
            return path
        raise ValueError("is not an absolute path")
