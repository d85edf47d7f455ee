"""Over TLS: Debian's Postgres, because the embedded one has no OpenSSL."""

import os
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cdc.change import Change, RowChange
from cdc.errors import Invalid, Unavailable
from cdc.postgres.session import connect
from tests.conftest import MakePostgres
from tests.support.certificates import write_certificates
from tests.support.servers import DEBIAN_POSTGRES_BIN
from tests.support.streaming import Consumer, consuming, execute, make_slot, settings_for

pytestmark = pytest.mark.wide


@pytest.fixture
def tls_dsn(make_postgres: MakePostgres, tmp_path: Path) -> str:
    server = make_postgres(bin_dir=DEBIAN_POSTGRES_BIN)
    write_certificates(tmp_path)
    owner = server.data_dir.stat()
    for name in ("server.crt", "server.key"):
        path = server.data_dir / name
        path.write_bytes((tmp_path / "server.pem").read_bytes())
        path.chmod(0o600)
        os.chown(path, owner.st_uid, owner.st_gid)
    execute(server.dsn(), "ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()")
    return make_conninfo(server.dsn(), sslmode="verify-full", sslrootcert=str(tmp_path / "ca.pem"))


async def _next_transaction(consumer: Consumer) -> list[Change]:
    """All changes of the next transaction, in however many pieces it comes."""
    pieces = await consumer.take(1)
    while not pieces[-1].last:
        pieces += await consumer.take(1)
    return [change for piece in pieces for change in piece.changes]


async def test_a_stream_over_tls_delivers_large_and_small_rows_without_a_stall(tls_dsn: str) -> None:
    settings = settings_for(tls_dsn)
    execute(tls_dsn, "CREATE TABLE t (id int PRIMARY KEY, note text)", "CREATE PUBLICATION cdc FOR TABLE t")
    make_slot(settings)
    sizes = [1, 100, 8_150, 8_192, 16_300, 16_384, 40_000, 1_000_000, 5]
    async with consuming(settings) as consumer:
        for number, size in enumerate(sizes * 5):
            execute(tls_dsn, f"INSERT INTO t VALUES ({number}, repeat('x', {size}))")
            (change,) = await _next_transaction(consumer)
            assert isinstance(change, RowChange)
            assert change.new is not None
            assert change.new[1] == b"x" * size
        execute(tls_dsn, "INSERT INTO t SELECT g, repeat('y', g % 300) FROM generate_series(1000, 40000) g")
        assert len(await _next_transaction(consumer)) == 39_001


async def test_an_authority_that_is_not_trusted_is_invalid_with_a_hint(tls_dsn: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_certificates(other)
    with pytest.raises(Invalid) as refused:
        await connect(settings_for(make_conninfo(tls_dsn, sslrootcert=str(other / "ca.pem"))))
    assert "sslrootcert" in refused.value.hint
    with pytest.raises(Invalid):
        await connect(settings_for(make_conninfo(tls_dsn, sslrootcert=str(other / "missing.crt"))))
    with pytest.raises(Invalid, match="another host"):
        await connect(settings_for(make_conninfo(tls_dsn, host="db.example.net", hostaddr="127.0.0.1")))


async def test_a_server_without_tls_is_invalid_for_who_asks_for_it(make_postgres: MakePostgres, tls_dsn: str) -> None:
    plain = make_postgres()
    with pytest.raises(Invalid) as refused:
        await connect(settings_for(make_conninfo(tls_dsn, port=plain.port)))
    assert "ssl = on" in refused.value.hint


async def test_channel_binding_is_used_where_scram_and_tls_are_and_refused_where_it_cannot_be(tls_dsn: str) -> None:
    execute(
        tls_dsn,
        "CREATE ROLE bound LOGIN REPLICATION PASSWORD 'canary'",
        "CREATE ROLE trusted LOGIN REPLICATION",
    )
    rules = Path(_setting(tls_dsn, "hba_file"))
    rules.write_text(f"hostssl all bound all scram-sha-256\n{rules.read_text()}")
    execute(tls_dsn, "SELECT pg_reload_conf()")
    bound = make_conninfo(tls_dsn, user="bound", password="canary", channel_binding="require")
    for replication in (False, True):
        async with await connect(settings_for(bound), replication=replication) as connection:
            assert connection.raw.pgconn.ssl_in_use
            assert connection.raw.pgconn.used_password
    with pytest.raises(Invalid, match="channel binding") as refused:
        await connect(settings_for(make_conninfo(bound, user="trusted")))
    assert "scram" in refused.value.hint
    assert "canary" not in refused.value.explain()


async def test_tls_before_1_2_is_not_spoken(tls_dsn: str) -> None:
    async with await connect(settings_for(tls_dsn)) as connection:
        (version,) = await connection.one("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    assert version in ["TLSv1.3", "TLSv1.2"]
    execute(
        tls_dsn,
        "ALTER SYSTEM SET ssl_min_protocol_version = 'TLSv1'",
        "ALTER SYSTEM SET ssl_max_protocol_version = 'TLSv1.1'",
        "SELECT pg_reload_conf()",
    )
    with pytest.raises((Invalid, Unavailable)):
        await connect(settings_for(tls_dsn))


def _setting(dsn: str, name: str) -> str:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
    assert row is not None
    return str(row[0])
