"""Reads settings with Postgres's units, as `current_setting` prints them (pure)."""

from typing import Final

GIB: Final = 1024**3

_UNITS_S = {"": 1e-3, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_UNITS_BYTES = {"": 1024**2, "B": 1, "kB": 1024, "MB": 1024**2, "GB": GIB, "TB": 1024**4}


def seconds(setting: str) -> float:
    """Read a duration in seconds: `1min`, `500ms`, `0`. A number without a unit is milliseconds."""
    digits = setting.rstrip("abcdefghijklmnopqrstuvwxyz")
    return float(digits) * _UNITS_S[setting.removeprefix(digits)]


def nbytes(setting: str) -> int:
    """Read a size in bytes: `10GB`, `512MB`. A number without a unit is megabytes, of 1024 * 1024 bytes."""
    digits = setting.rstrip("BkMGT")
    return int(digits) * _UNITS_BYTES[setting.removeprefix(digits)]
