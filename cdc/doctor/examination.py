"""The round: all three neighbours at once."""

import asyncio

from cdc.config import Settings
from cdc.doctor.archive import examine_archive
from cdc.doctor.cache import examine_cache
from cdc.doctor.finding import Finding
from cdc.doctor.postgres import examine_postgres
from cdc.doctor.secrets import judge_encryption, judge_files


async def examine(settings: Settings) -> list[Finding]:
    """Look at everything; what cannot be reached is itself a finding."""
    rooms = await asyncio.gather(
        examine_postgres(settings), examine_archive(settings.archive), examine_cache(settings.cache)
    )
    kept = [*judge_files(settings.exposed_files), *judge_encryption(settings.archive)]
    return [*kept, *(finding for findings in rooms for finding in findings)]
