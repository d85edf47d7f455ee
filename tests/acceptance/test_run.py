"""`cdc run` from start to end: what was there before, what comes live, and what is there when it stops."""

from tests.acceptance.conftest import MakeService, settled_and_equal
from tests.faults.checker import TABLES, acknowledgement_sampler, cache_sampler
from tests.faults.objects import directory_tail, read_archive, read_directory
from tests.faults.witness import Witness
from tests.faults.workload import Workload
from tests.support.cdc_process import query, wait_until


def test_a_run_under_load_leaves_archive_and_cache_equal_to_postgres(
    installed: str, redis_url: str, archive_dir: str, make_service: MakeService
) -> None:
    witness = Witness(installed, TABLES)
    service = make_service(installed, archive_dir, redis_url).start()
    service.wait_until_caught_up(installed)
    acknowledgements = acknowledgement_sampler(installed, lambda: directory_tail(archive_dir))
    with acknowledgements, cache_sampler(redis_url) as cache:
        Workload(installed, seed=1).run_for(8)
        service.wait_until_caught_up(installed)
        wait_until(lambda: min(acknowledgements.looks, cache.looks) > 5, "both samplers have looked")
    verdict = settled_and_equal(service, installed, archive_dir, redis_url, witness, acknowledgements, cache)
    assert verdict.figures["transactions"] > 50


def test_rows_that_were_there_before_the_first_start_are_backfilled(
    installed: str, redis_url: str, archive_dir: str, make_service: MakeService
) -> None:
    witness = Witness(installed, TABLES)
    Workload(installed, seed=2, rate=200, large_every_s=1).run_for(2)
    service = make_service(installed, archive_dir, redis_url).start()
    service.wait_until_caught_up(installed)
    before = read_archive(read_directory(archive_dir))
    assert before.kinds["snapshot"] == 1
    assert len(before.base["public.turns"]) == query(installed, "SELECT count(*) FROM turns")[0][0] > 1000
    Workload(installed, seed=3).run_for(2)
    settled_and_equal(service, installed, archive_dir, redis_url, witness)
