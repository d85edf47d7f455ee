"""What `/metrics` of a real service says of its state, its lags and its work."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeValkey
from tests.support.cdc_process import Service, install, query, wait_until
from tests.support.http import get
from tests.support.s3 import S3Server


@pytest.fixture
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def service(database: str, s3: S3Server, make_valkey: MakeValkey, tmp_path: Path) -> Iterator[Service]:
    install(database)
    archive = {"endpoint_url": s3.endpoint_url}
    with Service(
        tmp_path,
        dsn=database,
        archive_url="s3://archive/chat",
        cache_url=make_valkey().url,
        environment=s3.environment,
        archive=archive,
    ) as started:
        yield started


def value(service: Service, series: str) -> float | None:
    """One series as it is printed, `cdc_phase{phase="streaming"}`; None if there is none."""
    found = re.search(rf"^{re.escape(series)} (.+)$", get(service, "/metrics").body, re.MULTILINE)
    return None if found is None else float(found[1])


def say(database: str) -> None:
    query(
        database,
        "INSERT INTO turns (domain, channel, session_hash, role, content) VALUES ('d', 'c', 's', 'user', 'x')",
    )


def test_states_lags_errors_and_changes_are_those_of_the_service(service: Service, database: str, s3: S3Server) -> None:
    service.wait_until_caught_up(database)
    assert value(service, "cdc_ready") == 1
    assert value(service, "cdc_alive") == 1
    assert value(service, 'cdc_phase{phase="streaming"}') == 1
    assert value(service, 'cdc_phase{phase="waiting"}') == 0
    assert value(service, 'cdc_cache_state{state="live"}') == 1
    assert value(service, 'cdc_cache_state{state="away"}') == 0
    assert 'compiled="' in get(service, "/metrics").body
    wait_until(lambda: (value(service, "cdc_server_lsn") or 0) > 0, "the server's position")
    assert value(service, 'cdc_errors_total{kind="Unavailable",room="archive"}') == 0
    s3.fail(503, methods="PUT GET HEAD")
    say(database)
    wait_until(lambda: (value(service, 'cdc_lag_seconds{sink="archive"}') or 0) > 1, "a lag of the archive")
    assert value(service, 'cdc_lag_bytes{position="archive"}') != 0
    assert (value(service, 'cdc_errors_total{kind="Unavailable",room="archive"}') or 0) >= 1
    assert value(service, 'cdc_queue_bytes{sink="archive"}') is not None
    s3.heal()
    wait_until(lambda: value(service, 'cdc_lag_seconds{sink="archive"}') == 0, "no lag of the archive")
    wait_until(lambda: value(service, 'cdc_lag_seconds{sink="cache"}') == 0, "no lag of the cache")
    assert value(service, 'cdc_table_changes_total{operation="create",table="public.turns"}') == 1
    assert (value(service, "process_start_time_seconds") or 0) > 0


def test_without_a_cache_nothing_is_said_of_one(database: str, archive_dir: str, tmp_path: Path) -> None:
    install(database)
    with Service(tmp_path, dsn=database, archive_url=archive_dir) as service:
        service.wait_until_archived(database)
        assert "cdc_cache_state{" not in get(service, "/metrics").body
        assert value(service, 'cdc_lag_seconds{sink="cache"}') is None
        assert value(service, 'cdc_lag_seconds{sink="archive"}') == 0
