"""`cdc run` on what operators have: Debian's Postgres 15, Debian's Redis 7, and S3 over TLS."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from cdc.embedded import PostgresServer
from tests.acceptance.conftest import MakeService
from tests.acceptance.test_refusals import free_port
from tests.faults.checker import TABLES, acknowledgement_sampler, cache_sampler, check
from tests.faults.objects import tail_of
from tests.faults.witness import Witness
from tests.faults.workload import Workload
from tests.support.cdc_process import install, query, wait_until
from tests.support.s3 import S3Server
from tests.support.servers import fresh_database

pytestmark = pytest.mark.wide


@pytest.fixture
def debian_redis(tmp_path: Path) -> Iterator[str]:
    """Debian's redis-server, for one test."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.fail("redis-server is not here: apt-get install redis-server")
    port = free_port()
    process = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
    )
    url = f"redis://127.0.0.1:{port}/0"
    try:
        with redis.Redis.from_url(url) as client:
            wait_until(lambda: _answers(client), "redis-server answers")
        yield url
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_debians_postgres_and_redis_and_an_s3_that_refuses_what_r2_refuses(
    request: pytest.FixtureRequest,
    debian_postgres: PostgresServer,
    debian_redis: str,
    make_service: MakeService,
    scheme: str,
) -> None:
    s3: S3Server = request.getfixturevalue("s3" if scheme == "http" else "s3_over_tls")
    with fresh_database(debian_postgres) as dsn:
        assert query(dsn, "SHOW server_version_num")[0][0].startswith("15")
        install(dsn)
        witness = Witness(dsn, TABLES)
        service = make_service(
            dsn,
            "s3://archive/debian",
            debian_redis,
            archive={"endpoint_url": s3.endpoint_url},
            environment=s3.environment,
        ).start()
        service.wait_until_caught_up(dsn)
        acknowledgements = acknowledgement_sampler(dsn, lambda: tail_of(s3.objects()))
        with acknowledgements, cache_sampler(debian_redis) as cache, Workload(dsn, seed=15):
            for _ in range(3):
                time.sleep(3)
                service.kill()
                service.start()
        service.wait_until_caught_up(dsn)
        assert service.stop() == 0
        verdict = check(dsn, s3.objects(), debian_redis, witness.transactions())
        assert verdict.findings + acknowledgements.findings + cache.findings == [], str(verdict)
        assert [v for v in s3.violations if "within a second" not in v] == []
