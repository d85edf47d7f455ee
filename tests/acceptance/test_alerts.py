"""Every alert fires for its real cause, in a Prometheus that runs, and clears when the cause is gone.

One service on servers of its own, one after the other in trouble. Only the rules' times are shortened
(`tests/acceptance/prometheus.py`).
"""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from cdc.embedded import PostgresServer, ValkeyServer
from tests.acceptance.prometheus import RULES, Prometheus, free_port, shorten
from tests.support.cdc_process import Service, install, query, wait_until
from tests.support.s3 import S3Server
from tests.support.servers import TEST_SETTINGS
from tests.unit.deploy.test_grafana import targets

pytestmark = [pytest.mark.wide, pytest.mark.xdist_group("alerts")]


class Scene:
    """A service with everything around it, all of it well when a test begins."""

    def __init__(self, home: Path, server_home: Path, running: ExitStack) -> None:
        settings = {**TEST_SETTINGS, "max_slot_wal_keep_size": "64MB"}
        self.postgres = running.enter_context(PostgresServer(server_home / "pg", settings=settings))
        self.valkey = running.enter_context(ValkeyServer(server_home / "valkey"))
        self.s3 = running.enter_context(S3Server())
        self.dsn = self.postgres.dsn()
        install(self.dsn)
        listen = f"127.0.0.1:{free_port()}"
        self.service = Service(
            home,
            dsn=self.dsn,
            archive_url="s3://archive/chat",
            cache_url=self.valkey.url,
            environment=self.s3.environment,
            archive={"endpoint_url": self.s3.endpoint_url, "on_gap": "resnapshot"},
            http={"listen": listen},
            monitor={"interval_s": 0.2, "barrier_interval_s": 0.4},
        )
        running.enter_context(self.service)
        self.prometheus = running.enter_context(Prometheus(home / "prometheus", listen))

    def say(self) -> None:
        query(
            self.dsn,
            "INSERT INTO turns (domain, channel, session_hash, role, content) VALUES ('d', 'c', 's', 'user', 'x')",
        )

    def write_wal(self, megabytes: int) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for _ in range(megabytes):
                connection.execute("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 1048576))")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, server_dir: Path) -> Iterator[Scene]:
    server_home = server_dir / "alerts"
    server_home.mkdir()
    server_home.chmod(0o755)
    with ExitStack() as stack:
        yield Scene(tmp_path_factory.mktemp("alerts"), server_home, stack)
    shutil.rmtree(server_home, ignore_errors=True)


@pytest.fixture
def scene(running: Scene) -> Iterator[Scene]:
    running.prometheus.wait_all_clear(but="WaltierUnproved")  # which the last test ends
    running.service.wait_until_caught_up(running.dsn)
    yield running
    if not running.service.running:
        running.service.start()


def test_a_bucket_that_refuses(scene: Scene) -> None:
    scene.s3.fail(503, methods="PUT GET HEAD")
    scene.say()
    for alert in ("WaltierArchiveLag", "WaltierRpo", "WaltierPutFailures"):
        scene.prometheus.wait_firing(alert)
    scene.s3.heal()
    scene.prometheus.wait_clear("WaltierArchiveLag", "WaltierRpo", "WaltierPutFailures")


def test_postgres_gone_and_back_on_a_new_timeline(scene: Scene) -> None:
    scene.postgres.stop()
    for alert in ("WaltierNotReady", "WaltierSlotsUnwatched"):
        scene.prometheus.wait_firing(alert)
    scene.prometheus.wait_firing("WaltierErrors", room="monitor")
    begin_timeline(scene.postgres)
    scene.prometheus.wait_firing("WaltierForkRecorded")
    scene.prometheus.wait_clear("WaltierNotReady", "WaltierSlotsUnwatched", "WaltierErrors", "WaltierForkRecorded")


def begin_timeline(server: PostgresServer) -> None:
    """Start it as a recovery that ends where its own WAL ends."""
    signal = server.data_dir / "recovery.signal"
    shutil.copy(server.data_dir / "PG_VERSION", signal)
    owner = (server.data_dir / "PG_VERSION").stat()
    shutil.chown(signal, owner.st_uid, owner.st_gid)
    server.settings["restore_command"] = "false"
    server.start()
    wait_until(lambda: not query(server.dsn(), "SELECT pg_is_in_recovery()")[0][0], "promoted")


def test_redis_killed(scene: Scene) -> None:
    scene.valkey.kill()
    scene.say()
    scene.prometheus.wait_firing("WaltierCacheNotLive")
    scene.valkey.start()
    scene.prometheus.wait_clear("WaltierCacheNotLive")


def test_a_strangers_slot_that_nobody_reads_until_it_is_lost(scene: Scene) -> None:
    query(scene.dsn, "CHECKPOINT")  # so that the next one is ours, below
    query(scene.dsn, "SELECT pg_create_physical_replication_slot('stranger', true)")
    scene.prometheus.wait_firing("WaltierSlotUnread", slot="stranger")
    for _ in range(100):  # past the limit of 64 MB, at a pace that leaves Prometheus time to see it come
        if scene.prometheus.firing("WaltierSlotNearLimit", slot="stranger"):
            break
        scene.write_wal(1)
        time.sleep(0.25)
    scene.prometheus.wait_firing("WaltierSlotNearLimit", slot="stranger")
    scene.write_wal(64)
    query(scene.dsn, "CHECKPOINT")
    scene.prometheus.wait_firing("WaltierSlotLost", slot="stranger")
    scene.prometheus.wait_clear("WaltierSlotUnread")
    query(scene.dsn, "SELECT pg_drop_replication_slot('stranger')")
    scene.prometheus.wait_clear("WaltierSlotLost", "WaltierSlotNearLimit")


