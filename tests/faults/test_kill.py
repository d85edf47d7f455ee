"""`make faults`, first: SIGKILL under load; nothing lost, doubled, reordered, and the cache equal to Postgres.

CDC_FAULTS_KILLS    how often (default 20); 0 leaves the whole budget to the nemesis
CDC_FAULTS_SECONDS  at most a fifth of it (default 600); the kills done by then are the run
CDC_FAULTS_SEED     of the dice; printed, so that a run can be repeated as far as threads and processes allow
"""

import os
import random
from pathlib import Path

import pytest

from tests.faults.kills import kill_under_load
from tests.support.cdc_process import Service, install
from tests.support.s3 import S3Server


@pytest.mark.faults
@pytest.mark.timeout(0)
def test_killed_again_and_again_nothing_is_lost_doubled_or_reordered(
    database: str, redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kills = int(os.environ.get("CDC_FAULTS_KILLS", "20"))
    seconds = float(os.environ.get("CDC_FAULTS_SECONDS", "600")) * 0.2
    if not kills:
        pytest.skip("CDC_FAULTS_KILLS=0")
    seed = int(os.environ.get("CDC_FAULTS_SEED", str(random.randrange(1_000_000))))
    with capsys.disabled():
        print(f"\nCDC_FAULTS_SEED={seed} CDC_FAULTS_KILLS={kills} CDC_FAULTS_SECONDS={seconds:.0f}")
    install(database)
    with S3Server() as s3:
        service = Service(
            tmp_path,
            dsn=database.replace("postgres@", "cdc_replicator@"),
            archive_url="s3://archive/faults",
            archive={"endpoint_url": s3.endpoint_url},
            cache_url=redis_url,
            environment=s3.environment,
        )
        try:
            run = kill_under_load(database, service, s3, redis_url, kills=kills, seconds=seconds, seed=seed)
        finally:
            service.__exit__(None, None, None)
        with capsys.disabled():
            print(run)
        assert s3.most_puts_in_flight <= 2  # one of the dead process's, one of the living one's
        assert s3.violations == [] or all("within a second" in violation for violation in s3.violations)
    assert run.verdict.findings == []
    assert run.kills > 0
