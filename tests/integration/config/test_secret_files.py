"""The service with its secrets where systemd puts them, and nothing in cdc.toml or the environment."""

from pathlib import Path

import psycopg
import pytest

from tests.support.cdc_process import Service, install, run_cdc
from tests.support.s3 import S3Server


@pytest.fixture
def credentials(server_dir: Path) -> Path:
    """A directory that others may enter, unlike tmp_path."""
    directory = server_dir / "credentials"
    directory.mkdir(exist_ok=True)
    return directory


def write(directory: Path, name: str, text: str, mode: int) -> Path:
    file = directory / name
    file.unlink(missing_ok=True)
    file.write_text(f"{text}\n")
    file.chmod(mode)
    return file


def test_the_service_runs_on_credentials_of_systemd(database: str, tmp_path: Path, credentials: Path) -> None:
    install(database)
    dsn = psycopg.conninfo.make_conninfo(database, user="cdc_replicator")
    write(credentials, "postgres.dsn", dsn, 0o400)
    with S3Server(tls=True) as s3:
        keys = f"[default]\naws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}"
        write(credentials, "aws", keys, 0o400)
        environment = {
            **{name: value for name, value in s3.environment.items() if "ACCESS_KEY" not in name},
            "CREDENTIALS_DIRECTORY": str(credentials),
            "CDC_HTTP__TOKEN_FILE": str(write(credentials, "token", "0123456789abcdef", 0o644)),
        }
        service = Service(
            tmp_path,
            dsn="postgresql://nobody@127.0.0.1:1/nowhere",
            archive_url="s3://archive/credentials",
            archive={"endpoint_url": s3.endpoint_url},
            environment=environment,
        )
        with service:
            service.wait_until_archived(database)
            assert [line["file"] for line in service.events("secret_exposed")] == [str(credentials / "token")]
            assert service.stop() == 0
        assert any(request.method == "PUT" and request.status == 200 for request in s3.requests)
        twice = run_cdc(
            "run", "--config", str(service.config_file), environment={**environment, "AWS_ACCESS_KEY_ID": "AKIAOTHER"}
        )
    assert twice.returncode == 2
    assert "given twice, by AWS_ACCESS_KEY_ID and by credential aws" in twice.stderr
