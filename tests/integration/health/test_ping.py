"""The dead man's switch against a real HTTP server: it hears from us while we are ready, and silence otherwise."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cdc.embedded import PostgresServer
from tests.conftest import MakePostgres
from tests.support.cdc_process import Service, install, wait_until

SECRET = "canary-check-4711"


class Listener(ThreadingHTTPServer):
    """Counts the calls, and answers each with `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.calls: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{SECRET}"


class _Handler(BaseHTTPRequestHandler):
    server: Listener

    def do_GET(self) -> None:
        self.server.calls.append(self.path)
        self.send_response(self.server.status)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server(make_postgres: MakePostgres) -> PostgresServer:
    server = make_postgres()
    install(server.dsn())
    return server


@pytest.fixture
def service(server: PostgresServer, tmp_path: Path, listener: Listener) -> Iterator[Service]:
    http = {"ping_url": listener.url, "ping_interval_s": 0.1}
    with Service(tmp_path, dsn=server.dsn(), archive_url=f"file://{tmp_path}/archive", http=http) as started:
        yield started


def outcomes(service: Service) -> list[str]:
    return [str(event["outcome"]) for event in service.events("ping")]


def test_it_calls_while_ready_and_falls_silent_while_it_does_not_replicate(
    service: Service, listener: Listener, server: PostgresServer
) -> None:
    wait_until(lambda: len(listener.calls) > 5, "called again and again")
    assert set(listener.calls) == {f"/{SECRET}"}
    server.stop()
    wait_until(lambda: outcomes(service)[-1] == "withheld: not ready", "withheld")
    heard = len(listener.calls)
    time.sleep(1)
    assert len(listener.calls) == heard
    server.start()
    wait_until(lambda: len(listener.calls) > heard, "called again")


def test_a_failure_is_logged_once_for_each_change_and_the_address_never(service: Service, listener: Listener) -> None:
    wait_until(lambda: len(listener.calls) > 2, "called")
    for status in (500, 302, 200):
        listener.status = status
        heard = len(listener.calls)
        wait_until(lambda heard=heard: len(listener.calls) > heard + 3, "called some times more")  # type: ignore[misc]
    listener.shutdown()
    listener.server_close()
    wait_until(lambda: any(outcome.startswith("failed: ") for outcome in outcomes(service)), "a failure logged")
    said = [outcome for outcome in outcomes(service) if not outcome.startswith("withheld")]
    assert said[:4] == ["accepted", "status 500", "status 302", "accepted"]
    assert len(said) == 5
    assert "/elsewhere" not in listener.calls
    assert SECRET not in service.log_file.read_text()
