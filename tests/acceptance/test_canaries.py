"""Secrets and rows stay where they belong: in no log line, error, page, metric, key, header or list of processes.

One run of the whole product with a canary in every secret and in every column, through its failures too; then all that
it has printed, logged, served and stored is searched. tests/unit/harness/test_canaries.py shows that the search can
find.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import run as run_process
from typing import Any
from urllib.parse import quote

import psutil
import psycopg
import pytest
import redis
import zstandard
from psycopg import sql

from cdc.embedded import PostgresServer
from tests.acceptance.conftest import MakeService
from tests.conftest import MakePostgres, MakeValkey
from tests.support.canaries import leaks
from tests.support.cdc_process import Service, install, query, run_cdc, wait_until
from tests.support.http import get
from tests.support.s3 import S3Server

SECRETS = {
    "the password of postgres.dsn": "canary-dsn-5f3a9c",
    "the administrator's password": "canary-admin-77b1e0",
    "a wrong password": "canary-wrong-c41d55",
    "the password of cache.url": "canary-redis-0d9e2b",
    "http.token": "canary-token-a8840f",
    "http.ping_url": "canary-ping-31c6d7",
    "the key for S3": "canary-s3-e2f7b4",
}
COLUMNS = (
    *("domain", "channel", "session", "role", "content", "state", "metadata"),
    *("type", "key", "aggregate", "payload"),
)
ROWS = {f"column {name}": f"canary-row-{name}-9e1b" for name in COLUMNS}
ALL = {**SECRETS, **ROWS}

INSERT_TURN = (
    "INSERT INTO turns (domain, channel, session_hash, role, content, state, metadata) "
    "VALUES (%s, %s, %s, %s, %s, %s, %s)"
)
INSERT_EVENT = "INSERT INTO outbox (event_type, idempotency_key, aggregate_id, payload) VALUES (%s, %s, %s, %s)"

PING_URL = f"http://127.0.0.1:9/{SECRETS['http.ping_url']}"

# A bug that quotes what it choked on: in the archive's sink, for the bug's own sake.
BUG = """
import sys
from cdc.archive.writer.sink import ArchiveSink
from cdc.cli import main

async def write(self, batch):
    rows = [change.new for transaction in batch for change in transaction.changes]
    raise ValueError(f"cannot make sense of {rows}") from KeyError(str(rows))

