"""The whole way of an encrypted archive: written by a service without a key, restored by the one in the safe."""

import json

import pytest
import redis
import zstandard

from cdc.archive.format.encryption import generate_key
from cdc.postgres.install import read_sql
from tests.acceptance.conftest import MakeService
from tests.faults.checker import TABLES, Verdict, check_cache, read_table, unsettled_sessions
from tests.faults.objects import read_directory
from tests.faults.witness import Witness
from tests.faults.workload import Workload
from tests.support.cdc_process import query, run_cdc
from tests.support.servers import PostgresAddress, fresh_database

pytestmark = pytest.mark.xdist_group("restore")


def table(dsn: str, name: str) -> list[tuple[str]]:
    return query(dsn, f"SELECT t::text FROM {name} AS t ORDER BY 1")


def told(body: bytes) -> bytes:
    """An object's bytes, and what `zstdcat` makes of them."""
    with zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True) as reader:
        text: bytes = reader.read()
    return body + text


def test_the_key_in_the_safe_alone_restores_what_a_service_without_a_key_wrote(
    installed: str, postgres_server: PostgresAddress, archive_dir: str, make_service: MakeService
) -> None:
    (box, _), (safe, private) = generate_key(), generate_key()
    service = make_service(installed, archive_dir, archive={"recipients": [box, safe]})
    Workload(installed, seed=41, rate=100, large_every_s=1).run_for(1.2)
    service.start()
    service.wait_until_archived(installed)
    Workload(installed, seed=42, rate=100, large_every_s=1).run_for(1.5)
    service.archive_and_stop(installed)

    found = query(installed, "SELECT DISTINCT content FROM turns WHERE length(content) > 9")
    contents = {row[0].encode() for row in found}
    stored = [told(body) for key, body in read_directory(archive_dir).items() if key.startswith(("log/", "base/"))]
    assert len(contents) > 20
    assert not any(content in body for body in stored for content in contents)

    config = ("--config", str(service.config_file))
    proof = run_cdc("archive", "verify", "--json", *config, check=True)
    assert json.loads(proof.stdout)["sealed"] > 3
    key = {"CDC_ARCHIVE__IDENTITY": private}
    with fresh_database(postgres_server) as target:
        for file in read_sql()[:2]:
            query(target, file.text)
        for arguments in (("archive", "cat"), ("restore", "--into", target)):
            refused = run_cdc(*arguments, *config)
            assert refused.returncode == 2
            assert "are encrypted, and no key that opens them is configured" in refused.stderr
        run_cdc("restore", "--into", target, *config, environment=key, check=True)
        assert [name for name in TABLES if table(installed, name) != table(target, name)] == []
        assert len(table(target, "turns")) > 100
    proof = run_cdc("archive", "verify", "--json", *config, environment=key, check=True)
    assert json.loads(proof.stdout)["sealed"] == 0


def test_a_cache_that_was_away_catches_up_from_the_encrypted_archive(
    installed: str, redis_url: str, archive_dir: str, make_service: MakeService
) -> None:
    (box, private), (safe, _) = generate_key(), generate_key()
    encrypted = {"recipients": [box, safe]}
    both = make_service(
        installed, archive_dir, redis_url, archive=encrypted, environment={"CDC_ARCHIVE__IDENTITY": private}
    )
    witness = Witness(installed, TABLES)
    with both:
        Workload(installed, seed=43, rate=100).run_for(0.5)
        both.wait_until_caught_up(installed)
    with make_service(installed, archive_dir, archive=encrypted, name="without_cache") as without_cache:
        Workload(installed, seed=44, rate=100).run_for(1.0)
        without_cache.wait_until_archived(installed)
    with both:
        both.wait_until_caught_up(installed)
    assert [event["state"] for event in both.events("cache_state")].count("catching_up") == 1
    with redis.Redis.from_url(redis_url) as client:
        verdict = Verdict()
        check_cache(client, read_table(installed, TABLES[0]), unsettled_sessions(witness.transactions()), verdict)
    assert verdict.findings == []
