"""The service's machine has a wrong clock; nobody else has."""

import pytest
import redis

from tests.acceptance.conftest import MakeService, settled_and_equal
from tests.faults.checker import TABLES
from tests.faults.witness import Witness
from tests.faults.workload import Workload
from tests.support.clock import FAKETIME, shifted_environment

pytestmark = pytest.mark.wide

# Longer than the 45 minutes of a session's hot state.
HOURS = "3h"


@pytest.mark.parametrize("offset", [f"+{HOURS}", f"-{HOURS}"])
def test_a_wrong_clock_neither_shortens_a_life_nor_leaves_a_row_out(
    installed: str, redis_url: str, archive_dir: str, make_service: MakeService, offset: str
) -> None:
    if not FAKETIME.exists():
        pytest.skip("needs libfaketime (Debian: faketime)")
    witness = Witness(installed, TABLES)
    Workload(installed, seed=30, rate=200).run_for(1)
    service = make_service(installed, archive_dir, redis_url, environment=shifted_environment(offset)).start()
    service.wait_until_caught_up(installed)
    Workload(installed, seed=31).run_for(1)
    settled_and_equal(service, installed, archive_dir, redis_url, witness)
    with redis.Redis.from_url(redis_url) as client:
        lives_s = [client.ttl(key) for key in client.scan_iter(match="session:*:state")]
    assert min(lives_s) > 40 * 60
    assert max(lives_s) <= 45 * 60
