"""Who may ask the service over HTTP, and what it answers to those who may not; asked of a real `cdc run`."""

import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from cdc.embedded.process import free_port
from tests.support.cdc_process import Service, install, run_cdc, wait_until
from tests.support.http import Answer, address_of, ask, get

TOKEN = "canary-token-0123456789abcdef"
PATHS = ("/livez", "/readyz", "/metrics", "/status.json")

MakeService = Callable[..., Service]


@pytest.fixture
def make(database: str, tmp_path: Path) -> Iterator[MakeService]:
    """Services on one database and one archive, without a cache; not started yet."""
    install(database)
    made: list[Service] = []

    def make(name: str = "service", **http: object) -> Service:
        dsn, archive_url = database.replace("postgres@", "cdc_replicator@"), f"file://{tmp_path}/archive"
        made.append(Service(tmp_path, dsn=dsn, archive_url=archive_url, name=name, http=http))
        return made[-1]

    yield make
    for service in made:
        if service.running:
            service.kill()


def test_a_service_that_replicates_is_alive_and_ready(make: MakeService, database: str) -> None:
    with make() as service:
        service.wait_until_archived(database)
        assert (get(service, "/livez").status, get(service, "/livez").body) == (200, "ok\n")
        ready = get(service, "/readyz")
        assert (ready.status, ready.body.splitlines()[0]) == (200, "ok")
        assert all(line.startswith("warning: ") for line in ready.body.splitlines()[1:])
        metrics = get(service, "/metrics")
        assert metrics.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "cdc_acknowledged_lsn" in metrics.body


def test_head_is_answered_and_everything_else_refused_in_plain_text(make: MakeService) -> None:
    with make() as service:
        address = address_of(service)
        for path in PATHS:
            head = ask(address, path, method="HEAD")
            assert (head.status, head.body) == (get(service, path).status, "")
            for method in ("POST", "PUT", "DELETE", "OPTIONS"):
                assert ask(address, path, method=method).status == 405
        missing = get(service, "/nothing/here")
        assert (missing.status, missing.headers["Content-Type"]) == (404, "text/plain; charset=utf-8")


@pytest.mark.parametrize("path", [*PATHS, "/nothing"])
def test_a_browser_may_neither_keep_frame_nor_sniff_an_answer(make: MakeService, path: str) -> None:
    with make() as service:
        headers = get(service, path).headers
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "aiohttp" not in headers["Server"].lower()


def test_a_name_that_is_not_ours_is_not_answered_so_that_no_web_page_reads_us(make: MakeService) -> None:
    with make() as service:
        address = address_of(service)
        port = urlsplit(address).port
        for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "LOCALHOST:1"):
            assert ask(address, "/status.json", headers={"Host": host}).status == 200, host
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil:80", ""):
            for path in PATHS:
                assert ask(address, path, headers={"Host": host}).status == 421, host


def test_a_prober_that_sends_no_host_is_no_browser_and_is_answered(make: MakeService) -> None:
    with make() as service:
        parts = urlsplit(address_of(service))
        with socket.create_connection((parts.hostname, parts.port or 0), timeout=10) as connection:
            connection.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            assert b" 200 OK\r\n" in connection.recv(1000)


# the page -------------------------------------------------------------------------------------------------------------


def test_the_page_and_all_it_loads_is_served_by_us_and_holds_no_data(make: MakeService, database: str) -> None:
    with make(token=TOKEN) as service:
        service.wait_until_archived(database)
        address = address_of(service)
        page = ask(address, "/")
        assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        loaded = re.findall(r'(?:src|href)="(/page/[^"]+)"', page.body)
        assert {name.rpartition(".")[2] for name in loaded} == {"css", "js", "svg"}
        for path in loaded:
            answer = ask(address, path)
            assert answer.status == 200, path
            assert database not in answer.body
        assert ask(address, "/page/dashboard.js").headers["Content-Type"] == "text/javascript; charset=utf-8"
        for outside in ("/page/", "/page/index.html", "/page/../server.py", "/page/%2e%2e/server.py", "/page/.env"):
            assert ask(address, outside).status == 401, outside


# the token ------------------------------------------------------------------------------------------------------------


def listening_everywhere(service: Service, path: str, **headers: str) -> Answer:
    address = address_of(service).replace("0.0.0.0", "127.0.0.1")
    return ask(address, path, headers={name.replace("_", "-"): value for name, value in headers.items()})


def test_an_address_that_others_reach_is_refused_without_a_token_and_the_hint_can_be_pasted(make: MakeService) -> None:
    service = make(listen="0.0.0.0:0")
    assert service.run_to_end() == 2
    said = service.log_tail()
    assert "http.token is needed, because http.listen is not a loopback address" in said
    assert "export CDC_HTTP__TOKEN=$(openssl rand -hex 32)" in said


