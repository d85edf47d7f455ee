"""Sessions and the server's facts, on a real server."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
from psycopg.conninfo import make_conninfo

from cdc.config import PostgresSettings
from cdc.embedded import PostgresServer
from cdc.errors import Invalid, Unavailable
from cdc.lsn import parse_lsn
from cdc.postgres.refusal import Refusal
from cdc.postgres.server import check_server, current_wal_lsn, read_server
from cdc.postgres.session import SESSION_SETTINGS, Connection, connect
from cdc.postgres.stream.replication import ReplicationStream
from tests.conftest import MakePostgres
from tests.support.cdc_process import needs_postgres
from tests.support.servers import fresh_database
from tests.support.streaming import execute, fetch, settings_for


@pytest.fixture
def plain_role(database: str) -> Iterator[str]:
    """A role with no privilege but to log in."""
    role = f"test_{uuid4().hex[:12]}"
    execute(database, f"CREATE ROLE {role} LOGIN")
    yield role
    execute(database, f"DROP ROLE {role}")


def _changed(dsn: str, **parts: str | int) -> PostgresSettings:
    return settings_for(make_conninfo(dsn, **parts))


async def test_every_session_prints_values_the_same_way(database: str, plain_role: str) -> None:
    execute(
        database,
        f"ALTER ROLE {plain_role} SET datestyle = 'German'",
        f"ALTER ROLE {plain_role} SET extra_float_digits = 0",
        f"ALTER ROLE {plain_role} SET bytea_output = 'escape'",
        f"ALTER ROLE {plain_role} SET timezone = 'Asia/Kathmandu'",
        f"ALTER ROLE {plain_role} SET statement_timeout = '1s'",
        f"ALTER ROLE {plain_role} SET idle_session_timeout = '1s'",
    )
    async with await connect(_changed(database, user=plain_role)) as connection:
        for name, value in {**SESSION_SETTINGS, "statement_timeout": "0", "idle_session_timeout": "0"}.items():
            (shown,) = await connection.one("SELECT current_setting(%s)", [name])
            assert shown.split(",")[0] == value.strip('"'), name


async def test_an_unknown_database_is_invalid(database: str) -> None:
    with pytest.raises(Invalid, match="database named in"):
        await connect(_changed(database, dbname="no_such_database"))


async def test_an_unknown_role_is_invalid(database: str) -> None:
    with pytest.raises(Invalid) as refused:
        await connect(_changed(database, user="no_such_role"))
    assert refused.value.hint


async def test_nobody_at_the_address_is_unavailable(database: str) -> None:
    with pytest.raises(Unavailable) as refused:
        await connect(_changed(database, port=1))
    assert "host and port" in refused.value.hint


async def test_a_role_that_may_not_replicate_is_invalid(database: str, plain_role: str) -> None:
    with pytest.raises(Invalid) as refused:
        await ReplicationStream.open(_changed(database, user=plain_role))
    assert "REPLICATION" in refused.value.hint


async def test_the_least_privileged_role_reads_the_same_epoch_as_the_stream(database: str, plain_role: str) -> None:
    async with await connect(_changed(database, user=plain_role)) as connection:
        server = await read_server(connection)
    async with await ReplicationStream.open(settings_for(database)) as stream:
        identity = await stream.identify()
    assert server.epoch == identity.epoch
    assert server.database == identity.database
    assert server.encoding == "UTF8"
    assert server.settings["intervalstyle"] == "iso_8601"


async def test_the_servers_position_is_the_one_it_writes_at(database: str) -> None:
    async with await connect(settings_for(database)) as connection:
        before = await current_wal_lsn(connection)
    execute(database, "SELECT pg_logical_emit_message(true, 'p', 'more')")
    after = parse_lsn(str(fetch(database, "SELECT pg_current_wal_lsn()::text")[0]))
    assert before < after


async def test_a_capable_server_passes_the_check(database: str) -> None:
    settings = settings_for(database)
    async with await connect(settings) as connection:
        await check_server(connection, await read_server(connection), settings.slot)


async def test_a_server_without_logical_wal_or_room_for_a_slot_is_told_both(make_postgres: MakePostgres) -> None:
    server = make_postgres(settings={"wal_level": "replica", "max_replication_slots": "1"})
    execute(server.dsn(), "SELECT pg_create_physical_replication_slot('somebody')")
    settings = settings_for(server.dsn())
    async with await connect(settings) as connection:
        with pytest.raises(Invalid) as refused:
            await check_server(connection, await read_server(connection), settings.slot)
    assert "ALTER SYSTEM SET wal_level = logical" in refused.value.hint
    assert "ALTER SYSTEM SET max_replication_slots = 11" in refused.value.hint


async def test_a_server_with_failover_slots_may_be_asked_for_one(database: str) -> None:
    needs_postgres(database, 17)
    settings = settings_for(database)
    async with await connect(settings) as connection:
        await check_server(connection, await read_server(connection), settings.slot, failover=True)


@pytest.mark.wide
async def test_a_server_that_knows_no_failover_slots_is_refused(debian_postgres: PostgresServer) -> None:
    with fresh_database(debian_postgres) as dsn:
        settings = settings_for(dsn)
        async with await connect(settings) as connection:
            server = await read_server(connection)
            await check_server(connection, server, settings.slot)
            with pytest.raises(Invalid, match=r"needs Postgres 17 or newer, and this is 15") as refused:
                await check_server(connection, server, settings.slot, failover=True)
    assert "failover = false" in refused.value.hint


async def test_a_restarted_server_is_the_same_epoch_at_a_later_position(make_postgres: MakePostgres) -> None:
    server = make_postgres()
    async with await connect(settings_for(server.dsn())) as connection:
        before = await read_server(connection)
    server.restart()
    async with await connect(settings_for(server.dsn())) as connection:
        assert (await read_server(connection)).epoch == before.epoch


async def test_a_session_outlives_no_server(make_postgres: MakePostgres) -> None:
    server = make_postgres()
    async with await connect(settings_for(server.dsn())) as connection:
        server.stop()
        with pytest.raises(Unavailable):
            await read_server(connection)
    with pytest.raises(Unavailable):
        await connect(settings_for(server.dsn()))


async def test_a_session_answers_in_rows_and_refuses_in_our_words(database: str) -> None:
    async with await connect(settings_for(database)) as connection:
        await connection.execute("CREATE TABLE public.t (id int PRIMARY KEY); INSERT INTO public.t VALUES (1), (2)")
        assert await connection.one("SELECT id FROM public.t ORDER BY id") == (1,)
        assert await connection.all("SELECT id FROM public.t WHERE id > %s", [1]) == [(2,)]
        assert await connection.named("SELECT 7 AS seven, '10%' AS share") == [{"seven": 7, "share": "10%"}]
        assert await connection.printed("SELECT true, NULL") == [[b"t", None]]
        with pytest.raises(Unavailable, match="did not answer"):
            await connection.one("SELECT FROM public.t WHERE false")
        for verb in (connection.execute, connection.one, connection.all, connection.named, connection.printed):
            with pytest.raises(Invalid) as refused:
                await verb("SELECT nothing_of_that_name")
            assert refused.value.__cause__ is None
        missing = await connection.attempt("DROP TABLE public.missing")
        assert isinstance(missing, Refusal)
        assert missing.sqlstate == "42P01"


async def _transact(connection: Connection, *statements: str, force_rollback: bool = False) -> None:
    async with connection.transaction(force_rollback=force_rollback):
        for statement in statements:
            await connection.execute(statement)


async def test_a_transaction_commits_all_or_nothing_and_may_fail_at_its_end(database: str) -> None:
    async with await connect(settings_for(database)) as connection:
        await connection.execute("CREATE TABLE public.t (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)")
        with pytest.raises(Invalid):
            await _transact(connection, "INSERT INTO public.t VALUES (1)", "SELECT nothing_of_that_name")
        with pytest.raises(Unavailable):  # not before the COMMIT
            await _transact(connection, "INSERT INTO public.t VALUES (2), (2)")
        await _transact(connection, "INSERT INTO public.t VALUES (3)", force_rollback=True)
        await _transact(connection, "INSERT INTO public.t VALUES (4)")
        assert await connection.all("SELECT id FROM public.t") == [(4,)]


async def test_a_session_that_the_server_ended_is_unavailable(database: str) -> None:
    async with await connect(settings_for(database)) as connection:
        fetch(database, "SELECT pg_terminate_backend(%s)", connection.backend_pid)
        with pytest.raises(Unavailable):
            await connection.one("SELECT 1")
        assert connection.closed
        with pytest.raises(Unavailable):
            await _transact(connection)
