"""`--services` is taken at its word: what was asked for and is not there fails the run, and never skips it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MakePostgres, MakeValkey
from tests.support.s3 import S3Server

ROOT = Path(__file__).parents[3]


def _pytest(services: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "CDC_TEST_"))}
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--services={services}"]
    return subprocess.run(
        [*argv, "tests/integration/harness/test_servers.py"],
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_docker_without_an_engine_is_a_failure(tmp_path: Path) -> None:
    run = _pytest("docker", PATH=str(tmp_path))
    assert run.returncode not in (0, 5)
    assert "docker does not run" in run.stdout + run.stderr


def test_docker_whose_engine_does_not_answer_is_a_failure(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text(
        "#!/bin/sh\n[ \"$1\" = compose ] && exit 0\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n"
    )
    docker.chmod(0o755)
    run = _pytest("docker", PATH=f"{tmp_path}:/usr/bin:/bin")
    assert run.returncode not in (0, 5)
    assert "Cannot connect to the Docker daemon" in run.stdout + run.stderr


@pytest.mark.wide
def test_external_takes_its_servers_from_the_environment(make_postgres: MakePostgres, make_valkey: MakeValkey) -> None:
    with S3Server(tls=True) as s3:
        run = _pytest(
            "external",
            CDC_TEST_POSTGRES_DSN=make_postgres().dsn(),
            CDC_TEST_REDIS_URL=make_valkey().url,
            CDC_TEST_S3_URL="s3://archive/tests",
            CDC_TEST_S3_ENDPOINT=s3.endpoint_url,
            **s3.environment,
        )
        assert run.returncode == 0, run.stdout
        assert "5 passed" in run.stdout
        assert s3.violations == []


def test_external_without_addresses_is_a_failure() -> None:
    run = _pytest("external")
    assert run.returncode == 1
    assert "needs CDC_TEST_POSTGRES_DSN" in run.stdout
    assert "skipped" not in run.stdout
