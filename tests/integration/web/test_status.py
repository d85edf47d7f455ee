"""What `/status.json` tells of a real service: every field of its contract, and numbers that are true."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cdc_process import Service, install, query, wait_until
from tests.support.http import get

SHAPE = {
    "version": {},
    "now": {},
    "started_at": {},
    "ready": {},
    "reasons": {},
    "warnings": {},
    "phase": {"name", "since"},
    "source": {"system_identifier", "timeline", "database", "server_version", "slot", "publication"},
    "mishap": {},
    "positions": {"server", "received", "archived", "acknowledged", "cached"},
    "lag": {"received_bytes", "archive_bytes", "archive_s", "acknowledged_bytes", "cache_bytes", "cache_s"},
    "slots": {},
    "postgres": {"wal_bytes_per_s", "oldest_transaction", "disk"},
    "archive": {
        *("url", "seq", "lag_s", "segments", "bytes", "puts", "last_put_at", "open_gap", "gaps", "forks"),
        *("cost_per_month_usd", "verified", "drill"),
    },
    "cache": {"state", "lsn"},
    "history": {
        *("interval_s", "at", "changes_per_s", "redis_p50_ms", "redis_p99_ms", "archive_p50_ms", "archive_p99_ms"),
        *("retained_bytes", "limit_bytes"),
    },
    "events": {},
}


@pytest.fixture
def service(database: str, redis_url: str, tmp_path: Path) -> Iterator[Service]:
    install(database)
    with Service(tmp_path, dsn=database, archive_url=f"file://{tmp_path}/archive", cache_url=redis_url) as started:
        yield started


def status(service: Service) -> dict[str, Any]:
    answer = get(service, "/status.json")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("application/json")
    found: dict[str, Any] = json.loads(answer.body)
    return found


def say(database: str, rows: int) -> None:
    query(
        database,
        "INSERT INTO turns (domain, channel, session_hash, role, content)"
        " SELECT 'd', 'c', 's', 'user', 'x' FROM generate_series(1, %s)",
        rows,
    )


def test_every_field_of_the_contract_is_there_before_and_while_it_streams(service: Service, database: str) -> None:
    early = status(service)
    service.wait_until_caught_up(database)
    late = status(service)
    for found in (early, late):
        assert found.keys() == SHAPE.keys()
        for name, fields in SHAPE.items():
            if fields and found[name] is not None:
                assert found[name].keys() >= fields, name
    assert late["ready"]
    assert late["reasons"] == []
    assert late["mishap"] is None
    assert late["source"]["publication"] == "cdc"


@pytest.mark.wide
def test_every_slot_of_the_server_is_there_with_its_forecast(service: Service, database: str) -> None:
    service.wait_until_caught_up(database)
    wait_until(lambda: any(slot["ours"] for slot in status(service)["slots"]), "our slot seen")
    found = status(service)
    (ours,) = [slot for slot in found["slots"] if slot["ours"]]
    assert (ours["slot"], ours["lost"]) == ("cdc", False)
    assert ours["forecast"].keys() >= {"seconds", "at", "limit", "rate_bytes_per_s", "reason"}
    assert found["postgres"]["wal_bytes_per_s"] is not None
    assert found["positions"]["server"] is not None
    assert found["lag"]["received_bytes"] >= 0
    wait_until(lambda: status(service)["history"]["retained_bytes"][-1:] not in ([], [None]), "retained WAL is charted")


def test_the_archives_numbers_are_those_of_its_segments(service: Service, database: str, tmp_path: Path) -> None:
    service.wait_until_caught_up(database)
    say(database, 3)
    service.wait_until_caught_up(database)
    segments = sorted((tmp_path / "archive" / "log").iterdir())
    archive = status(service)["archive"]
    assert archive["seq"] == int(segments[-1].name.split(".")[0])
    assert archive["segments"] == len(segments)
    assert archive["bytes"] == sum(segment.stat().st_size for segment in segments)
    assert archive["puts"] >= archive["segments"]
    assert (archive["gaps"], archive["forks"], archive["open_gap"]) == (0, 0, False)
    assert archive["verified"] is None
    assert archive["last_put_at"].endswith("Z")


def test_positions_meet_and_lags_end_at_nothing(service: Service, database: str) -> None:
    service.wait_until_caught_up(database)
    say(database, 50)
    service.wait_until_caught_up(database)
    wait_until(lambda: status(service)["lag"]["archive_bytes"] == 0, "no lag of the archive", timeout_s=90)
    found = status(service)
    assert found["lag"]["archive_s"] == 0
    assert found["lag"]["cache_s"] == 0
    assert found["positions"]["archived"] == found["positions"]["acknowledged"]
    assert found["cache"] == {"state": "live", "lsn": found["positions"]["cached"]}


def test_the_history_shows_rate_and_latencies_of_what_was_committed(service: Service, database: str) -> None:
    service.wait_until_caught_up(database)
    wait_until(lambda: len(status(service)["history"]["at"]) >= 1, "a first point")
    say(database, 100)
    service.wait_until_caught_up(database)
    before = len(status(service)["history"]["at"])
    wait_until(lambda: len(status(service)["history"]["at"]) > before, "a point after the commit")
    history = status(service)["history"]
    assert {len(values) for values in history.values() if isinstance(values, list)} == {len(history["at"])}
    assert sum(history["changes_per_s"]) * history["interval_s"] == pytest.approx(100, rel=0.1)
    for sink in ("redis", "archive"):
        measured = [
            (p50, p99)
            for p50, p99 in zip(history[f"{sink}_p50_ms"], history[f"{sink}_p99_ms"], strict=True)
            if p50 is not None
        ]
        assert measured
        assert all(0 < p50 <= p99 < 60_000 for p50, p99 in measured)
    assert history["at"] == sorted(history["at"])
