"""The archive on S3, over HTTP and over TLS, on a server that refuses what R2 refuses."""

import time

import pytest

from tests.acceptance.conftest import MakeService
from tests.faults.checker import TABLES, check
from tests.faults.witness import Witness
from tests.faults.workload import Workload
from tests.support.cdc_process import query
from tests.support.s3 import S3Server


@pytest.mark.parametrize("scheme", [pytest.param("http", marks=pytest.mark.wide), "https"])
def test_r2_has_nothing_to_refuse_and_one_put_is_in_flight(
    request: pytest.FixtureRequest, installed: str, redis_url: str, make_service: MakeService, scheme: str
) -> None:
    s3: S3Server = request.getfixturevalue("s3" if scheme == "http" else "s3_over_tls")
    s3.delay(before_s=0.1)
    witness = Witness(installed, TABLES)
    service = make_service(
        installed,
        "s3://archive/a/prefix",
        redis_url,
        archive={"endpoint_url": s3.endpoint_url, "linger_s": 1.0},
        environment=s3.environment,
    ).start()
    service.wait_until_caught_up(installed)
    s3.forget()
    started_s = time.monotonic()
    Workload(installed, seed=12, large_every_s=1000).run_for(6)
    service.wait_until_caught_up(installed)
    seconds = time.monotonic() - started_s
    assert service.stop() == 0
    verdict = check(installed, s3.objects(), redis_url, witness.transactions())
    assert verdict.findings == [], str(verdict)
    assert [v for v in s3.violations if "within a second" not in v] == []
    assert s3.most_puts_in_flight == 1
    segments = s3.seen("PUT", "log/", 200)
    assert all(put.headers.get("If-None-Match") == "*" and "Content-MD5" in put.headers for put in segments)
    assert 0 < len(segments) <= seconds / 1.0 + 3  # one a linger, the first at once, the last on SIGTERM
    assert s3.seen("GET", "log/") == []  # a writer in its stride has nothing to ask
    assert "list-type" not in str([r.key for r in s3.seen("GET")])


@pytest.mark.wide
def test_an_idle_service_puts_next_to_nothing(installed: str, s3: S3Server, make_service: MakeService) -> None:
    service = make_service(
        installed, "s3://archive/idle", archive={"endpoint_url": s3.endpoint_url}, environment=s3.environment
    ).start()
    service.wait_until_caught_up(installed)
    query(installed, "CREATE TABLE elsewhere (at timestamptz)")
    s3.forget()
    cpu_s = service.cpu_s
    for _ in range(8):
        query(installed, "INSERT INTO elsewhere VALUES (now())")
        time.sleep(1)
    assert len(s3.seen("PUT")) <= 1
    assert service.cpu_s - cpu_s < 2
    assert service.stop() == 0
