"""Slots: their facts, their creation against a deadline, their loss."""

import asyncio
import math
import shutil
import subprocess
import time

import psycopg
import pytest

from cdc.archive.bucket.memory import MemoryBucket
from cdc.archive.writer.sink import ArchiveSink
from cdc.config import PostgresSettings, Settings
from cdc.errors import Invalid, SlotLost, Unavailable
from cdc.postgres.publication import read_publication
from cdc.postgres.refusal import SlotActive
from cdc.postgres.server import current_wal_lsn
from cdc.postgres.session import connect
from cdc.postgres.slot import (
    ExportedSnapshot,
    Slot,
    check_slot,
    create_slot,
    drop_slot,
    make_failover,
    read_slot,
    read_slots,
)
from cdc.postgres.snapshot import open_snapshot
from cdc.postgres.stream.replication import ReplicationStream
from cdc.service.backfill import backfill
from tests.conftest import MakePostgres
from tests.support.cdc_process import needs_postgres
from tests.support.streaming import execute, fetch, make_slot, settings_for


async def _slot(settings: PostgresSettings) -> Slot | None:
    async with await connect(settings) as connection:
        return await read_slot(connection, settings.slot)


async def test_a_created_slot_begins_where_its_snapshot_is(database: str) -> None:
    settings = settings_for(database)
    async with create_slot(settings, settings.slot) as exported:
        slot = await _slot(settings)
        assert slot is not None
        assert slot.confirmed_flush_lsn == exported.consistent_lsn
        assert slot.plugin == "pgoutput"
        assert not slot.temporary
        assert not slot.lost
        check_slot(slot, str(fetch(database, "SELECT current_database()")[0]))
    assert await _slot(settings) == slot or slot.inactive_since is not None


async def test_a_temporary_slot_goes_with_its_context(database: str) -> None:
    settings = settings_for(database)
    async with create_slot(settings, settings.slot, temporary=True):
        slot = await _slot(settings)
        assert slot is not None
        assert slot.temporary
    while await _slot(settings) is not None:
        await asyncio.sleep(0.02)


async def test_a_failover_slot_is_one_and_its_snapshot_is_exported_too(database: str) -> None:
    needs_postgres(database, 17)
    settings = settings_for(database).model_copy(update={"failover": True})
    async with create_slot(settings, settings.slot) as exported, open_snapshot(settings, exported):
        slot = await _slot(settings)
    assert slot is not None
    assert slot.failover
    assert slot.confirmed_flush_lsn == exported.consistent_lsn
    async with create_slot(settings, f"{settings.slot}_warm", temporary=True):
        pass


async def test_an_existing_slot_becomes_a_failover_slot_but_not_under_a_reader(database: str) -> None:
    needs_postgres(database, 17)
    settings = settings_for(database)
    execute(database, "CREATE PUBLICATION cdc FOR ALL TABLES")
    make_slot(settings)
    async with await ReplicationStream.open(settings) as stream:
        await stream.start(settings.slot, "cdc")
        with pytest.raises(SlotActive):
            await make_failover(settings, settings.slot, timeout_s=0.5)
    while (slot := await _slot(settings)) is not None and slot.active_pid is not None:
        await asyncio.sleep(0.02)
    assert slot is not None
    assert not slot.failover
    await make_failover(settings, settings.slot)
    altered = await _slot(settings)
    assert altered is not None
    assert altered.failover


