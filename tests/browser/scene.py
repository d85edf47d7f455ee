"""What a page is shown: real servers, a real `cdc run` at an address that stays, and an application that writes."""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg

from cdc.embedded import PostgresServer, ValkeyServer
from cdc.embedded.process import free_port
from tests.support.cdc_process import Service, install
from tests.support.s3 import S3Server
from tests.support.servers import TEST_SETTINGS

TURNS = (
    "INSERT INTO turns (domain, channel, session_hash, role, content)"
    " SELECT 'support', 'web', 's' || n, 'user', 'hello' FROM generate_series(1, 5) AS n"
)


class Scene:
    """Made by `scene()`."""

    def __init__(self, directory: Path, dsn: str, redis_url: str, s3: S3Server, token: str | None) -> None:
        self.dsn, self.s3 = dsn, s3
        listen = f"127.0.0.1:{free_port()}"
        self.address = f"http://{listen}"
        self.service = Service(
            directory,
            dsn=dsn.replace("postgres@", "cdc_replicator@"),
            archive_url="s3://archive/chat",
            cache_url=redis_url,
            archive={"endpoint_url": s3.endpoint_url, "put_timeout_s": 2.0},
            environment=s3.environment,
            http={"listen": listen, "archive_lag_s": 3} | ({"token": token} if token else {}),
            monitor={"interval_s": 0.5},
        )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The application writes meanwhile."""
        over = threading.Event()

        def write() -> None:
            with psycopg.connect(self.dsn, autocommit=True) as connection:
                while not over.wait(0.05):
                    connection.execute(TURNS)

        writer = threading.Thread(target=write, name="application")
        writer.start()
        try:
            yield
        finally:
            over.set()
            writer.join()


@contextmanager
def scene(token: str | None = None) -> Iterator[Scene]:
    """Everything is started, and has caught up; everything ends with the `with`."""
    with ExitStack() as running:
        home = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="waltier-browser-", dir="/tmp")))
        home.chmod(0o755)
        settings = {**TEST_SETTINGS, "max_slot_wal_keep_size": "128MB"}
        postgres = running.enter_context(PostgresServer(home / "postgres", settings=settings))
        valkey = running.enter_context(ValkeyServer(home / "valkey"))
        s3 = running.enter_context(S3Server())
        install(postgres.dsn())
        made = Scene(home / "service", postgres.dsn(), valkey.url, s3, token)
        running.enter_context(made.service).wait_until_caught_up(made.dsn)
        yield made