def test_the_service_suspended_and_its_slot_dropped_while_a_transaction_is_open(scene: Scene) -> None:
    with psycopg.connect(scene.dsn) as connection:
        connection.execute("CREATE TABLE open_while_the_slot_is_made (id int)")
        scene.prometheus.wait_firing("WaltierOldTransaction")
        scene.service.pause()
        scene.prometheus.wait_firing("WaltierDown")
        query(scene.dsn, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'cdc'")
        wait_until(lambda: drop_our_slot(scene.dsn), "the slot is dropped")
        scene.service.resume()
        for alert in ("WaltierGapOpen", "WaltierGapRecorded"):
            scene.prometheus.wait_firing(alert)
        scene.prometheus.wait_clear("WaltierDown")
    scene.prometheus.wait_clear("WaltierOldTransaction", "WaltierGapOpen", "WaltierGapRecorded")


def drop_our_slot(dsn: str) -> bool:
    try:
        query(dsn, "SELECT pg_drop_replication_slot('cdc')")
    except psycopg.errors.ObjectInUse:
        return False
    return True


def test_a_service_that_is_killed_again_and_again(scene: Scene) -> None:
    deadline = time.monotonic() + 240
    while not scene.prometheus.firing("WaltierRestartLoop"):
        assert time.monotonic() < deadline
        scene.service.kill()
        restart(scene)
    scene.prometheus.wait_clear("WaltierRestartLoop")


def restart(scene: Scene) -> None:
    """Start it, and wait until Prometheus has seen that it is another process."""
    started_at = time.time()
    scene.service.start()
    started = f"process_start_time_seconds > {started_at - 1}"
    wait_until(lambda: bool(scene.prometheus.query(started)), "the start is seen")


def test_a_damaged_archive_and_a_proof_that_nobody_renews(scene: Scene) -> None:
    """The last of them: what was proved once is stale some time later, in whichever test that is."""
    for proof in ("verify", "drill"):
        scene.prometheus.wait_firing("WaltierUnproved", proof=proof)
    key = next(key for key in sorted(scene.s3.objects()) if "/log/" in key)
    sound = scene.s3.objects()[key]
    scene.s3.put_object(key, sound[:-1] + bytes([sound[-1] ^ 1]))
    assert verify(scene) == 1
    scene.prometheus.wait_firing("WaltierProofFailed", proof="verify")
    scene.s3.put_object(key, sound)
    assert verify(scene) == 0
    scene.prometheus.wait_clear("WaltierProofFailed")
    scene.prometheus.wait_firing("WaltierProofStale", proof="verify")
    assert verify(scene) == 0
    scene.prometheus.wait_clear("WaltierProofStale")
    assert not scene.prometheus.firing("WaltierUnproved", proof="verify")
    assert prove(scene, "drill") == 0
    scene.prometheus.wait_clear("WaltierUnproved")


def verify(scene: Scene) -> int:
    return prove(scene, "archive", "verify", "--full")


def prove(scene: Scene, *command: str) -> int:
    """The exit code; then the service is started again, which reads proofs at its start, or else every five minutes."""
    done = scene.service.command(*command, check=False)
    scene.service.kill()
    restart(scene)
    return done.returncode


# Of a service that is well this finds nothing.
_EMPTY_WHEN_WELL = ('cdc_proof_ok{instance=~"$instance"} == 0',)


def test_every_query_of_the_grafana_dashboard_finds_something(running: Scene) -> None:
    assert verify(running) == 0
    running.say()
    for title, expression, _ in targets():
        asked = expression.replace("$instance", ".*").replace("$__rate_interval", "1m")
        if expression in _EMPTY_WHEN_WELL:
            assert running.prometheus.query(asked) == [], title
        else:
            wait_until(lambda asked=asked: bool(running.prometheus.query(asked)), f"{title}: {asked}")  # type: ignore[misc]


def test_every_alert_was_made_to_fire() -> None:
    made = set(re.findall(r'"(Waltier\w+)"', Path(__file__).read_text()))
    assert made == set(re.findall(r"alert: (\w+)", (RULES / "alerts.yml").read_text()))


def test_shortened_rules_are_the_rules_but_for_their_times() -> None:
    shortened = shorten("expr: increase(a[1d]) > 2 * 3600\nfor: 15m\nexpr: b > 2\nfor: 10s")
    assert shortened == "expr: increase(a[20s]) > 2 * 8.0\nfor: 10s\nexpr: b > 2\nfor: 1s"


# promtool ---------------------------------------------------------------------------------------------------------


def promtool(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=directory, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", ["check rules alerts.yml", "check config prometheus.yml"])
def test_promtool_finds_the_files_sound(arguments: str) -> None:
    done = promtool(RULES, *arguments.split())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "code"),
    [
        ("", "", 0),
        ("max by (job) (cdc_ready)", "min by (job) (cdc_ready)", 1),
        ("unless cdc_slot_lost == 1", "", 1),
        ("(cdc_gaps_total[1d])", "(cdc_gaps_total[1h])", 1),
        ("[15m]) > 3", "[15m]) > 2", 1),
        ("for: 3d", "for: 2d", 1),
    ],
)
def test_the_rules_pass_their_tests_and_wrong_ones_do_not(right: str, wrong: str, code: int, tmp_path: Path) -> None:
    rules = (RULES / "alerts.yml").read_text()
    assert right in rules
    (tmp_path / "alerts.yml").write_text(rules.replace(right, wrong) if right else rules)
    shutil.copy(RULES / "alerts.test.yml", tmp_path)
    done = promtool(tmp_path, "test", "rules", "alerts.test.yml")
    assert done.returncode == code, done.stdout + done.stderr
