"""What the service says over HTTP, asked of a real `cdc run` by a client that knows nothing of it."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service import Service, install

REPLICATOR = "cdc_replicator@"


def get(service: Service, path: str, token: str | None = None) -> tuple[int, str]:
    """Status and body of one GET."""
    address = service.wait_for_event("listening")["address"]
    request = urllib.request.Request(address + path, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
def service(database: str, tmp_path: Path) -> Iterator[Service]:
    install(database)
    dsn = database.replace("postgres@", REPLICATOR)
    with Service(tmp_path, dsn=dsn, archive_url=f"file://{tmp_path}/archive") as started:
        yield started


def status(service: Service) -> dict[str, Any]:
    code, body = get(service, "/status.json")
    assert code == 200
    parsed = json.loads(body)
    assert isinstance(parsed, dict)
    return parsed


def test_a_service_that_replicates_is_alive_and_ready_and_says_whose_changes_it_reads(
    service: Service, database: str
) -> None:
    service.wait_until_archived(database)
    assert get(service, "/livez") == (200, "ok\n")
    assert get(service, "/readyz") == (200, "ok\n")
    found = status(service)
    assert found["phase"]["name"] == "streaming"
    assert found["source"]["slot"] == "cdc"
    assert found["positions"]["archived"] == found["positions"]["acknowledged"]
    assert "streaming" in [event["event"] for event in found["events"]]
    code, metrics = get(service, "/metrics")
    assert code == 200
    assert "cdc_acknowledged_lsn" in metrics
