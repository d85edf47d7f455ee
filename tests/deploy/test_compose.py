"""The compose stack, really started: `pytest --services=docker tests/deploy`. Without a Docker engine it is skipped.

Where no registry of images is in reach, `stand_ins` builds the base images by hand.
"""

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator

import psycopg
import pytest
from pytest_docker.plugin import DockerComposeExecutor, get_docker_services

from tests.support.cdc_process import wait_until
from tests.support.servers import COMPOSE_FILE

READY_URL = "http://127.0.0.1:9187/readyz"
# Of the file, for a first try.
HEADERS = {"Authorization": "Bearer token-for-a-first-try-only"}


class Stack:
    """The stack of deploy/compose.yaml, under a name of its own."""

    def __init__(self, executor: DockerComposeExecutor, postgres_port: int) -> None:
        self._executor = executor
        self._dsn = f"postgresql://postgres@127.0.0.1:{postgres_port}/postgres"
        self._container = self("ps -q cdc").strip()

    def __call__(self, command: str) -> str:
        """A command of compose; what it printed. Fails as the command does."""
        printed: bytes | str = self._executor.execute(command)
        return printed.decode() if isinstance(printed, bytes) else printed

    def inspect(self, template: str) -> str:
        """Of the service's container, also when it has stopped."""
        command = ["docker", "inspect", "--format", template, self._container]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def write(self, turns: int) -> None:
        self.sql(
            "INSERT INTO turns (domain, channel, session_hash, role, content)"
            f" SELECT 'chat', 'web', 'session-' || n % 7, 'user', 'turn ' || n FROM generate_series(1, {turns}) n"
        )

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(urllib.request.Request(READY_URL, headers=HEADERS), timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@pytest.fixture
def stack(services: str, docker_compose_command: str) -> Iterator[Stack]:
    if services != "docker":
        pytest.skip("starts containers: --services=docker")
    name = f"waltier-test-{os.getpid()}"
    of_the_file = (docker_compose_command, str(COMPOSE_FILE), name)
    with get_docker_services(*of_the_file, ["up --build --detach"], ["down --volumes"]) as started:
        stack = Stack(DockerComposeExecutor(*of_the_file), started.port_for("postgres", 5432))
        wait_until(stack.is_ready, "the service is ready", poll_s=0.5)
        yield stack


@pytest.mark.timeout(600)  # containers start, and may have to be built
def test_it_archives_and_warms_survives_a_kill_and_leaves_nothing_behind(stack: Stack) -> None:
    """1. it runs without rights; 2. rows come through; 3. killed, it comes back; 4. stopped; 5. taken away."""
    limits = stack.inspect("{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}")
    assert limits == "65532:65532 true [ALL]"  # 1

    stack.write(1000)  # 2
    wait_until(lambda: int(stack("exec -T redis redis-cli dbsize")) > 1000, "the cache is warm", poll_s=0.5)
    wait_until(lambda: stack.inspect("{{.State.Health.Status}}") == "healthy", "healthy", poll_s=0.5)

    # As the kernel does when memory is short. `docker kill` would be a wish, and not undone.
    os.kill(int(stack.inspect("{{.State.Pid}}")), signal.SIGKILL)  # 3
    stack.write(500)
    wait_until(lambda: stack.inspect("{{.RestartCount}}") == "1" and stack.is_ready(), "ready again", poll_s=0.5)
    verify = "exec -T cdc cdc archive verify --json"
    wait_until(lambda: json.loads(stack(verify))["changes"] == 1500, "all of it is archived", poll_s=0.5)
    assert "all is well" in stack("exec -T cdc cdc status")

    stack("stop cdc")  # 4
    assert stack.inspect("{{.State.ExitCode}}") == "0"
    assert stack.sql("SELECT slot_name FROM pg_replication_slots") == [("cdc",)]

    stack("run --rm cdc teardown --yes")  # 5
    assert stack.sql("SELECT slot_name FROM pg_replication_slots") == []