ArchiveSink.write = write
sys.exit(main())
"""


@dataclass
class Product:
    """Everything of one run, and all that it was heard to say."""

    admin_dsn: str
    server: PostgresServer
    service: Service
    s3: S3Server
    directory: Path
    said: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {**self.s3.environment, "AWS_SECRET_ACCESS_KEY": SECRETS["the key for S3"]}

    def cdc(
        self, *arguments: str, expected: int | None = None, given: Mapping[str, str] | None = None, **environment: str
    ) -> str:
        """A command; what it says is kept."""
        ours = {"CDC_CONFIG": str(self.service.config_file), **self.environment}
        done = run_cdc(*arguments, environment={**ours, **(given or {}), **environment})
        said = done.stdout + done.stderr
        self.said[f"cdc {' '.join(arguments)} ({len(self.said)})"] = said
        assert expected is None or done.returncode == expected, said
        return said

    def hear_the_log(self, service: Service) -> None:
        self.said[service.log_file.name] = service.log_file.read_text(errors="replace")


@pytest.fixture
def product(
    make_postgres: MakePostgres, make_valkey: MakeValkey, make_service: MakeService, tmp_path: Path
) -> Iterator[Product]:
    server, valkey = make_postgres(), make_valkey()
    admin_dsn = server.dsn()
    install(admin_dsn)
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("ALTER ROLE cdc_replicator PASSWORD {}").format(SECRETS["the password of postgres.dsn"]))
    _ask_for_passwords(server)
    with redis.Redis.from_url(valkey.url) as client:
        client.config_set("requirepass", SECRETS["the password of cache.url"])
    with S3Server(tls=True) as s3:
        service = make_service(
            admin_dsn,
            "s3://archive/canaries",
            valkey.url.replace("redis://", f"redis://:{SECRETS['the password of cache.url']}@"),
            dsn=_dsn(server, SECRETS["the password of postgres.dsn"]),
            archive={"endpoint_url": s3.endpoint_url},
            http={"token": SECRETS["http.token"], "ping_url": PING_URL, "ping_interval_s": 0.5},
            environment={**s3.environment, "AWS_SECRET_ACCESS_KEY": SECRETS["the key for S3"]},
        )
        yield Product(admin_dsn, server, service, s3, tmp_path)


def _dsn(server: PostgresServer, password: str, user: str = "cdc_replicator") -> str:
    return f"postgresql://{user}:{quote(password)}@127.0.0.1:{server.port}/postgres"


def _ask_for_passwords(server: PostgresServer) -> None:
    rules = server.data_dir / "pg_hba.conf"
    rules.write_text(f"host all cdc_replicator all scram-sha-256\n{rules.read_text()}")
    query(server.dsn(), "SELECT pg_reload_conf()")


def _write_rows(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as application:
        row = {name.removeprefix("column "): canary for name, canary in ROWS.items()}
        turn = [row["domain"], row["channel"], row["session"], row["role"], row["content"]]
        application.execute(
            INSERT_TURN, [*turn, *(json.dumps({row[name]: row[name]}) for name in ("state", "metadata"))]
        )
        application.execute("UPDATE turns SET content = content || content WHERE role = %s", [row["role"]])
        event = [row["type"], row["key"], row["aggregate"], json.dumps({row["payload"]: row["payload"]})]
        application.execute(INSERT_EVENT, event)
        application.execute("DELETE FROM turns WHERE id % 2 = 0")


@pytest.mark.wide
@pytest.mark.timeout(600)
def test_no_secret_and_no_row_leaves_its_place(product: Product, make_service: MakeService) -> None:
    service = product.service
    product.cdc("init", CDC_ADMIN_DSN=_dsn(product.server, SECRETS["the administrator's password"], "postgres"))
    _write_rows(product.admin_dsn)
    with service:
        service.wait_until_caught_up(product.admin_dsn)
        for _ in range(3):
            _write_rows_again(product.admin_dsn)
        service.wait_until_caught_up(product.admin_dsn)
        wait_until(lambda: bool(service.events("ping")), "the ping was tried")
        _hear_http(product)
        _hear_processes(product)
        _hear_commands(product)
        _hear_failures(product)
        service.wait_until_caught_up(product.admin_dsn)
    product.hear_the_log(service)
    _hear_refusals(product, make_service)
    _hear_a_bug(product)
    _hear_a_restore_that_fails(product)
    _hear_a_damaged_archive(product)
    _hear_what_is_stored(product)
    assert leaks(product.said, ALL) == []
    # The rows did come by, and would have been found: the cache's keys and the segments' bodies are their place.
    assert leaks({"segments": "\n".join(_bodies(product.s3.objects()))}, ROWS) != []


def _write_rows_again(dsn: str) -> None:
    query(dsn, "UPDATE turns SET redaction_version = redaction_version + 1")


def _hear_http(product: Product) -> None:
    for path in ("/status.json", "/metrics", "/readyz", "/livez", "/"):
        for token in (SECRETS["http.token"], None, SECRETS["a wrong password"]):
            answer = get(product.service, path, token=token)
            product.said[f"{path} ({len(product.said)})"] = f"{answer.status} {answer.headers}\n{answer.body}"


def _hear_processes(product: Product) -> None:
    """What anybody on the machine may see of us: `ps`. And what children would inherit."""
    ours = psutil.Process(product.service.process.pid)
    product.said["ps"] = "\n".join(" ".join(process.cmdline()) for process in [ours, *ours.children(recursive=True)])
    assert "cdc" in product.said["ps"]
    for child in ours.children(recursive=True):
        product.said[f"environ of {child.pid}"] = str(child.environ())
    seen = query(product.admin_dsn, "SELECT application_name, query FROM pg_stat_activity WHERE usename LIKE 'cdc%%'")
    product.said["pg_stat_activity"] = str(seen)


def _hear_commands(product: Product) -> None:
    for command in (["status"], ["doctor"], ["slots"], ["archive", "ls"], ["archive", "verify"]):
        product.cdc(*command)
        product.cdc(*command, "--json")
    product.cdc("archive", "verify", "--against", product.admin_dsn, expected=0)


def _hear_failures(product: Product) -> None:
    """What passes by itself, while the service runs."""
    product.s3.fail(503, times=2)
    with psycopg.connect(product.admin_dsn, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL")
    _write_rows_again(product.admin_dsn)
    time.sleep(1)


def _hear_refusals(product: Product, make_service: MakeService) -> None:
    wrong = SECRETS["a wrong password"]
    refused: list[dict[str, str]] = [
        {"CDC_POSTGRES__DSN": _dsn(product.server, wrong)},
        {"CDC_POSTGRES__DSN": f"host=127.0.0.1 password={wrong} {wrong}"},
        {"CDC_POSTGRES__DSN": wrong},
        {"CDC_POSTGRES__DSN": f"postgresql://cdc:{wrong}@db.example.net/chat"},
        {"CDC_CACHE__URL": str(product.service.cache_url).replace(SECRETS["the password of cache.url"], wrong)},
        {"CDC_CACHE__URL": f"redis://:{wrong}@127.0.0.1:notaport/"},
        {"CDC_ARCHIVE__URL": f"s3://id:{wrong}@bucket"},
        {"CDC_ARCHIVE__ENDPOINT_URL": f"https://id:{wrong}@127.0.0.1:9"},
        {"AWS_ACCESS_KEY_ID": "AKIAOTHER", "AWS_SECRET_ACCESS_KEY": wrong},
        {"CDC_HTTP__TOKEN": wrong[:9]},
        {"CDC_HTTP__PING_URL": f"ftp://{wrong}"},
    ]
    for number, environment in enumerate(refused):
        for command in ("status", "doctor", "slots") if number < 2 else ("status",):
            product.cdc(command, given=environment)
    for environment in (refused[0], refused[4], refused[8]):
        service = make_service(
            product.admin_dsn,
            "s3://archive/refused",
            name=f"refused-{len(product.said)}",
            dsn=_dsn(product.server, wrong),
            archive={"endpoint_url": product.s3.endpoint_url},
            environment={**product.environment, **environment},
        )
        assert service.run_to_end() == 2
        product.hear_the_log(service)
    product.cdc("init", CDC_ADMIN_DSN=f"host=127.0.0.1 password={wrong} {wrong}", expected=2)
    product.cdc("init", CDC_ADMIN_DSN=_dsn(product.server, wrong))


def _hear_a_bug(product: Product) -> None:
    _write_rows_again(product.admin_dsn)
    done = run_process(
        [sys.executable, "-c", BUG, "run", "--config", str(product.service.config_file)],
        env={**product.service.environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    product.said["a bug"] = done.stdout + done.stderr
    assert done.returncode not in (0, 2)
    assert "ValueError: (message withheld" in done.stderr


def _hear_a_restore_that_fails(product: Product) -> None:
    """Rows that the target's own rules refuse: Postgres quotes them in its DETAIL."""
    query(product.admin_dsn, "CREATE DATABASE narrow")
    target = product.server.dsn(database="narrow")
    install(target)
    query(target, "ALTER TABLE turns ADD CHECK (length(content) < 3)")
    said = product.cdc("restore", "--into", target, expected=2)
    assert "23514" in said


