"""Judges the server's version and encoding, and a pooler between it and us (pure)."""

import re
from typing import Final

from cdc.finding import Finding
from cdc.postgres.pooler import Backends

# Faults of logical decoding, and by major version the first minor release without them. From the release notes; their
# source (doc/src/sgml/release-17.sgml) names the branches. 18 has had all of it from its first release.
_MENDED: Final = (
    (
        # 2025-05-08: "Avoid data loss when DDL operations that don't take a strong lock affect tables that are being
        # logically replicated".
        "loses changes of tables whose schema or publication is altered while they are written",
        {14: 18, 15: 13, 16: 9, 17: 5},
    ),
    (
        # 2025-08-14: "Avoid re-distributing cache invalidation messages from other transactions", which "would often
        # end in a memory allocation failure"; "Avoid infinite wait in logical decoding when reading a
        # partially-written WAL record".
        "may run out of memory when it decodes schema changes, and wait without end after a crash",
        {14: 19, 15: 14, 16: 10, 17: 6},
    ),
    (
        # 2025-11-13, notes of 17.7: "Avoid unnecessary invalidation of logical replication slots".
        "may invalidate a slot without need",
        {17: 7},
    ),
)


def parse_version(server_version: str) -> tuple[int, int] | None:
    """Parse `15.18 (Debian 15.18-1)` to (15, 18); None for a development version."""
    found = re.match(r"(\d+)\.(\d+)", server_version)
    return None if found is None else (int(found[1]), int(found[2]))


def judge_version(server_version: str) -> list[Finding]:
    """Judge the minor version: some are known to lose changes, to run out of memory, or to invalidate slots."""
    version = parse_version(server_version)
    if version is None:
        return []
    major, minor = version
    return [
        Finding(
            "postgres",
            f"Postgres {major}.{minor} {what}: mended in {major}.{mended[major]}",
            f"install the newest Postgres {major}, and restart it",
        )
        for what, mended in _MENDED
        if major in mended and minor < mended[major]
    ]


def judge_encoding(encoding: str) -> list[Finding]:
    if encoding != "SQL_ASCII":
        return []
    message = "the database is SQL_ASCII: text that is not UTF-8 is archived as base64, and readers must decode it"
    return [Finding("postgres", message, "dump it and restore it into a database with ENCODING 'UTF8'")]


def judge_pooler(backends: Backends) -> list[Finding]:
    """Judge whether a pooler is between us and Postgres: replication needs a connection of its own from end to end."""
    if not backends.pooled:
        return []
    return [
        Finding(
            "postgres",
            "a pooler (PgBouncer, pgcat) stands between us and Postgres: replication does not go through it",
            "put Postgres's own address and port into postgres.dsn",
            level="error",
        )
    ]
