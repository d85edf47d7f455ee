"""All slots of a real server: who reads them, what they retain and why, what a role may not see, how one is lost."""

import asyncio
import dataclasses
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from cdc.config import MonitorSettings, PostgresSettings
from cdc.embedded import PostgresServer
from cdc.metrics import REGISTRY
from cdc.monitor.disk import find_disk
from cdc.monitor.monitor import Monitor
from cdc.monitor.reason import pin_of, reason_of
from cdc.monitor.report import Report, slot_facts
from cdc.monitor.watcher import Watcher
from cdc.postgres.observation import WatchedSlot
from tests.conftest import MakePostgres
from tests.support.servers import DEBIAN_POSTGRES_BIN
from tests.support.streaming import execute, fetch

MIB = 1024 * 1024
SETTINGS = {"max_slot_wal_keep_size": "256MB", "max_prepared_transactions": "5"}


def settings_of(server: PostgresServer, user: str = "postgres") -> PostgresSettings:
    return PostgresSettings.model_validate({"dsn": server.dsn(user=user)})


async def look(server: PostgresServer, user: str = "postgres", disk_path: str | None = None) -> Report:
    watcher = Watcher(settings_of(server, user), MonitorSettings(disk_path=disk_path))
    try:
        return await watcher.look()
    finally:
        await watcher.close()


def slot_of(found: Report, name: str) -> WatchedSlot:
    return next(watched for watched in found.observation.slots if watched.slot.name == name)


def write_wal(dsn: str, nbytes: int) -> None:
    """That much WAL, which no slot's publication holds."""
    execute(
        dsn,
        f"SELECT pg_logical_emit_message(true, 'filler', repeat('x', {MIB})) FROM generate_series(1, {nbytes // MIB})",
    )


def make_slots(server: PostgresServer) -> None:
    execute(
        server.dsn(),
        "CREATE TABLE written (id int)",
        "SELECT pg_create_physical_replication_slot('fresh')",
        "SELECT pg_create_physical_replication_slot('standby', true)",
        "SELECT pg_create_logical_replication_slot('stranger', 'test_decoding')",
    )


@contextmanager
def reading(server: PostgresServer, slot: str) -> Iterator[None]:
    """Somebody who reads and acknowledges the slot, once a second."""
    program = str(Path(server.bin_dir) / "pg_recvlogical")
    command = [program, "-d", server.dsn(), "-S", slot, "--start", "-f", "/dev/null", "-s", "1", "-F", "0"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


async def until(server: PostgresServer, true: Callable[[Report], bool], timeout_s: float = 60) -> Report:
    """Look until it is true."""
    deadline = time.monotonic() + timeout_s
    while not true(found := await look(server)):
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.1)
    return found


async def sees_every_slot(server: PostgresServer) -> None:
    """The same on every version."""
    make_slots(server)
    write_wal(server.dsn(), 40 * MIB)
    found = await look(server)
    assert found.observation.server_version.startswith(str(server.version))
    standby, stranger, fresh = (slot_of(found, name) for name in ("standby", "stranger", "fresh"))
    assert (standby.kind, stranger.kind, fresh.unused) == ("physical", "logical", True)
    assert fresh.retained_bytes(found.observation.wal_lsn) == 0
    for watched in (standby, stranger):
        assert 40 * MIB <= watched.retained_bytes(found.observation.wal_lsn) < 60 * MIB
        assert 0 < (watched.slot.safe_wal_size or 0) < 256 * MIB
        assert watched.undrained
        facts = slot_facts(watched, found)
        assert (facts["wal_status"], facts["lost"], facts["inactive_s"] is None) == (
            "reserved",
            False,
            server.version < 17,
        )
    assert stranger.decoding is not None
    assert stranger.catalog_xmin_age is not None
    assert standby.decoding is None
    assert found.disk is not None
    assert found.observation.wal_dir_bytes is not None
    assert found.observation.hidden == ()
    assert found.wal_bytes_per_s >= 0
    warned = [warning.message for warning in found.warnings(0)]
    assert len(warned) == 2
    assert all("not ours, is read by nobody" in message for message in warned)


async def test_every_slot_of_the_server_is_seen(make_postgres: MakePostgres) -> None:
    await sees_every_slot(make_postgres(settings=SETTINGS))


@pytest.mark.wide
async def test_every_slot_of_an_older_server_is_seen(make_postgres: MakePostgres) -> None:
    await sees_every_slot(make_postgres(settings={**SETTINGS, "ssl": "off"}, bin_dir=DEBIAN_POSTGRES_BIN))


async def test_a_reader_is_seen_with_its_name_and_how_far_it_is(make_postgres: MakePostgres) -> None:
    server = make_postgres(settings=SETTINGS)
    make_slots(server)
    with reading(server, "stranger"):
        found = await until(
            server, lambda report: (r := slot_of(report, "stranger").reader) is not None and r.flush_lsn is not None
        )
    reader = slot_of(found, "stranger").reader
    assert reader is not None
    assert (reader.application_name, reader.role, reader.sender_state) == ("pg_recvlogical", "postgres", "streaming")
    assert reader.reply_at is not None
    assert [slot.slot.name for slot in found.observation.slots if slot.undrained] == ["standby"]


