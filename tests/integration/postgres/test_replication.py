"""The replication stream on a real server: positions, cancellation, feedback, and every way it ends."""

import asyncio
import itertools
import os
import signal
import threading

import psycopg
import pytest

from cdc.change import LogicalMessage, RowChange
from cdc.errors import Invalid, SlotLost, Unavailable
from cdc.lsn import format_lsn, parse_lsn
from cdc.postgres.session import connect
from cdc.postgres.stream.pump import Pump
from cdc.postgres.stream.replication import ReplicationStream, SlotActive
from tests.conftest import MakePostgres
from tests.support.servers import PostgresAddress, fresh_database
from tests.support.streaming import consuming, execute, fetch, make_slot, settings_for, until

_TABLE = ("CREATE TABLE t (id int PRIMARY KEY, note text)", "CREATE PUBLICATION cdc FOR TABLE t")


def _confirmed(dsn: str, slot: str) -> int:
    query = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s"
    return parse_lsn(str(fetch(dsn, query, slot)[0]))


def _notes(consumer_changes: list[object]) -> list[bytes]:
    return [bytes(change.new[1]) for change in consumer_changes if isinstance(change, RowChange) and change.new]  # type: ignore[arg-type]


async def test_committed_rows_arrive_and_rolled_back_ones_do_not(database: str) -> None:
    settings = settings_for(database)
    execute(database, *_TABLE)
    make_slot(settings)
    execute(
        database,
        "INSERT INTO t VALUES (1, 'kept')",
        "DO $$ BEGIN INSERT INTO t VALUES (2, 'kept too'); "
        "BEGIN INSERT INTO t VALUES (3, 'savepoint'); RAISE division_by_zero; EXCEPTION WHEN OTHERS THEN NULL; END; "
        "END $$",
    )
    with psycopg.connect(database) as connection:
        connection.execute("INSERT INTO t VALUES (4, 'rolled back')")
        connection.rollback()
    execute(database, "INSERT INTO t VALUES (5, 'last')")
    async with consuming(settings) as consumer:
        assert _notes([*await consumer.take_changes(3)]) == [b"kept", b"kept too", b"last"]


async def test_what_was_not_acknowledged_comes_again_and_what_was_does_not(database: str) -> None:
    settings = settings_for(database)
    execute(database, *_TABLE)
    make_slot(settings)
    execute(database, "INSERT INTO t VALUES (1, 'one')", "INSERT INTO t VALUES (2, 'two')")
    async with consuming(settings) as consumer:
        first, second = await consumer.take(2)
        # The position of the commit record itself is not the end of the transaction.
        consumer.stream.send_status(first.commit_lsn, first.commit_lsn, first.commit_lsn)
    async with consuming(settings) as consumer:
        again, _ = await consumer.take(2)
        assert again.commit_lsn == first.commit_lsn
        consumer.stream.send_status(first.end_lsn, first.end_lsn, first.end_lsn)
    assert _confirmed(database, settings.slot) == first.end_lsn
    async with consuming(settings) as consumer:
        (remaining,) = await consumer.take(1)
        assert remaining.commit_lsn == second.commit_lsn


async def test_the_last_status_arrives_though_the_socket_is_full_of_unread_rows(database: str) -> None:
    settings = settings_for(database)
    execute(database, *_TABLE)
    make_slot(settings)
    execute(database, "INSERT INTO t VALUES (0, 'first')")
    execute(database, "INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1, 20000) g")
    async with consuming(settings) as consumer:
        first = (await consumer.take(1))[0]
        await asyncio.sleep(0.2)
        consumer.stream.send_status(first.end_lsn, first.end_lsn, first.end_lsn)
    assert _confirmed(database, settings.slot) == first.end_lsn


async def test_a_slot_advanced_by_somebody_skips_in_silence(database: str) -> None:
    settings = settings_for(database)
    execute(database, *_TABLE)
    make_slot(settings)
    before = _confirmed(database, settings.slot)
    execute(database, "INSERT INTO t VALUES (1, 'skipped')")
    fetch(database, "SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())::text", settings.slot)
    execute(database, "INSERT INTO t VALUES (2, 'seen')")
    assert _confirmed(database, settings.slot) > before
    async with consuming(settings) as consumer:
        assert _notes([*await consumer.take_changes(1)]) == [b"seen"]


