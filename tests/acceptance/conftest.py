"""What acceptance tests start from: a database with `sql/` installed, and services that end with their test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from psycopg import conninfo

from tests.support.cdc_process import Service, install
from tests.support.s3 import S3Server

MakeService = Callable[..., Service]


def as_replicator(admin_dsn: str) -> str:
    """The dsn of the role that the service is given, with no more rights than it needs."""
    return conninfo.make_conninfo(admin_dsn, user="cdc_replicator")


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
