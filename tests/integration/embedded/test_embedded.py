"""The supervisors against real servers: no orphans, no lost data, any user."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from cdc.embedded import PostgresServer, ValkeyServer, binaries
from cdc.embedded.process import NOBODY, Identity, free_port, launch_argv, run
from cdc.errors import Invalid, Unavailable
from tests.conftest import MakePostgres, MakeValkey
from tests.support.servers import DEBIAN_POSTGRES_BIN

ROOT = Path(__file__).parents[3]

BOTH_SERVERS = """
import json, sys, time
import structlog
from cdc.embedded import PostgresServer, ValkeyServer

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
postgres = PostgresServer(sys.argv[1] + "/data", settings={"fsync": "off"})
postgres.start()
valkey = ValkeyServer(sys.argv[1] + "/valkey")
valkey.start()
print(json.dumps({"dsn": postgres.dsn(), "url": valkey.url, "pids": [postgres.pid, valkey.pid]}), flush=True)
time.sleep(float(sys.argv[2]))
postgres.stop()
valkey.stop()
"""


def _environment() -> dict[str, str]:
    paths = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    return {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": os.pathsep.join(paths), "HOME": "/nonexistent"}


def _gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _eventually(condition: Callable[[], bool], timeout_s: float = 60) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def home(server_dir: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=server_dir))


def _count(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT count(*) FROM t").fetchone()
    assert row is not None
    return int(row[0])


def _start_both_and_kill_their_parent(home: Path, code: str = BOTH_SERVERS) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(home), "600"], stdout=subprocess.PIPE, env=_environment()
    )
    with parent:
        assert parent.stdout is not None
        started = json.loads(parent.stdout.readline())
        with closing(psycopg.connect(started["dsn"])):
            servers = [psutil.Process(pid) for pid in started["pids"]]
            children = [child for server in servers for child in server.children(recursive=True)]
            assert len(children) > 3
            parent.kill()
            parent.wait()
            everyone = [process.pid for process in (*servers, *children)]
            assert _eventually(lambda: all(map(_gone, everyone)))


def test_no_process_of_a_server_survives_a_sigkill_of_its_parent(home: Path) -> None:
    _start_both_and_kill_their_parent(home)


def test_a_server_is_in_a_session_of_its_own_so_that_ctrl_c_reaches_only_us(make_valkey: MakeValkey) -> None:
    server = make_valkey()
    assert os.getsid(server.pid) != os.getsid(0)


async def test_a_server_started_in_a_worker_thread_outlives_the_thread(home: Path) -> None:
    server = ValkeyServer(home)
    await asyncio.to_thread(server.start)
    try:
        await asyncio.get_running_loop().shutdown_default_executor()
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
    finally:
        server.close()


async def test_both_servers_are_async_context_managers(home: Path) -> None:
    async with PostgresServer(home / "data", settings={"fsync": "off"}) as postgres, ValkeyServer(home / "v") as valkey:
        assert postgres.running
        assert valkey.running
        pids = postgres.pid, valkey.pid
    assert all(map(_gone, pids))


@pytest.mark.parametrize("mode", ["fast", "immediate", "kill"])
def test_a_restart_keeps_the_data_and_the_port(make_postgres: MakePostgres, mode: str) -> None:
    server = make_postgres()
    with psycopg.connect(server.dsn()) as connection:
        connection.execute("CREATE TABLE t AS SELECT generate_series(1, 1000)")
    dsn = server.dsn()
    if mode == "kill":
        server.kill()
        server.start()
    else:
        server.restart("fast" if mode == "fast" else "immediate")
    assert server.dsn() == dsn
    assert _count(dsn) == 1000


def test_a_postmaster_that_somebody_else_killed_is_started_again_at_once(make_postgres: MakePostgres) -> None:
    server = make_postgres()
    with psycopg.connect(server.dsn()) as connection:
        connection.execute("CREATE TABLE t AS SELECT generate_series(1, 1000)")
    with closing(psycopg.connect(server.dsn())):
        os.kill(server.pid, signal.SIGKILL)
        assert _eventually(lambda: not server.running)
        server.start()
    assert _count(server.dsn()) == 1000


def test_settings_changed_between_start_and_restart_apply(make_postgres: MakePostgres) -> None:
    server = make_postgres(settings={"application_name": "it's \\ quoted"})
    with psycopg.connect(server.dsn()) as connection:
        assert connection.execute("SELECT reset_val FROM pg_settings WHERE name = 'application_name'").fetchone() == (
            "it's \\ quoted",
        )
    server.settings["wal_level"] = "replica"
    server.restart()
    with psycopg.connect(server.dsn()) as connection:
        assert connection.execute("SHOW wal_level").fetchone() == ("replica",)


def test_a_setting_that_postgres_refuses_is_an_error_with_its_own_words(home: Path) -> None:
    server = PostgresServer(home / "data", settings={"fsync": "off", "wal_level": "nonsense"})
    with pytest.raises(Unavailable) as caught:
        server.start()
    assert "nonsense" in caught.value.detail
    assert not server.running


def test_a_database_that_is_not_utf8_can_be_made(make_postgres: MakePostgres) -> None:
    server = make_postgres(encoding="SQL_ASCII")
    with psycopg.connect(server.dsn()) as connection:
        connection.execute("SET client_encoding = 'UTF8'")
        assert connection.execute("SHOW server_encoding").fetchone() == ("SQL_ASCII",)


def test_a_data_directory_with_a_long_path_still_gets_a_unix_socket(home: Path) -> None:
    with PostgresServer(home / ("d" * 100), settings={"fsync": "off"}) as server:
        with psycopg.connect(server.dsn() + f"?host={server.socket_dir}") as connection:
            assert connection.execute("SELECT inet_client_addr()").fetchone() == (None,)
        socket_dir = server.socket_dir
    assert not socket_dir.exists()


def test_servers_listen_on_the_loopback_interface_only(make_postgres: MakePostgres, make_valkey: MakeValkey) -> None:
    for pid in (make_postgres().pid, make_valkey().pid):
        listening = [c.laddr.ip for c in psutil.Process(pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert listening == ["127.0.0.1"]


def test_many_servers_find_many_ports(home: Path) -> None:
    servers = [ValkeyServer(home / str(number)) for number in range(5)]
    try:
        for server in servers:
            server.start()
        assert len({server.port for server in servers}) == 5
    finally:
        for server in servers:
            server.close()


def test_a_port_that_is_taken_is_an_error_and_not_somebody_elses_server(home: Path, make_valkey: MakeValkey) -> None:
    taken = make_valkey().port
    for server in (ValkeyServer(home / "v", port=taken), PostgresServer(home / "data", port=taken)):
        with pytest.raises(Unavailable):
            server.start()
        assert not server.running


def test_free_port_stays_out_of_the_range_that_clients_get() -> None:
    assert all(20_000 <= free_port() < 32_000 for _ in range(20))


def test_valkey_is_restarted_empty_with_the_settings_of_now(make_valkey: MakeValkey) -> None:
    server = make_valkey(settings={"maxmemory": "10mb"})
    with redis.Redis.from_url(server.url) as client:
        client.set("key", "value")
        assert client.config_get("maxmemory") == {"maxmemory": str(10 * 1024 * 1024)}
    server.settings["maxmemory"] = "20mb"
    server.restart()
    with redis.Redis.from_url(server.url) as client:
        assert client.dbsize() == 0
        assert client.config_get("maxmemory") == {"maxmemory": str(20 * 1024 * 1024)}


def test_a_stopped_valkey_that_does_not_answer_is_closed_all_the_same(make_valkey: MakeValkey) -> None:
    server = make_valkey()
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    server.close()
    assert _gone(pid)


def _python_for(identity: Identity) -> str | None:
    """An interpreter that runs our code as `identity`: the tests' own may lie in a home that others cannot enter."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        code = f"import sys; sys.path[:0] = {_environment()['PYTHONPATH'].split(os.pathsep)}; import cdc.embedded"
        try:
            run([candidate, "-c", code], identity)
        except Unavailable:
            continue
        return candidate
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else; every other test here covers a user")
@pytest.mark.parametrize("identity", [Identity.USER_NAMESPACE, Identity.NOBODY])
def test_an_ordinary_user_can_run_both_servers(home: Path, identity: Identity) -> None:
    python = _python_for(identity)
    if python is None:
        pytest.skip(f"no interpreter here is within reach of {identity.value}")
    home.chmod(0o777)
    argv = launch_argv([python, "-c", BOTH_SERVERS, str(home), "0"], identity, signal.SIGKILL)
    finished = subprocess.run(argv, env=_environment(), capture_output=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr.decode()
    assert all(map(_gone, json.loads(finished.stdout)["pids"]))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes nobody")
def test_root_without_user_namespaces_runs_postgres_as_nobody(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "unprivileged_identities", lambda: (Identity.NOBODY,))
    home.chmod(0o700)  # as it is in a home or in what mkdtemp makes
    with PostgresServer(home / "data", settings={"fsync": "off"}) as server:
        assert psutil.Process(server.pid).uids().effective == NOBODY
        server.restart()
        with psycopg.connect(server.dsn()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes nobody")
def test_a_server_that_runs_as_nobody_dies_with_its_parent_too(home: Path) -> None:
    code = BOTH_SERVERS.replace(
        "import structlog",
        "import structlog; from cdc.embedded import binaries, process\n"
        "binaries.unprivileged_identities = lambda: (process.Identity.NOBODY,)",
    )
    _start_both_and_kill_their_parent(home, code)


def test_a_directory_that_is_not_a_database_cluster_is_explained_and_left_alone(home: Path) -> None:
    (home / "precious").write_text("data")
    with pytest.raises(Invalid, match="neither empty nor a database cluster"):
        PostgresServer(home).start()
    assert [path.name for path in home.iterdir()] == ["precious"]


@pytest.mark.wide
def test_debians_servers_run_under_the_same_supervisors(
    debian_postgres: PostgresServer, debian_redis: ValkeyServer
) -> None:
    debian_postgres.restart()
    debian_redis.restart()
    assert debian_postgres.version == 15
    with redis.Redis.from_url(debian_redis.url) as client:
        version: str = client.info("server")["redis_version"]
    assert version.startswith("7.")


@pytest.mark.wide
def test_debians_postgres_can_speak_tls(make_postgres: MakePostgres, home: Path) -> None:
    key, certificate = home / "server.key", home / "server.crt"
    request = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout server.key -out server.crt"
    subprocess.run(request.split(), cwd=home, check=True, capture_output=True)
    settings = {"ssl": "on", "ssl_key_file": str(key), "ssl_cert_file": str(certificate)}
    with closing(psycopg.connect(make_postgres(bin_dir=DEBIAN_POSTGRES_BIN, settings=settings).dsn())) as connection:
        assert connection.pgconn.ssl_in_use