async def test_a_start_below_confirmed_flush_is_fast_forwarded_by_the_server(database: str) -> None:
    """Why no position is ever passed: the server corrects a wrong one without a word."""
    settings = settings_for(database)
    execute(database, *_TABLE)
    make_slot(settings)
    below = _confirmed(database, settings.slot)
    execute(database, "INSERT INTO t VALUES (1, 'acknowledged')")
    fetch(database, "SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())::text", settings.slot)
    execute(database, "INSERT INTO t VALUES (2, 'next')")
    connection = await connect(settings, replication=True)
    try:
        pump = Pump(connection.raw.pgconn)
        connection.raw.pgconn.send_query(
            f"START_REPLICATION SLOT {settings.slot} LOGICAL {format_lsn(below)} "
            "(proto_version '1', publication_names 'cdc')".encode()
        )
        await pump.result()
        received = b"".join(pump.drain(1024)[0])
        while b"next" not in received:
            await asyncio.wait_for(pump.readable(), 30)
            received += b"".join(pump.drain(1024)[0])
    finally:
        await connection.close()
    assert b"acknowledged" not in received


async def test_a_second_consumer_is_told_who_has_the_slot(database: str) -> None:
    settings = settings_for(database)
    execute(database, *_TABLE)
    make_slot(settings)
    async with consuming(settings) as consumer, await ReplicationStream.open(settings) as second:
        with pytest.raises(SlotActive) as refused:
            await second.start(settings.slot, "cdc")
        assert str(consumer.stream.backend_pid) in refused.value.detail


async def test_a_refused_stream_can_be_started_when_the_slot_is_free(database: str) -> None:
    settings = settings_for(database)
    execute(database, *_TABLE)
    make_slot(settings)
    async with await ReplicationStream.open(settings) as second:
        async with consuming(settings):
            with pytest.raises(SlotActive):
                await second.start(settings.slot, "cdc")
        while True:
            try:
                await second.start(settings.slot, "cdc")
            except SlotActive:
                await asyncio.sleep(0.02)
            else:
                break
        execute(database, "INSERT INTO t VALUES (1, 'one')")
        assert await asyncio.wait_for(second.receive(), 30)


async def test_a_missing_slot_is_lost(database: str) -> None:
    settings = settings_for(database)
    async with await ReplicationStream.open(settings) as stream:
        with pytest.raises(SlotLost, match="does not exist"):
            await stream.start(settings.slot, "cdc")


async def test_a_slot_of_another_database_is_invalid(database: str, postgres_server: PostgresAddress) -> None:
    settings = settings_for(database)
    make_slot(settings)
    with fresh_database(postgres_server) as other:
        async with await ReplicationStream.open(settings_for(other)) as stream:
            with pytest.raises(Invalid, match="belongs to something else"):
                await stream.start(settings.slot, "cdc")


async def test_a_publication_younger_than_the_slot_does_not_exist_for_earlier_changes(database: str) -> None:
    settings = settings_for(database)
    execute(database, "CREATE TABLE t (id int PRIMARY KEY)")
    make_slot(settings)
    execute(database, "INSERT INTO t VALUES (1)", "CREATE PUBLICATION cdc FOR TABLE t")
    with pytest.raises(Invalid) as refused:
        async with consuming(settings) as consumer:
            await consumer.take(1)
    assert "CREATE PUBLICATION" in refused.value.hint


async def test_a_publication_dropped_under_the_stream_ends_it_before_rows_are_missed(database: str) -> None:
    """On 18 the server only warns, and goes on without the rows."""
    settings = settings_for(database)
    execute(database, *_TABLE)
    make_slot(settings)
    async with consuming(settings) as consumer:
        execute(database, "INSERT INTO t VALUES (1, 'one')")
        await consumer.take(1)
        execute(
            database,
            "DROP PUBLICATION cdc",
            "INSERT INTO t VALUES (2, 'unpublished')",
            "CREATE PUBLICATION cdc FOR TABLE t",
            "INSERT INTO t VALUES (3, 'published again')",
        )
        with pytest.raises(Invalid, match="publication cdc does not exist"):
            await consumer.take(1)
        with pytest.raises(Invalid):
            await consumer.stream.receive()