@pytest.mark.parametrize("prepared", [False, True])
async def test_a_transaction_that_pins_wal_is_named_and_its_query_is_not(
    make_postgres: MakePostgres, prepared: bool
) -> None:
    server = make_postgres(settings=SETTINGS)
    make_slots(server)
    with psycopg.connect(server.dsn()) as writer, reading(server, "stranger"):
        writer.execute("INSERT INTO written VALUES (424242)")
        if prepared:
            writer.execute("PREPARE TRANSACTION 'order 17'")
        write_wal(server.dsn(), 64 * MIB)
        execute(server.dsn(), "CHECKPOINT", "SELECT pg_log_standby_snapshot()")
        found = await until(
            server,
            lambda report: (
                slot_of(report, "stranger").reader is not None
                and slot_of(report, "stranger").unacknowledged_bytes(report.observation.wal_lsn) < MIB
            ),
        )
        stranger = slot_of(found, "stranger")
        assert stranger.retained_bytes(found.observation.wal_lsn) > 60 * MIB
        later = dataclasses.replace(found.observation, at=found.observation.at + 60)
        (oldest,) = later.transactions
        assert pin_of(stranger, later) == oldest
        assert oldest.pid == (None if prepared else writer.info.backend_pid)
        assert oldest.gid == ("order 17" if prepared else None)
        who = "prepared transaction 'order 17'" if prepared else f"open transaction of pid {oldest.pid}"
        assert (reason_of(stranger, later, 0.0) or "").startswith(f"{who} since ")
        assert "424242" not in repr(found)
        if prepared:
            execute(server.dsn(), "ROLLBACK PREPARED 'order 17'")


async def test_what_a_role_without_rights_may_not_see_is_null_and_a_grant_shows_it(
    make_postgres: MakePostgres,
) -> None:
    server = make_postgres(settings=SETTINGS)
    make_slots(server)
    execute(server.dsn(), 'CREATE ROLE "low ly" LOGIN')
    with psycopg.connect(server.dsn()) as writer:
        writer.execute("INSERT INTO written VALUES (1)")
        found = await look(server, "low%20ly".replace("%20", " "))
        assert [slot.slot.name for slot in found.observation.slots] == ["fresh", "standby", "stranger"]
        (oldest,) = found.observation.transactions
        assert (oldest.pid, oldest.since, oldest.xid_age) == (writer.info.backend_pid, None, oldest.xid_age)
        assert oldest.xid_age is not None
        assert found.observation.wal_dir_bytes is None
        assert found.disk is None
        said = {warning.message: warning.hint for warning in found.warnings(0)}
        (hint,) = [hint for message, hint in said.items() if "may not see since when" in message]
        execute(server.dsn(), hint)
        for hidden in found.observation.hidden:
            if hidden.grant.startswith("GRANT"):
                execute(server.dsn(), hidden.grant)
        granted = await look(server, "low ly", disk_path=str(server.data_dir))
        assert granted.observation.transactions[0].since is not None
        assert granted.observation.wal_dir_bytes is not None
        assert granted.disk is not None
        assert not [warning for warning in granted.warnings(0) if warning.subject == "postgres"]


async def test_the_watch_reads_only_and_says_who_it_is(make_postgres: MakePostgres) -> None:
    server = make_postgres(settings=SETTINGS)
    watcher = Watcher(settings_of(server), MonitorSettings())
    await watcher.look()
    (name,) = fetch(server.dsn(), "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'walt%%'")
    assert name == "waltier monitor"
    connection = watcher._connection
    assert connection is not None
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        await connection.raw.execute("CREATE TABLE harm (id int)")
    assert await connection.one("SHOW statement_timeout") == ("5s",)
    await watcher.close()


async def test_the_disk_is_this_machines_only_if_the_server_is(make_postgres: MakePostgres) -> None:
    server = make_postgres(settings=SETTINGS)
    observation = (await look(server)).observation
    elsewhere = dataclasses.replace(observation, backend_pid=os.getpid())
    assert find_disk(elsewhere, None) is None
    here = dataclasses.replace(observation, backend_pid=server.pid)
    assert find_disk(here, None) is None  # a postmaster serves nobody, so its title is another
    assert find_disk(elsewhere, "/") is not None
    assert find_disk(elsewhere, "/there/is/no/such/directory") is None


# The limit, reached ---------------------------------------------------------------------------------------------------

KEEP_MIB, RATE_MIB = 64, 4


