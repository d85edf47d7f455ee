"""`cdc run` on the majors between Debian's Postgres (15) and the embedded one (18), from wheels with their programs.

The witness needs test_decoding, which the wheels lack: here the truth is what the tables hold, what the slot was told,
and what the cache served.
"""

import time

import pytest

from tests.acceptance.conftest import MakeService
from tests.acceptance.test_restore import checksum
from tests.conftest import MakePostgres
from tests.faults.checker import TABLES, acknowledgement_sampler, cache_sampler, check
from tests.faults.objects import read_archive, tail_of
from tests.faults.workload import Workload
from tests.support.cdc_process import install, query
from tests.support.s3 import S3Server
from tests.support.servers import POSTGRES_WHEELS, fresh_database, postgres_bin_of_wheel

pytestmark = pytest.mark.wide

KILLS = 3


@pytest.mark.parametrize("version", sorted(POSTGRES_WHEELS))
def test_killed_under_load_both_sinks_hold_what_the_tables_hold_and_it_is_restored(
    make_postgres: MakePostgres, redis_url: str, s3: S3Server, make_service: MakeService, version: int
) -> None:
    postgres = make_postgres(bin_dir=postgres_bin_of_wheel(version))
    assert postgres.version == version
    dsn = postgres.dsn()
    install(dsn)
    service = make_service(
        dsn, "s3://archive/chat", redis_url, archive={"endpoint_url": s3.endpoint_url}, environment=s3.environment
    ).start()
    service.wait_until_caught_up(dsn)
    acknowledgements = acknowledgement_sampler(dsn, lambda: tail_of(s3.objects()))
    with acknowledgements, cache_sampler(redis_url) as cache, Workload(dsn, seed=version):
        for _ in range(KILLS):
            time.sleep(2)
            service.kill()
            service.start()
    service.wait_until_caught_up(dsn)
    objects = s3.objects()
    verdict = check(dsn, objects, redis_url, read_archive(objects).transactions)
    assert verdict.findings + acknowledgements.findings + cache.findings == [], str(verdict)
    assert verdict.figures["transactions"] > 100
    service.command("doctor")
    service.command("archive", "verify", "--full", "--against", dsn)
    with fresh_database(postgres) as into:
        install(into)
        service.command("restore", "--into", into)
        assert [checksum(into, table) for table in TABLES] == [checksum(dsn, table) for table in TABLES]
    assert service.stop() == 0
    service.command("teardown", "--yes")
    assert query(dsn, "SELECT slot_name FROM pg_replication_slots") == []
