"""What acceptance tests start from: a database with `sql/` installed, and services that end with their test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from psycopg import conninfo

from tests.faults.checker import Sampler, Verdict, check
from tests.faults.objects import read_directory
from tests.faults.witness import Witness
from tests.support.cdc_process import Service, install
from tests.support.s3 import S3Server

MakeService = Callable[..., Service]


def as_replicator(admin_dsn: str) -> str:
    """The dsn of the role that the service is given, with no more rights than it needs."""
    return conninfo.make_conninfo(admin_dsn, user="cdc_replicator")


def on_bucket(s3: S3Server, **archive: object) -> dict[str, Any]:
    """Options of a service whose archive is in this bucket."""
    return {"archive": {"endpoint_url": s3.endpoint_url, **archive}, "environment": s3.environment}


def settled_and_equal(
    service: Service, dsn: str, archive: str | S3Server, cache_url: str | None, witness: Witness, *seen: Sampler
) -> Verdict:
    """The service catches up and stops; then archive and cache are what was committed, and nobody saw anything else.

    `archive` is a `file://` address or the server of the bucket; `seen` are samplers that watched meanwhile.
    """
    service.wait_until_caught_up(dsn)
    assert service.stop() == 0, service.log_tail()
    objects = read_directory(archive) if isinstance(archive, str) else archive.objects()
    verdict = check(dsn, objects, cache_url, witness.transactions())
    assert verdict.findings + [one for sampler in seen for one in sampler.findings] == [], str(verdict)
    return verdict


@pytest.fixture
def installed(database: str) -> str:
    """The superuser's dsn of a fresh database after `cdc init`."""
    install(database)
    return database


@pytest.fixture
def make_service(tmp_path: Path) -> Iterator[MakeService]:
    """Services that are killed at the end of the test; see tests/support/cdc_process.py. Not started yet."""
    with ExitStack() as running:

        def make(admin_dsn: str, archive_url: str, cache_url: str | None = None, **options: Any) -> Service:
            name = options.pop("name", "service")
            dsn = options.pop("dsn", None) or as_replicator(admin_dsn)
            service = Service(
                tmp_path / name, dsn=dsn, archive_url=archive_url, cache_url=cache_url, name=name, **options
            )
            running.callback(service.__exit__, None, None, None)
            return service

        yield make


@pytest.fixture
def s3() -> Iterator[S3Server]:
    """A bucket named `archive` over HTTP, on a server with R2's refusals."""
    with S3Server() as server:
        yield server


@pytest.fixture
def s3_over_tls() -> Iterator[S3Server]:
    with S3Server(tls=True) as server:
        yield server
