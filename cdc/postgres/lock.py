"""A lock that one service holds while it begins an archive: until the stream runs, the slot itself is no lock yet."""

from cdc.postgres.session import Connection


async def try_lock(connection: Connection, slot: str) -> bool:
    """Take the advisory lock of this slot's name for as long as the session lives; False if another session has it."""
    (taken,) = await connection.one("SELECT pg_try_advisory_lock(hashtext('waltier'), hashtext(%s))", [slot])
    return bool(taken)