async def test_a_terminated_stream_is_unavailable_after_all_that_arrived_was_read(database: str) -> None:
    settings = settings_for(database)
    execute(database, *_TABLE)
    make_slot(settings)
    async with consuming(settings) as consumer:
        execute(database, "INSERT INTO t VALUES (1, 'one')")
        await consumer.take(1)
        execute(database, "INSERT INTO t VALUES (2, 'two')")
        await asyncio.sleep(0.3)
        fetch(database, "SELECT pg_terminate_backend(%s)", consumer.stream.backend_pid)
        assert _notes([*await consumer.take_changes(1)]) == [b"two"]
        with pytest.raises(Unavailable) as ended:
            await consumer.take(1)
        assert "57P01" in ended.value.detail
        with pytest.raises(Unavailable):
            await consumer.stream.receive()
        consumer.stream.send_status(1, 1, 1)


async def test_a_crash_of_the_server_is_unavailable(make_postgres: MakePostgres) -> None:
    server = make_postgres()
    settings = settings_for(server.dsn())
    execute(server.dsn(), *_TABLE)
    make_slot(settings)
    async with consuming(settings) as consumer:
        server.kill()
        with pytest.raises(Unavailable):
            await consumer.take(1)


async def test_cancelling_receive_loses_nothing_and_leaves_no_reader(database: str) -> None:
    settings = settings_for(database)
    execute(database, *_TABLE)
    make_slot(settings)
    count = 300
    enough = threading.Event()

    def write() -> int:
        """At least so many rows, and on until a wait was cut; return how many."""
        written = 0
        with psycopg.connect(database, autocommit=True) as connection:
            while written < count or not enough.is_set():
                connection.execute("INSERT INTO t VALUES (%s, 'note')", [written])
                written += 1
        return written

    async with consuming(settings) as consumer:
        writing = asyncio.create_task(asyncio.to_thread(write))
        pauses_s = itertools.cycle((0, 0.0007))
        async with asyncio.timeout(60):
            while not writing.done() or len(consumer.transactions) < writing.result():
                receiving = asyncio.create_task(consumer.stream.receive())
                await asyncio.sleep(next(pauses_s))
                receiving.cancel()
                try:
                    consumer.feed(await receiving)
                except asyncio.CancelledError:
                    enough.set()
        assert enough.is_set()
        assert not asyncio.get_running_loop().remove_reader(consumer.stream._pgconn.socket)
        positions = [transaction.commit_lsn for transaction in consumer.transactions]
        assert positions == sorted(set(positions))


async def test_not_reading_is_survived_with_feedback_and_fatal_without(make_postgres: MakePostgres) -> None:
    server = make_postgres(settings={"wal_sender_timeout": "1s"})
    settings = settings_for(server.dsn())
    execute(server.dsn(), *_TABLE)
    make_slot(settings)
    execute(server.dsn(), "INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(1, 20000) g")
    async with consuming(settings) as consumer:
        for _ in range(40):
            consumer.stream.send_status(1, 1, 1)
            await asyncio.sleep(0.1)
        (transaction, *_) = await consumer.take(1)
        assert transaction.changes
        with pytest.raises(Unavailable):
            await consumer.take(10**9)


async def test_status_updates_never_wait_for_a_server_that_does_not_read(make_postgres: MakePostgres) -> None:
    server = make_postgres()
    settings = settings_for(server.dsn())
    execute(server.dsn(), *_TABLE)
    make_slot(settings)
    async with consuming(settings) as consumer:
        execute(server.dsn(), "INSERT INTO t VALUES (1, 'one')")
        (transaction,) = await consumer.take(1)
        lsn = transaction.end_lsn
        os.kill(consumer.stream.backend_pid, signal.SIGSTOP)
        try:
            for _ in range(150_000):
                consumer.stream.send_status(1, 1, 1)
            assert consumer.stream._writing, "the socket took it all"
        finally:
            os.kill(consumer.stream.backend_pid, signal.SIGCONT)
        consumer.stream.send_status(lsn, lsn, lsn)
        await until(lambda: _confirmed(server.dsn(), settings.slot) == lsn, "the newest status has arrived")


