"""`cdc teardown`: takes away what makes Postgres keep WAL for us, and says what remains.

The slot goes first: it is the one thing that does harm if it is forgotten. The archive is never touched.
"""

from cdc.cache.removal import remove_keys
from cdc.config import PostgresSettings, Settings
from cdc.errors import Unavailable
from cdc.postgres.ddl_sentinel import drop_ddl_sentinel
from cdc.postgres.publication import drop_publication
from cdc.postgres.session import connect
from cdc.postgres.slot import drop_slot, read_slot


def plan(settings: Settings, *, publication: bool, cache: bool, ddl_sentinel: bool = False) -> list[str]:
    """What would be removed, and what would remain, in sentences."""
    name = settings.postgres.publication
    removed = [f"replication slot {settings.postgres.slot}, and with it every change that is not archived yet"]
    removed += ["the DDL sentinel's event triggers"] if ddl_sentinel else []
    removed += [f"publication {name}"] if publication else []
    removed += ["the cache's keys"] if cache and settings.cache.url else []
    return [
        *(f"to be removed: {what}" for what in removed),
        *_remaining(settings, publication=publication, cache=cache),
    ]


def _remaining(settings: Settings, *, publication: bool, cache: bool) -> list[str]:
    remains = [f"the archive {settings.archive.url}", "tables and roles"]
    remains += [] if publication else [f"publication {settings.postgres.publication} (--publication)"]
    remains += [] if cache or not settings.cache.url else ["the cache's keys, until they expire (--cache)"]
    return [f"remains: {what}" for what in remains]


async def carry_out(
    settings: Settings, *, publication: bool, cache: bool, ddl_sentinel: bool = False, admin: PostgresSettings
) -> list[str]:
    """1. the slot, 2. event triggers and publication, 3. the cache's keys; returns what was done and what remains."""
    done = [await _remove_slot(settings.postgres)]  # 1
    if ddl_sentinel:  # 2
        async with await connect(admin) as connection:
            found = await drop_ddl_sentinel(connection)
        done.append("dropped the DDL sentinel" if found else "there was no DDL sentinel")
    if publication:
        async with await connect(admin) as connection:
            found = await drop_publication(connection, admin.publication)
        done.append(f"{'dropped' if found else 'there was no'} publication {admin.publication}")
    if cache and settings.cache.url:  # 3
        done.append(f"removed {await remove_keys(settings.cache)} keys from the cache")
    return [*done, *_remaining(settings, publication=publication, cache=cache)]


async def _remove_slot(settings: PostgresSettings) -> str:
    """Drop our slot. Raises Unavailable while somebody reads it."""
    async with await connect(settings) as connection:
        slot = await read_slot(connection, settings.slot)
        if slot is None:
            return f"there was no slot {settings.slot}"
        if slot.active_pid is not None:
            raise Unavailable(
                f"replication slot {slot.name} is in use by pid {slot.active_pid}; nothing was removed",
                hint=f"stop `cdc run` first, or: SELECT pg_terminate_backend({slot.active_pid});",
            )
        await drop_slot(connection, slot.name)
        return f"dropped slot {slot.name}"
