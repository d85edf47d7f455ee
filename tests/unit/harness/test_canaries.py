"""The search for canaries finds what it looks for, however it is spelt."""

import base64
import json
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.canaries import leaks, secrets_of
from tests.support.cdc_process import Service

CANARY = "canary/4711 of a row"


@pytest.mark.parametrize(
    "text",
    [
        CANARY,
        f"DETAIL:  Failing row contains (7, {CANARY}).",
        json.dumps({"event": "died", "exception": f"ValueError: {CANARY}"}),
        quote(CANARY, safe=""),
        CANARY.encode().hex(),
        *(base64.b64encode(f"{'x' * shift}{CANARY} and more".encode()).decode() for shift in range(6)),
        base64.b64encode(f"user:{CANARY}".encode()).decode(),
    ],
)
def test_a_planted_leak_is_found_however_it_is_spelt(text: str) -> None:
    (found,) = {
        leak.partition(" is in ")[0] for leak in leaks({"nothing": "all is well", "a log": text}, {"row": CANARY})
    }
    assert found == "row"


def test_nothing_is_found_where_nothing_is() -> None:
    assert leaks({"a log": '{"event": "segment_written", "seq": 41}'}, {"row": CANARY}) == []


def test_the_secrets_of_a_service_are_known() -> None:
    sections = {
        "postgres": {"dsn": "postgresql://cdc:dsn%20password@localhost/chat"},
        "cache": {"url": "redis://:redis-password@localhost"},
        "http": {"token": "token-4711-token", "ping_url": "https://example.net/ping-4711"},
    }
    found = secrets_of(sections, {"AWS_SECRET_ACCESS_KEY": "s3-secret-key"})
    assert sorted(found.values()) == [
        "/ping-4711", "dsn password", "redis-password", "s3-secret-key", "token-4711-token",
    ]  # fmt: skip
    assert secrets_of({"postgres": {"dsn": "host=localhost password=key-value-form"}}, {}) == {
        "postgres.dsn": "key-value-form"
    }


def test_a_service_that_logs_a_secret_fails_whatever_test_it_serves(tmp_path: Path) -> None:
    service = Service(tmp_path, dsn="postgresql://cdc:hunter2-hunter2@localhost/chat", archive_url="file:///a")
    service.log_file.write_text('{"event": "interrupted", "detail": "hunter2-hunter2"}\n')
    with pytest.raises(pytest.fail.Exception, match=r"postgres\.dsn is in the log"):
        service.__exit__(None, None, None)
    service.log_file.write_text('{"event": "interrupted"}\n')
    service.__exit__(None, None, None)