async def test_steady_traffic_arrives_in_commit_order_without_loss(database: str) -> None:
    settings = settings_for(database)
    execute(database, *_TABLE)
    make_slot(settings)
    count = 5000
    async with consuming(settings) as consumer:
        writing = asyncio.create_task(
            asyncio.to_thread(
                execute,
                database,
                f"DO $$ BEGIN FOR i IN 1..{count} LOOP INSERT INTO t VALUES (i, 'n' || i); COMMIT; END LOOP; END $$",
            )
        )
        transactions = await consumer.take(count)
        await writing
    positions = [transaction.commit_lsn for transaction in transactions]
    assert positions == sorted(set(positions))
    changes = [change for transaction in transactions for change in transaction.changes]
    assert _notes([*changes]) == [f"n{number}".encode() for number in range(1, count + 1)]


async def test_a_value_of_twenty_megabytes_arrives_whole(database: str) -> None:
    settings = settings_for(database)
    execute(database, *_TABLE)
    make_slot(settings)
    execute(database, "INSERT INTO t VALUES (1, repeat('0123456789', 2 * 1024 * 1024))")
    async with consuming(settings) as consumer:
        (note,) = _notes([*await consumer.take_changes(1)])
    assert note == b"0123456789" * (2 * 1024 * 1024)


async def test_an_empty_transaction_moves_only_the_servers_position(database: str) -> None:
    settings = settings_for(database)
    execute(database, *_TABLE, "CREATE TABLE unpublished (id int)")
    make_slot(settings)
    async with consuming(settings) as consumer:
        execute(database, "INSERT INTO unpublished VALUES (1)")
        target = parse_lsn(str(fetch(database, "SELECT pg_current_wal_lsn()::text")[0]))
        execute(database, "INSERT INTO t VALUES (1, 'one')")
        transactions = [transaction for transaction in await consumer.take(1) if transaction.changes]
        assert len(transactions) == 1
        assert consumer.wal_end >= target


async def test_logical_messages_arrive_inside_and_outside_transactions(database: str) -> None:
    settings = settings_for(database)
    execute(database, *_TABLE)
    make_slot(settings)
    execute(
        database,
        "SELECT pg_logical_emit_message(false, 'outside', 'a')",
        "SELECT pg_logical_emit_message(true, 'inside', 'b')",
    )
    async with consuming(settings) as consumer:
        outside, inside = await consumer.take_changes(2)
    assert isinstance(outside, LogicalMessage)
    assert isinstance(inside, LogicalMessage)
    assert (outside.prefix, outside.content, outside.transactional) == ("outside", b"a", False)
    assert (inside.prefix, inside.content, inside.transactional) == ("inside", b"b", True)


async def test_bytes_of_an_sql_ascii_database_arrive_unconverted(postgres_server: PostgresAddress) -> None:
    with fresh_database(postgres_server, ENCODING="SQL_ASCII", LOCALE="C") as database:
        settings = settings_for(database)
        execute(database, *_TABLE)
        make_slot(settings)
        execute(database, "INSERT INTO t VALUES (1, E'caf\\xe9 \\xff')")
        async with consuming(settings, server_encoding="SQL_ASCII") as consumer:
            assert _notes([*await consumer.take_changes(1)]) == [b"caf\xe9 \xff"]


async def test_names_that_need_quoting_are_quoted(database: str) -> None:
    settings = settings_for(database, publication='it\'s "mine", really')
    execute(
        database,
        'CREATE TABLE "a ""b"" c" (id int PRIMARY KEY, "d\'e" text)',
        'CREATE PUBLICATION "it\'s ""mine"", really" FOR TABLE "a ""b"" c"',
    )
    make_slot(settings)
    execute(database, 'INSERT INTO "a ""b"" c" VALUES (1, $$x$$)')
    async with consuming(settings) as consumer:
        (change,) = await consumer.take_changes(1)
    assert isinstance(change, RowChange)
    assert change.relation.name == 'a "b" c'
