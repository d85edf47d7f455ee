"""What a real service says over HTTP of slots that are not its own."""

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.conftest import MakePostgres
from tests.support.cdc_process import Service, install, wait_until
from tests.support.http import get


@pytest.fixture
def dsn(make_postgres: MakePostgres) -> str:
    """A server of its own, because its slots are everybody's."""
    server = make_postgres(settings={"max_slot_wal_keep_size": "64MB"})
    install(server.dsn())
    return server.dsn()


@pytest.fixture
def service(dsn: str, tmp_path: Path) -> Iterator[Service]:
    directory = tmp_path / "archive"
    environment = {"CDC_MONITOR__INTERVAL_S": "0.2"}
    with Service(tmp_path, dsn=dsn, archive_url=f"file://{directory}", environment=environment) as started:
        yield started


def test_a_strangers_slot_that_nobody_drains_is_told_everywhere_and_forgotten_when_dropped(
    service: Service, dsn: str
) -> None:
    service.wait_until_archived(dsn)
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("SELECT pg_create_physical_replication_slot('stranger', true)")
        wait_until(lambda: "slot stranger, not ours, is read by nobody" in get(service, "/readyz").body, "a warning")
        assert get(service, "/readyz").status == 200
        found = json.loads(get(service, "/status.json").body)
        assert {slot["slot"]: slot["ours"] for slot in found["slots"]} == {"cdc": True, "stranger": False}
        assert [warning["hint"].startswith("SELECT pg_drop") for warning in found["warnings"]] == [True]
        assert found["postgres"]["wal_bytes_per_s"] is not None
        assert found["positions"]["server"] is not None
        assert found["history"]["limit_bytes"] == 64 * 1024 * 1024
        metrics = get(service, "/metrics").body
        assert 'cdc_slot_active{slot="stranger"} 0.0' in metrics
        assert 'cdc_slot_active{slot="cdc"} 1.0' in metrics
        admin.execute("SELECT pg_drop_replication_slot('stranger')")
        wait_until(lambda: "stranger" not in get(service, "/readyz").body, "the warning gone")
        assert 'slot="stranger"' not in get(service, "/metrics").body
