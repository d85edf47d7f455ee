"""What systemd hears of a real `cdc run`, on a real datagram socket."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.cdc_process import Service, install, wait_until
from tests.support.s3 import S3Server


class Ear:
    """Listens at $NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def __enter__(self) -> "Ear":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def listen(self) -> list[str]:
        """Everything so far."""
        while True:
            try:
                self.heard.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return self.heard

    def hears(self, message: str) -> bool:
        return message in self.listen()

    def hears_again(self, message: str, *, within_s: float) -> bool:
        """Whether it comes in this time, not counting what came before."""
        known = self.listen().count(message)
        time.sleep(within_s)
        return self.listen().count(message) > known


MakeService = Callable[..., Service]


@pytest.fixture
def ear(request: pytest.FixtureRequest, server_dir: Path) -> Iterator[Ear]:
    name = f"notify-{uuid4().hex[:8]}"
    abstract = getattr(request, "param", "path") == "abstract"
    with Ear(f"@waltier-{name}" if abstract else str(server_dir / name)) as listening:
        yield listening


@pytest.fixture
def make(ear: Ear, database: str, tmp_path: Path) -> Iterator[MakeService]:
    """Starts services that speak to `ear`, with a watchdog of two seconds."""
    install(database)
    with ExitStack() as running:

        def make(name: str = "service", **options: object) -> Service:
            spoken = {"NOTIFY_SOCKET": ear.address, "WATCHDOG_USEC": "2000000"}
            given = {"archive_url": f"file://{tmp_path}/archive", **options}
            given["environment"] = spoken | (given.get("environment") or {})  # type: ignore[operator]
            return running.enter_context(Service(tmp_path, dsn=database, name=name, **given))  # type: ignore[arg-type]

        yield make


@contextmanager
def paused(service: Service) -> Iterator[None]:
    service.pause()
    try:
        yield
    finally:
        service.resume()


@pytest.mark.parametrize("ear", ["path", "abstract"], indirect=True)
def test_from_the_start_to_the_end(make: MakeService, ear: Ear) -> None:
    service = make()
    wait_until(lambda: ear.hears("READY=1"), "READY=1")
    assert service.events("streaming")
    wait_until(lambda: ear.hears("STATUS=streaming, ready"), "STATUS=")
    assert service.stop() == 0
    heard = ear.listen()
    assert heard.count("READY=1") == heard.count("STOPPING=1") == 1
    assert heard.index("READY=1") < heard.index("STOPPING=1")
    assert heard[0] == "EXTEND_TIMEOUT_USEC=30000000"
    assert "EXTEND_TIMEOUT_USEC=30000000" not in heard[heard.index("READY=1") :]


def test_the_watchdog_is_fed_while_the_loop_turns_and_not_while_it_is_held(make: MakeService, ear: Ear) -> None:
    service = make()
    wait_until(lambda: ear.hears("READY=1"), "READY=1")
    assert ear.hears_again("WATCHDOG=1", within_s=1.0)
    with paused(service):
        ear.listen()
        assert not ear.hears_again("WATCHDOG=1", within_s=2.0)
    wait_until(lambda: ear.hears_again("WATCHDOG=1", within_s=0.5), "fed again", timeout_s=10)


def test_one_that_stands_by_is_up_and_says_what_it_does(
    database: str, ear: Ear, make: MakeService, tmp_path: Path
) -> None:
    with Service(tmp_path, dsn=database, archive_url=f"file://{tmp_path}/archive", name="first") as first:
        first.wait_until_archived(database)
        make("second")
        wait_until(lambda: ear.hears("READY=1"), "READY=1")
        wait_until(lambda: any("standing by" in message for message in ear.listen()), "STATUS= says so")


@pytest.mark.wide
def test_one_that_cannot_begin_is_not_up_and_asks_for_more_time(ear: Ear, make: MakeService) -> None:
    with S3Server() as s3:
        s3.fail(503, methods="PUT GET HEAD")
        archive = {"endpoint_url": s3.endpoint_url, "put_timeout_s": 2.0}
        make(archive_url="s3://archive/start", archive=archive, environment=s3.environment)
        wait_until(lambda: any("interrupted" in message for message in ear.listen()), "STATUS= says why")
        assert ear.hears_again("EXTEND_TIMEOUT_USEC=30000000", within_s=1.5)
        assert not ear.hears("READY=1")
        s3.heal()
        wait_until(lambda: ear.hears("READY=1"), "READY=1")
