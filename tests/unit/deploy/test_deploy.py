"""What deploy/ holds fits the code it deploys, as far as that can be seen without a Docker engine."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from cdc.cli import main
from cdc.config import load
from tests.support.servers import COMPOSE_S3_CREDENTIALS

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return found


def test_the_compose_file_gives_the_service_a_configuration_that_loads(
    services: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # where no cdc.toml lies
    settings = load(environ=services["cdc"]["environment"])
    assert settings.archive.url == "s3://archive/chat"
    assert settings.postgres.allow_insecure


def test_the_compose_file_has_the_services_that_the_tests_start(services: dict[str, dict[str, Any]]) -> None:
    for name, port in {"postgres": "5432", "redis": "6379", "s3": "9000"}.items():
        assert services[name]["ports"] == [f"127.0.0.1::{port}"]
        assert services[name]["healthcheck"]["test"][0] == "CMD"
    assert "wal_level=logical" in services["postgres"]["command"]


def test_the_tests_know_the_keys_of_the_compose_files_bucket(services: dict[str, dict[str, Any]]) -> None:
    environment = services["cdc"]["environment"]
    assert {name: environment[name] for name in COMPOSE_S3_CREDENTIALS} == COMPOSE_S3_CREDENTIALS


def test_only_the_loopback_interface_is_published(services: dict[str, dict[str, Any]]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_redis_may_evict_rows_but_never_the_checkpoint(services: dict[str, dict[str, Any]]) -> None:
    command = services["redis"]["command"]
    assert command[command.index("--maxmemory-policy") + 1].startswith("volatile-")


def test_the_service_waits_for_what_it_needs(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        for dependency in service.get("depends_on", {}):
            assert dependency in services
    assert services["cdc"]["depends_on"]["init"] == {"condition": "service_completed_successfully"}


def test_the_image_is_made_of_files_that_exist_and_are_not_ignored() -> None:
    copied = re.findall(r"^COPY (?!--from)(\S+) ", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    kept = re.findall(r"^!(\S+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert sorted(copied) == sorted(kept)
    assert all((ROOT / path).exists() for path in copied)


def test_the_image_does_not_run_as_root() -> None:
    users = re.findall(r"^USER (\d+):(\d+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert users
    assert all(int(uid) > 0 and int(gid) > 0 for uid, gid in users)


UNITS = sorted((DEPLOY / "systemd").glob("cdc-*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=[unit.stem for unit in UNITS])
def test_a_timer_starts_a_command_that_there_is(unit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = re.findall(r"^ExecStart=/\S+/cdc (.+)$", unit.read_text(), re.MULTILINE)
    assert main([*command.split(), "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(option in printed for option in re.findall(r"--[a-z]+", command.partition("cdc.toml")[2]))
    timer = unit.with_suffix(".timer").read_text()
    assert re.search(r"^OnCalendar=\w+$", timer, re.MULTILINE)
    assert "WantedBy=timers.target" in timer
