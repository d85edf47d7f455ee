"""Transactions above the segment limit: in parts, counted once, memory bounded, and whole whatever happens."""

import pytest
import redis

from tests.acceptance.conftest import MakeService, settled_and_equal
from tests.faults.checker import TABLES, Sampler, replay
from tests.faults.history import compare
from tests.faults.objects import log_objects, read_archive, read_directory
from tests.faults.witness import Witness
from tests.support.cdc_process import query, wait_until

MIB = 1024 * 1024


@pytest.mark.wide
def test_a_transaction_of_100_000_rows_comes_in_parts_and_counts_once(
    installed: str, redis_url: str, archive_dir: str, make_service: MakeService
) -> None:
    rows, sizes = 100_000, [0]
    witness = Witness(installed, TABLES)
    service = make_service(
        installed, archive_dir, redis_url, archive={"segment_bytes": MIB, "queue_bytes": 2 * MIB}
    ).start()
    service.wait_until_caught_up(installed)
    statement = (
        "INSERT INTO turns (domain, channel, session_hash, role, content)"
        f" SELECT 'support', 'bulk', 'bulk-' || (n % 2000), 'user', 'row ' || n FROM generate_series(1, {rows}) AS n"
    )
    with Sampler(lambda: sizes.append(service.rss_bytes) or [], 0.1, "memory"):  # type: ignore[func-returns-value]
        query(installed, statement)
        service.wait_until_caught_up(installed, timeout_s=150)
    assert service.stop() == 0  # it archives no barrier any more that one of the two would not show
    archive = read_archive(read_directory(archive_dir))
    assert archive.faults == []
    assert archive.kinds["part"] > 5
    assert len(sizes) > 10
    assert max(sizes) < 256 * MIB
    [large] = [t for t in archive.transactions if len(t.changes) == rows]
    assert len(replay(archive)["public.turns"]) == rows
    assert large.changes[0].op == "c"
    assert not compare([t for t in witness.transactions() if t.end_lsn > archive.consistent_lsn], archive.transactions)
    with redis.Redis.from_url(redis_url) as client:
        assert len(list(client.scan_iter(match="turn:*", count=5000))) == rows


def test_a_kill_in_the_middle_of_a_large_transaction_leaves_it_once(
    installed: str, redis_url: str, archive_dir: str, make_service: MakeService
) -> None:
    witness = Witness(installed, TABLES)
    service = make_service(
        installed, archive_dir, redis_url, archive={"segment_bytes": 256 * 1024, "queue_bytes": 2 * MIB}
    ).start()
    service.wait_until_caught_up(installed)
    before = len(log_objects(read_directory(archive_dir)))
    query(
        installed,
        "INSERT INTO turns (domain, channel, session_hash, role, content)"
        " SELECT 'support', 'bulk', 'bulk-' || (n % 300), 'user', 'row ' || n FROM generate_series(1, 15000) AS n",
    )
    wait_until(lambda: len(log_objects(read_directory(archive_dir))) > before + 2, "some parts", poll_s=0.001)
    service.kill()
    service.start()
    settled_and_equal(service, installed, archive_dir, redis_url, witness)
    assert read_archive(read_directory(archive_dir)).kinds["part"] > 3
