"""The lock that one service holds while it begins an archive. The slot itself is a lock only once the stream runs."""

from cdc.postgres.session import Connection


async def try_lock(connection: Connection, slot: str) -> bool:
    """Take the advisory lock of this slot's name for as long as the session lives; False if another session has it.

    Raises Unavailable or Invalid.
    """
    (taken,) = await connection.one("SELECT pg_try_advisory_lock(hashtext('waltier'), hashtext(%s))", [slot])
    return bool(taken)