@pytest.mark.wide
async def test_the_forecast_tells_when_the_limit_is_reached_and_lost_is_infinite(make_postgres: MakePostgres) -> None:
    """WAL at a steady rate until the slot has no safe WAL left; each forecast is held against what then came."""
    server = make_postgres(settings={"max_slot_wal_keep_size": f"{KEEP_MIB}MB", "wal_keep_size": "0"})
    make_slots(server)
    watcher, predicted = Watcher(settings_of(server), MonitorSettings()), list[tuple[float, float]]()
    writing = asyncio.create_task(asyncio.to_thread(_write_steadily, server.dsn(), 45.0))
    try:
        while True:
            found = await watcher.look()
            now, stranger = time.monotonic(), slot_of(found, "stranger")
            if stranger.slot.wal_status in ("unreserved", "lost"):
                break
            predicted.append((now, found.forecasts["stranger"].seconds))
            assert found.forecasts["stranger"].limit == "max_slot_wal_keep_size"
            assert now < predicted[0][0] + 45, predicted
            await asyncio.sleep(0.25)
        errors = [
            (at - now, seconds / (now - at)) for at, seconds in predicted if 1.5 < now - at < now - predicted[0][0] - 1
        ]
        print("seconds before the limit, forecast / actual:", [(round(t, 1), round(r, 2)) for t, r in errors[::6]])
        assert len(errors) >= 10
        assert all(0.65 <= ratio <= 1.35 for _, ratio in errors), errors
        await writing
        await _lose(server, watcher)
    finally:
        await asyncio.wait([writing])
        await watcher.close()


def _write_steadily(dsn: str, seconds: float) -> None:
    """`RATE_MIB` a second, by the clock, until the slots have lost what they need."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        began = time.monotonic()
        for number in range(int(seconds * RATE_MIB * 4)):
            time.sleep(max(0.0, began + number / RATE_MIB / 4 - time.monotonic()))
            text = "SELECT pg_logical_emit_message(false, 'filler', repeat('x', %s))"
            connection.execute(text, [MIB // 4])
            if number % 4 == 0 and _statuses(connection) & {"unreserved", "lost"}:
                return


def _statuses(connection: psycopg.Connection) -> set[str]:
    found = connection.execute("SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'stranger'").fetchall()
    return {status for (status,) in found}


async def _lose(server: PostgresServer, watcher: Watcher) -> None:
    """Now the next checkpoint invalidates it; it is infinite wherever it is shown."""
    deadline = time.monotonic() + 60
    while not (stranger := slot_of(found := await watcher.look(), "stranger")).lost:
        assert time.monotonic() < deadline, stranger
        execute(server.dsn(), "SELECT pg_switch_wal()", "CHECKPOINT")
    assert found.forecasts["stranger"].seconds == math.inf
    assert stranger.retained_bytes(found.observation.wal_lsn) == math.inf
    facts = slot_facts(stranger, found)
    assert (facts["lost"], facts["retained_bytes"], facts["lag_bytes"], facts["forecast"]["seconds"]) == (
        True,
        None,
        None,
        None,
    )
    assert any("stranger, not ours, is lost" in warning.message for warning in found.warnings(0))


# Beside the service ---------------------------------------------------------------------------------------------------


def metric(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


async def until_so(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.02)


async def test_our_slot_is_seen_soon_after_it_is_made_however_long_the_interval(database: str) -> None:
    slot = f"cdc_{uuid4().hex[:12]}"
    settings = PostgresSettings.model_validate({"dsn": database, "slot": slot})
    monitor = Monitor(settings, MonitorSettings(interval_s=3600))
    task = asyncio.create_task(monitor.run())
    try:
        await until_so(lambda: monitor.latest is not None)
        execute(database, f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")
        await until_so(lambda: any(found["ours"] for found in monitor.slots))
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_the_monitor_outlives_the_server_says_so_once_and_forgets_dropped_slots(
    make_postgres: MakePostgres,
) -> None:
    server = make_postgres(settings=SETTINGS)
    make_slots(server)

    monitor = Monitor(settings_of(server), MonitorSettings(interval_s=0.1))
    task = asyncio.create_task(monitor.run())
    try:
        with capture_logs() as logged:
            await until_so(lambda: monitor.latest is not None)
            assert metric("cdc_slot_active", slot="stranger") == 0
            assert metric("cdc_slot_wal_status", slot="stranger", wal_status="reserved") == 1
            assert metric("cdc_slot_wal_status", slot="stranger", wal_status="lost") == 0
            assert metric("cdc_slot_forecast_seconds", slot="fresh") == math.inf
            assert metric("cdc_slot_retained_bytes", slot="fresh") == 0
            await asyncio.to_thread(server.stop)
            await until_so(lambda: metric("cdc_monitor_up") == 0)
            await asyncio.sleep(0.5)  # some more looks, which say nothing new
            assert [warning.subject for warning in monitor.warnings if warning.subject == "monitor"] == ["monitor"]
            await asyncio.to_thread(server.start)
            execute(server.dsn(), "SELECT pg_drop_replication_slot('stranger')")
            await until_so(lambda: metric("cdc_slot_active", slot="stranger") is None)
        assert metric("cdc_monitor_up") == 1
        assert metric("cdc_slot_wal_status", slot="stranger", wal_status="lost") is None
        events = [line["event"] for line in logged if line["event"].startswith("monitor_")]
        assert events[-1] == "monitor_recovered"
        assert 1 <= events.count("monitor_failed") <= 3  # once for each thing that was wrong in turn
    finally:
        task.cancel()
        await asyncio.wait([task])
