"""The round: all three neighbours at once."""

import asyncio

from cdc.config import Settings
from cdc.doctor.archive import examine_archive
from cdc.doctor.cache import examine_cache
from cdc.doctor.finding import Finding
from cdc.doctor.postgres import examine_postgres


async def examine(settings: Settings) -> list[Finding]:
    """Look at everything; what cannot be reached is itself a finding."""
    rooms = await asyncio.gather(
        examine_postgres(settings), examine_archive(settings.archive), examine_cache(settings.cache)
    )
    return [finding for findings in rooms for finding in findings]
