"""The network between the service and its neighbours: cut, silent, slow. Nothing is lost, and it mends itself."""

import time
from urllib.parse import urlsplit

import pytest
from psycopg import conninfo

from tests.acceptance.conftest import MakeService, settled_and_equal
from tests.conftest import MakePostgres
from tests.faults.checker import TABLES, cache_sampler
from tests.faults.witness import Witness
from tests.faults.workload import Workload
from tests.support.cdc_process import confirmed_flush_lsn, install, wait_until
from tests.support.proxy import Proxy


def port_of(dsn: str) -> int:
    return int(str(conninfo.conninfo_to_dict(dsn)["port"]))


def through(dsn: str, proxy: Proxy) -> str:
    return conninfo.make_conninfo(dsn, user="cdc_replicator", port=proxy.port)


def test_connections_cut_again_and_again_lose_and_double_nothing(
    installed: str, redis_url: str, archive_dir: str, make_service: MakeService
) -> None:
    witness = Witness(installed, TABLES)
    address = urlsplit(redis_url)
    with Proxy(port_of(installed), latency_s=0.002) as postgres, Proxy(address.port or 0) as cache:
        url = f"redis://127.0.0.1:{cache.port}{address.path}"
        service = make_service(installed, archive_dir, url, dsn=through(installed, postgres)).start()
        service.wait_until_caught_up(installed)
        with cache_sampler(redis_url) as sampler, Workload(installed, seed=20):
            for _ in range(3):
                for proxy in (postgres, cache):
                    connections = proxy.connections
                    proxy.cut()
                    wait_until(lambda proxy=proxy, n=connections: proxy.connections > n, "connected again")  # type: ignore[misc]
                    time.sleep(0.3)
        settled_and_equal(service, installed, archive_dir, redis_url, witness, sampler)


def test_a_silent_network_is_noticed_and_left(
    make_postgres: MakePostgres, redis_url: str, archive_dir: str, make_service: MakeService
) -> None:
    """No byte comes and none goes, and nobody closes anything: only a deadline can tell."""
    dsn = make_postgres(settings={"wal_sender_timeout": "3s"}).dsn()
    install(dsn)
    witness = Witness(dsn, TABLES)
    with Proxy(port_of(dsn)) as postgres:
        service = make_service(dsn, archive_dir, redis_url, dsn=through(dsn, postgres)).start()
        service.wait_until_caught_up(dsn)
        with Workload(dsn, seed=21):
            time.sleep(1)
            postgres.freeze()
            time.sleep(6)
            before = confirmed_flush_lsn(dsn)
            postgres.thaw()
            time.sleep(1)
        service.wait_until_caught_up(dsn)
        assert confirmed_flush_lsn(dsn) > before
        settled_and_equal(service, dsn, archive_dir, redis_url, witness)


@pytest.mark.wide
def test_a_connection_that_never_speaks_again_is_given_up(
    make_postgres: MakePostgres, archive_dir: str, make_service: MakeService
) -> None:
    """The server has long forgotten the connection; without a deadline of its own the service would wait for ever."""
    dsn = make_postgres(settings={"wal_sender_timeout": "2s"}).dsn()
    install(dsn)
    with Proxy(port_of(dsn)) as postgres:
        service = make_service(dsn, archive_dir, dsn=through(dsn, postgres), postgres={"silence_s": 2}).start()
        service.wait_until_caught_up(dsn)
        postgres.freeze()
        service.wait_for_event("interrupted")
        postgres.thaw()
        service.wait_until_caught_up(dsn)
        assert service.stop() == 0
