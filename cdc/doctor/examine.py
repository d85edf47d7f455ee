"""Examines all three neighbours at once, and the configuration's files."""

import asyncio
from collections.abc import Sequence
from typing import Any

from cdc.config import Settings
from cdc.doctor.archive import examine_archive
from cdc.doctor.cache import examine_cache
from cdc.doctor.postgres import examine_postgres
from cdc.doctor.secrets import judge_encryption, judge_files
from cdc.finding import Finding


async def examine(settings: Settings) -> list[Finding]:
    """Examine everything. A neighbour that cannot be reached is itself a finding."""
    rooms = await asyncio.gather(
        examine_postgres(settings), examine_archive(settings.archive), examine_cache(settings.cache)
    )
    kept = [*judge_files(settings.exposed_files), *judge_encryption(settings.archive)]
    return [*kept, *(finding for findings in rooms for finding in findings)]


def exit_code(findings: Sequence[Finding]) -> int:
    """1 if there is an error among the findings, else 0; warnings do not count."""
    return 1 if any(finding.level == "error" for finding in findings) else 0


def facts(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The findings as plain values, for `--json`."""
    return [
        {"level": finding.level, **finding.told}
        | {"sql": finding.sql, "command": finding.command, "optional": finding.optional}
        for finding in findings
    ]
