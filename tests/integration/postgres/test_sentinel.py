"""The sentinel and the fast shutdown that a withheld acknowledgement would hang."""

import asyncio

import pytest

from cdc.errors import Unavailable
from cdc.postgres.stream.replication import ReplicationStream
from cdc.postgres.stream.sentinel import Sentinel
from tests.conftest import MakePostgres
from tests.support.streaming import consuming, execute, fetch, make_slot, settings_for


async def test_a_withheld_acknowledgement_hangs_a_fast_shutdown_until_the_stream_is_closed(
    make_postgres: MakePostgres,
) -> None:
    server = make_postgres()
    settings = settings_for(server.dsn())
    execute(server.dsn(), "CREATE TABLE t (id int PRIMARY KEY)", "CREATE PUBLICATION cdc FOR ALL TABLES")
    make_slot(settings)
    async with Sentinel(settings) as sentinel, consuming(settings) as consumer:
        execute(server.dsn(), "INSERT INTO t VALUES (1)")
        await consumer.take(1)
        shutdown = asyncio.create_task(asyncio.to_thread(server.stop, "fast"))
        reason = await asyncio.wait_for(sentinel.wait_ended(), 30)
        assert "57P01" in reason
        # Nothing is acknowledged: the server is still up, and tells newcomers why.
        await asyncio.sleep(1.5)
        assert not shutdown.done()
        with pytest.raises(Unavailable, match="shutting down"):
            await ReplicationStream.open(settings)
        await consumer.stream.close()
        await asyncio.wait_for(shutdown, 30)
    assert not server.running


async def test_an_undisturbed_sentinel_waits_and_can_be_cancelled(database: str) -> None:
    async with Sentinel(settings_for(database)) as sentinel:
        execute(database, "SELECT pg_reload_conf()")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sentinel.wait_ended(), 0.3)
        waiting = asyncio.create_task(sentinel.wait_ended())
        await asyncio.sleep(0.05)
        fetch(
            database,
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE application_name = 'waltier sentinel' AND datname = current_database()",
        )
        assert "57P01" in await asyncio.wait_for(waiting, 30)
        assert "57P01" in await sentinel.wait_ended()


async def test_a_crash_of_the_server_ends_the_sentinel_too(make_postgres: MakePostgres) -> None:
    server = make_postgres()
    async with Sentinel(settings_for(server.dsn())) as sentinel:
        server.kill()
        assert await asyncio.wait_for(sentinel.wait_ended(), 30)