def _hear_a_damaged_archive(product: Product) -> None:
    directory = product.directory / "damaged"
    objects = product.s3.objects()
    for key, body in objects.items():
        path = directory / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    last = max(
        path for path in (directory / "canaries" / "log").iterdir() if b"canary-row" in _plain(path.read_bytes())
    )
    whole = last.read_bytes()
    url = (directory / "canaries").as_uri()
    for damaged in (whole[: len(whole) // 2], whole[:-20] + bytes(20), _with_wrong_types(whole)):
        last.write_bytes(damaged)
        product.cdc("archive", "verify", CDC_ARCHIVE__URL=url, expected=1)
        query(product.admin_dsn, f"CREATE DATABASE damaged_{len(product.said)}")
        target = product.server.dsn(database=f"damaged_{len(product.said)}")
        product.cdc("restore", "--into", target, CDC_ARCHIVE__URL=url)


def _with_wrong_types(segment: bytes) -> bytes:
    """Its first line as it was, and in the others the canary where a number belongs."""
    head, *lines = _plain(segment).splitlines(keepends=True)
    wrong = b"".join(
        line.replace(b'"redaction_version":', b'"redaction_version":"canary-row-content-9e1b","x":') for line in lines
    )
    return zstandard.compress(head) + zstandard.compress(wrong)


def _plain(segment: bytes) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(segment, read_across_frames=True) as reader:
        return bytes(reader.read())


def _hear_what_is_stored(product: Product) -> None:
    """Keys and headers hold no row, and nothing of a bucket holds a secret."""
    objects = product.s3.objects()
    product.said["keys"] = "\n".join(objects)
    product.said["headers"] = "\n".join(_headers(objects))
    product.said["requests"] = "\n".join(f"{request.key} {request.headers}" for request in product.s3.requests)
    assert leaks({"objects": "\n".join(_bodies(objects))}, SECRETS) == []


def _headers(objects: Mapping[str, bytes]) -> Iterator[str]:
    for key, body in objects.items():
        yield _plain(body).decode().partition("\n")[0] if key.endswith(".zst") else body.decode(errors="replace")


def _bodies(objects: Mapping[str, bytes]) -> Iterator[str]:
    for key, body in objects.items():
        yield _plain(body).decode() if key.endswith(".zst") else body.decode(errors="replace")


@pytest.mark.parametrize("place", ["log", "metrics", "key", "traceback"])
def test_a_leak_that_is_planted_is_found(place: str) -> None:
    planted: dict[str, Any] = {
        "log": json.dumps({"event": "cached", "session": ROWS["column session"]}),
        "metrics": f'cdc_changes_total{{session="{ROWS["column session"]}"}} 1',
        "key": f"archive/log/{quote(ROWS['column session'])}.ndjson.zst",
        "traceback": f"ValueError: cannot make sense of [{ROWS['column session'].encode()!r}]",
    }
    assert leaks({place: planted[place]}, ALL) != []