def test_with_a_token_only_the_bare_verdicts_are_for_everyone(make: MakeService, database: str) -> None:
    with make(listen="0.0.0.0:0", token=TOKEN) as service:
        service.wait_until_archived(database)
        assert listening_everywhere(service, "/livez").body == "ok\n"
        assert listening_everywhere(service, "/readyz", Host="any.name.example").body == "ok\n"
        for path in ("/metrics", "/status.json", "/nothing"):
            refused = listening_everywhere(service, path)
            assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
            for wrong in (TOKEN, "Bearer", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer \xff"):
                assert listening_everywhere(service, path, Authorization=wrong).status == 401, wrong
        for right in (f"Bearer {TOKEN}", f"bearer  {TOKEN}"):
            assert listening_everywhere(service, "/status.json", Authorization=right).status == 200


def test_why_it_is_not_ready_is_told_only_to_who_has_the_token(make: MakeService, database: str) -> None:
    with make("first") as first:
        first.wait_until_archived(database)
        second = make("second", token=TOKEN).start()
        second.wait_for_event("standing_by", timeout_s=90)
        assert get(second, "/readyz").body == "not ready\n"
        assert "standing by" in get(second, "/readyz", token=TOKEN).body


def test_guesses_are_logged_once_a_minute_and_never_the_token(make: MakeService) -> None:
    with make(token=TOKEN) as service:
        for guess in range(20):
            assert get(service, "/status.json", token=f"guess-{guess}").status == 401
        (denied,) = service.events("http_denied")
        assert (denied["requests"], denied["path"], denied["peer"]) == (1, "/status.json", "127.0.0.1")
        assert get(service, "/status.json", token=TOKEN).status == 200
        assert "guess" not in service.log_file.read_text()


def test_the_token_is_in_no_log_no_answer_and_no_list_of_processes(make: MakeService, database: str) -> None:
    ping = "http://127.0.0.1:1/" + TOKEN
    with make(token=TOKEN, ping_url=ping, ping_interval_s=0.2) as service:
        service.wait_until_archived(database)
        service.wait_for_event("ping", more_than=1)
        answers = [get(service, path, token=token).body for path in PATHS for token in (None, TOKEN)]
        processes = " ".join(" ".join(process.cmdline()) for process in psutil.process_iter())
        service.stop()
    assert TOKEN not in "".join(answers) + processes + service.log_file.read_text()


@pytest.mark.parametrize(
    "wrong", [{"CDC_HTTP__TOKEN": "canary secret"}, {"CDC_HTTP__PING_URL": "http://example.net/canary"}]
)
def test_a_token_or_ping_address_that_is_wrong_is_not_repeated(wrong: Mapping[str, str], make: MakeService) -> None:
    done = run_cdc("run", "--config", str(make().config_file), environment=wrong)
    assert done.returncode == 2
    assert next(iter(wrong)) in done.stderr
    assert "canary" not in done.stdout + done.stderr


def test_whoever_holds_connections_open_takes_neither_files_nor_answers_from_others(make: MakeService) -> None:
    with make() as service:
        parts = urlsplit(address_of(service))
        with ExitStack() as held:
            for _ in range(300):
                connection = socket.create_connection((parts.hostname, parts.port or 0), timeout=10)
                held.enter_context(connection).sendall(b"GET /livez HTT")
            for _ in range(5):
                assert get(service, "/livez").status == 200
            wait_until(lambda: psutil.Process(service.process.pid).num_fds() < 150, "the oldest are closed")


# two on one machine ---------------------------------------------------------------------------------------------------


def test_who_stands_by_takes_the_address_over_with_the_slot(make: MakeService, database: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    first, second = make("first", listen=address), make("second", listen=address)
    with first:
        first.wait_until_archived(database)
        with second:
            second.wait_for_event("http_address_in_use")
            second.wait_for_event("standing_by")
            pid_before = first.process.pid
            assert get(first, "/readyz").status == 200
            first.kill()
            second.wait_for_event("listening")
            second.wait_for_event("streaming")
            wait_until(lambda: get(second, "/readyz").status == 200, "ready at the same address")
            assert address_of(second) == f"http://{address}"
            assert second.process.pid != pid_before


def test_an_address_of_another_machine_ends_the_service_with_a_line_to_paste(make: MakeService) -> None:
    service = make(listen="192.0.2.1:9187", token=TOKEN)
    assert service.run_to_end() == 2
    assert 'listen = "127.0.0.1:9187"' in service.failure()["hint"]
