"""The short version of `make faults`, for every run of the suite."""

from tests.acceptance.conftest import MakeService
from tests.faults.kills import kill_under_load
from tests.support.s3 import S3Server


def test_a_few_kills_under_load_lose_and_double_nothing(
    installed: str, redis_url: str, s3: S3Server, make_service: MakeService
) -> None:
    service = make_service(
        installed,
        "s3://archive/kills",
        redis_url,
        archive={"endpoint_url": s3.endpoint_url},
        environment=s3.environment,
    )
    run = kill_under_load(installed, service, s3, redis_url, kills=4, seconds=200, seed=4)
    assert run.verdict.findings == [], str(run)
    assert run.kills == 4
    assert s3.most_puts_in_flight <= 2  # one of a dead process's, one of the living one's
