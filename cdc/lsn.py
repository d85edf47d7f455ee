"""Log sequence numbers are plain integers inside, and `16/B374D848` wherever a person or a file sees them.

The printed form is Postgres's own (manual, "pg_lsn Type"): two hexadecimal halves of a 64-bit byte position.
"""

import re

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


def format_lsn(lsn: int) -> str:
    """Print a 64-bit WAL position as Postgres does: `0x16B374D848` as `16/B374D848`."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def parse_lsn(text: str) -> int:
    """Read a position as Postgres prints it. Raises ValueError for anything else."""
    match = _LSN.fullmatch(text)
    if match is None:
        raise ValueError(f"not a WAL position: {text!r} (expected two hexadecimal halves, as in 16/B374D848)")
    return int(match[1], 16) << 32 | int(match[2], 16)