async def test_a_standby_synchronises_the_failover_slot(make_postgres: MakePostgres) -> None:
    primary, standby = make_postgres(), make_postgres()
    needs_postgres(primary.dsn(), 17)
    standby.stop()
    shutil.rmtree(standby.data_dir)
    execute(primary.dsn(), "SELECT pg_create_physical_replication_slot('standby', true)")
    program, target = str(primary.bin_dir / "pg_basebackup"), str(standby.data_dir)
    command = [program, "-d", primary.dsn(), "-D", target, "-S", "standby"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    (standby.data_dir / "standby.signal").touch()
    for path in (standby.data_dir, *standby.data_dir.rglob("*")):
        shutil.chown(path, primary.data_dir.stat().st_uid, primary.data_dir.stat().st_gid)
    standby.settings |= {
        "primary_conninfo": primary.dsn(),
        "primary_slot_name": "standby",
        "sync_replication_slots": "on",
        "hot_standby_feedback": "on",
    }
    standby.start()
    settings = settings_for(primary.dsn()).model_copy(update={"failover": True})
    async with create_slot(settings, settings.slot):
        pass
    there = settings.model_copy(update={"dsn": settings_for(standby.dsn()).dsn})
    deadline = time.monotonic() + 60
    while ((slot := await _slot(there)) is None or slot.temporary) and time.monotonic() < deadline:
        execute(primary.dsn(), "SELECT pg_log_standby_snapshot()")
        await asyncio.sleep(0.2)
    assert slot is not None
    assert slot.synced
    assert not slot.temporary


async def test_creation_blocked_by_an_open_transaction_names_its_pid_and_leaves_no_slot(database: str) -> None:
    settings = settings_for(database, slot_deadline_s=0.5)
    with psycopg.connect(database) as open_transaction:
        open_transaction.execute("CREATE TABLE written (id int)")
        with pytest.raises(Unavailable) as refused:
            async with create_slot(settings, settings.slot):
                pytest.fail("created in spite of the open transaction")
        pid = open_transaction.info.backend_pid
        assert f"pid {pid} (idle in transaction" in refused.value.detail
        assert str(pid) in refused.value.hint
        assert "written" not in refused.value.explain()
        assert await _slot(settings) is None
    async with create_slot(settings, settings.slot) as exported:
        assert exported.consistent_lsn


async def test_a_cancelled_creation_leaves_no_slot(database: str) -> None:
    settings = settings_for(database)

    async def create() -> None:
        async with create_slot(settings, settings.slot):
            pytest.fail("created in spite of the open transaction")

    with psycopg.connect(database) as open_transaction:
        open_transaction.execute("CREATE TABLE written (id int)")
        creation = asyncio.create_task(create())
        while await _slot(settings) is None:
            await asyncio.sleep(0.02)
        creation.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creation
        assert await _slot(settings) is None


async def test_a_slot_that_exists_is_not_created_again(database: str) -> None:
    settings = settings_for(database)
    make_slot(settings)
    with pytest.raises(Invalid, match="exists already"):
        async with create_slot(settings, settings.slot):
            pytest.fail("created twice")
    assert await _slot(settings) is not None


async def test_an_exported_snapshot_dies_with_its_connection(database: str) -> None:
    settings = settings_for(database)
    async with create_slot(settings, settings.slot) as exported, open_snapshot(settings, exported):
        pass
    with pytest.raises(Unavailable, match="snapshot of slot"):
        async with open_snapshot(settings, exported):
            pytest.fail("adopted a snapshot that is gone")


async def test_a_snapshot_that_never_was_is_unavailable(database: str) -> None:
    settings = settings_for(database)
    with pytest.raises(Unavailable):
        async with open_snapshot(settings, ExportedSnapshot("cdc", 0, "no'such")):
            pytest.fail("adopted")


async def test_dropping_is_idempotent_but_not_under_a_reader(database: str) -> None:
    settings = settings_for(database)
    execute(database, "CREATE PUBLICATION cdc FOR ALL TABLES")
    make_slot(settings)
    async with await connect(settings) as connection:
        async with await ReplicationStream.open(settings) as stream:
            await stream.start(settings.slot, "cdc")
            with pytest.raises(SlotActive):
                await drop_slot(connection, settings.slot)
        while (slot := await read_slot(connection, settings.slot)) is not None and slot.active_pid is not None:
            await asyncio.sleep(0.02)
        await drop_slot(connection, settings.slot)
        await drop_slot(connection, settings.slot)
        assert await read_slot(connection, settings.slot) is None


async def test_another_plugins_slot_is_not_ours(database: str) -> None:
    settings = settings_for(database)
    fetch(database, "SELECT pg_create_physical_replication_slot(%s)::text", settings.slot)
    slot = await _slot(settings)
    assert slot is not None
    with pytest.raises(Invalid, match="belongs to something else"):
        check_slot(slot, "app")
    fetch(database, "SELECT pg_drop_replication_slot(%s)::text", settings.slot)


async def test_a_lost_slot_is_infinitely_behind_and_says_so_when_started(make_postgres: MakePostgres) -> None:
    server = make_postgres(settings={"max_slot_wal_keep_size": "1MB", "max_wal_size": "32MB", "min_wal_size": "32MB"})
    settings = settings_for(server.dsn())
    execute(server.dsn(), "CREATE TABLE filler (t text)", "CREATE PUBLICATION cdc FOR ALL TABLES")
    make_slot(settings)
    for _ in range(4):
        execute(
            server.dsn(),
            "INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 5000)",
            "SELECT pg_switch_wal()",
            "CHECKPOINT",
        )
    async with await connect(settings) as connection:
        deadline = time.monotonic() + 60
        while not (slot := (await read_slots(connection))[0]).lost and time.monotonic() < deadline:
            await connection.execute("CHECKPOINT")
        assert slot.lost
        assert slot.retained_bytes(await current_wal_lsn(connection)) == math.inf
        with pytest.raises(SlotLost):
            check_slot(slot, "postgres")
    async with await ReplicationStream.open(settings) as stream:
        with pytest.raises(SlotLost):
            await stream.start(settings.slot, "cdc")


async def test_a_backfill_that_meets_a_slot_stands_by_for_whoever_made_it(database: str) -> None:
    settings = settings_for(database)
    make_slot(settings)
    execute(database, "CREATE PUBLICATION cdc")
    async with await connect(settings) as connection:
        publication = await read_publication(connection, "cdc")
    everything = Settings.model_validate({"postgres": settings, "archive": {"url": "file:///not-used"}})
    with pytest.raises(Unavailable, match="another service made the slot"):
        await backfill(everything, publication, ArchiveSink(MemoryBucket(), everything.archive))
