"""`cdc drill`: green while everybody writes, red on what is not the same, and nothing of it stays."""

import json
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from cdc.archive.bucket.memory import MemoryBucket
from cdc.archive.format.segment import decode_segment
from cdc.archive.proof.proofs import AGAINST_KEY, DRILL_KEY
from tests.acceptance.conftest import as_replicator
from tests.acceptance.test_restore import CHANGED, EXISTED, ODD, SCHEMA
from tests.conftest import MakePostgres
from tests.faults.workload import Workload
from tests.integration.archive.test_verify import resealed
from tests.support.cdc_process import COMMAND, PATIENCE_S, Service, install, query, run_cdc, wait_until
from tests.support.servers import PostgresAddress, fresh_database

pytestmark = pytest.mark.xdist_group("drill")

LEFTOVER = "waltier_drill_0123456789ab"
IN_USE = "waltier_drill_00000000002a"
STRANGER = "waltier_drill_of_somebody"


class Stand:
    """A service at work over odd tables, and a temporary directory of its own for drills."""

    def __init__(self, dsn: str, directory: Path, temporary: Path) -> None:
        self.dsn = dsn
        self.temporary = temporary
        install(dsn)
        query(dsn, SCHEMA)
        query(dsn, EXISTED)
        query(dsn, f"GRANT SELECT ON {', '.join(ODD)} TO cdc_reader")
        query(dsn, f"ALTER PUBLICATION cdc ADD TABLE {', '.join(ODD)}")
        self.archive_url = (directory / "archive").as_uri()
        self.service = Service(directory, dsn=as_replicator(dsn), archive_url=self.archive_url)

    def command(self, *options: str) -> list[str]:
        return ["drill", "--config", str(self.service.config_file), "--json", *options]

    def drill(self, *options: str) -> tuple[int, Any, str]:
        """Exit code, what `--json` says, and stderr."""
        done = run_cdc(*self.command(*options), environment={"TMPDIR": str(self.temporary)})
        return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr

    def start_drill(self, *options: str) -> "subprocess.Popen[str]":
        environment = {**self.service.environment, "TMPDIR": str(self.temporary)}
        return subprocess.Popen(
            [*COMMAND, *self.command(*options)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def remembered(self, key: str = DRILL_KEY) -> Any:
        path = self.path(key)
        return json.loads(path.read_bytes()) if path.exists() else None

    def path(self, key: str) -> Path:
        return Path(urlsplit(self.archive_url).path) / key

    def status(self) -> Any:
        return json.loads(self.service.command("status", "--json", check=False).stdout)

    def servers(self) -> set[Path]:
        return set(self.temporary.glob("waltier-drill-*/postgres/PG_VERSION"))

    def left(self) -> list[str]:
        """Directories of drills, and their slots on the source."""
        slots = query(self.dsn, "SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'cdc_verify%'")
        return [*(path.name for path in self.temporary.glob("waltier*")), *(name for (name,) in slots)]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where an unprivileged Postgres may go too."""
    directory = Path(tempfile.mkdtemp(prefix="test-drill-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def stand(postgres_server: PostgresAddress, tmp_path: Path, temporary: Path) -> Iterator[Stand]:
    with fresh_database(postgres_server) as dsn:
        stand = Stand(dsn, tmp_path, temporary)
        with stand.service:
            stand.service.wait_until_archived(dsn)
            yield stand


def test_a_restore_equals_the_live_tables_while_everybody_writes(stand: Stand) -> None:
    with Workload(stand.dsn, seed=7, large_every_s=1, truncate_every_s=1000):
        for statement in CHANGED:
            query(stand.dsn, statement)
        query(stand.dsn, "ALTER TABLE odd ADD COLUMN added int DEFAULT 7")
        code, told, stderr = stand.drill()
    assert (code, stderr) == (0, "")
    assert (told["differences"], told["unremembered"]) == ([], None)
    assert told["rows"]["public.odd"] > 300
    assert told["tables_restored"] == told["tables_archived"] == len(told["rows"])
    assert told["rows_copied"] > 20
    assert told["changes"] > 300
    assert stand.left() == []
    kept = stand.remembered()
    assert (kept["ok"], kept["success"]["lsn"], kept["failure"]) == (True, told["lsn"], "")
    assert kept["success"]["rows"] == sum(told["rows"].values())
    assert 0 < kept["success"]["seconds"] < told["seconds"]
    proof = stand.status()["archive"]["proofs"]["drill"]
    assert (proof["ok"], proof["lsn"]) == (True, told["lsn"])
    human = stand.service.command("drill", "--table", "public.odd", check=False)
    assert human.returncode == 0, human.stderr
    assert "restored 1 of 7 tables" in human.stdout
    assert human.stdout.rstrip().endswith("equal")


def test_a_row_changed_behind_the_back_is_red_until_it_is_mended(stand: Stand) -> None:
    assert stand.drill("--table", "public.odd")[0] == 0
    succeeded = stand.remembered()["success"]
    query(stand.dsn, "ALTER PUBLICATION cdc DROP TABLE odd")
    query(stand.dsn, "UPDATE odd SET t = 'behind the back' WHERE id = 1")
    query(stand.dsn, "ALTER PUBLICATION cdc ADD TABLE odd")
    code, told, _ = stand.drill()
    assert code == 1
    assert told["differences"] == [{"table": "public.odd", "kind": "unequal", "key": {"id": "1"}, "columns": ["t"]}]
    assert stand.left() == []
    kept = stand.remembered()
    assert (kept["ok"], kept["success"]) == (False, succeeded)
    assert kept["failure"] == f"1 differences at {told['lsn']} in public.odd"
    assert "behind" not in json.dumps(kept)
    assert "the last drill failed" in str(stand.status()["troubles"])
    query(stand.dsn, "UPDATE odd SET t = 'seen by all' WHERE id = 1")
    assert stand.drill()[0] == 0
    assert stand.remembered()["ok"]


def test_a_row_changed_in_the_archive_under_right_checksums_is_red(stand: Stand) -> None:
    """Verify cannot see it; only what is live can tell."""
    query(stand.dsn, "INSERT INTO parent (long) VALUES ('honest')")
    stand.service.wait_until_archived(stand.dsn)
    assert stand.service.stop() == 0
    root = Path(urlsplit(stand.archive_url).path)
    bucket = MemoryBucket()
    bucket.objects = {f"log/{path.name}": path.read_bytes() for path in root.glob("log/*")}
    seq = next(
        number
        for number, key in enumerate(sorted(bucket.objects))
        if any(b"honest" in line for line in decode_segment(bucket.objects[key]).lines)
    )

    def lie(header: Any, lines: list[bytes]) -> Any:
        lines[:] = [line.replace(b"honest", b"forged") for line in lines]
        return header

    resealed(bucket, seq, lie)
    for key, body in bucket.objects.items():
        (root / key).chmod(0o644)
        (root / key).write_bytes(body)
    stand.service.start()
    assert stand.service.command("archive", "verify", "--full", check=False).returncode == 0
    code, told, stderr = stand.drill("--table", "public.parent")
    assert (code, stderr) == (1, "")
    assert [(one["kind"], one["columns"]) for one in told["differences"]] == [("unequal", ["long"])]


def test_what_a_killed_drill_left_the_next_one_removes(stand: Stand) -> None:
    stranger = stand.temporary / "waltier-drill-stranger"
    stranger.mkdir()
    by_the_kill: set[Path] = set()
    for number in (signal.SIGKILL, signal.SIGTERM):
        before = stand.servers()
        process = stand.start_drill()
        wait_until(lambda before=before: stand.servers() - before != set(), "a scratch server")  # type: ignore[misc]
        process.send_signal(number)
        _, stderr = process.communicate(timeout=PATIENCE_S)
        left = {path for path in stand.temporary.glob("waltier-drill-*") if path != stranger}
        if number == signal.SIGTERM:  # the other's is in use until its orphaned server has ended
            assert (process.returncode, left - by_the_kill) == (1, set())
            assert "the drill was asked to stop" in stderr
        else:
            assert (process.returncode, len(left)) == (-signal.SIGKILL, 1)
            by_the_kill = left

    def removed() -> bool:
        assert stand.drill("--sample", "1")[0] == 0
        return stand.left() == [stranger.name]

    wait_until(removed, "a later drill has removed it")


def test_a_lent_server_gets_a_database_for_a_while(stand: Stand, make_postgres: MakePostgres) -> None:
    lent = make_postgres().dsn()
    for name in (LEFTOVER, IN_USE, STRANGER):
        query(lent, f"CREATE DATABASE {name}")
    with psycopg.connect(lent, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [int(IN_USE[-12:], 16)])
        code, told, stderr = stand.drill("--into", lent)
    assert (code, stderr) == (0, "")
    assert told["tables_restored"] == 7
    found = query(lent, "SELECT datname FROM pg_database WHERE datname LIKE 'waltier%' ORDER BY 1")
    assert [name for (name,) in found] == [IN_USE, STRANGER]
    assert stand.left() == []


def test_the_sources_own_server_is_refused_as_a_scratch(stand: Stand) -> None:
    code, _, stderr = stand.drill("--into", stand.dsn)
    assert code == 2
    assert "the scratch server is the archive's own source" in stderr
    assert stand.remembered() is None


def test_a_role_that_may_not_create_databases_is_told_so(stand: Stand, make_postgres: MakePostgres) -> None:
    server = make_postgres()
    query(server.dsn(), "CREATE ROLE nobody_special LOGIN")
    code, _, stderr = stand.drill("--into", server.dsn(user="nobody_special"))
    assert code == 2
    assert "the role may not create a scratch database" in stderr


@pytest.mark.wide
def test_tables_are_those_that_are_named_or_drawn(stand: Stand) -> None:
    code, told, _ = stand.drill("--table", "public.odd", "--table", "public.keyless")
    assert (code, sorted(told["rows"])) == (0, ["public.keyless", "public.odd"])
    code, told, _ = stand.drill("--sample", "3")
    assert (code, told["tables_restored"], len(told["rows"])) == (0, 3, 3)
    code, _, stderr = stand.drill("--table", "public.nothing")
    assert code == 2
    assert "the archive has no table public.nothing" in stderr
    assert stand.remembered()["ok"]


@pytest.mark.wide
def test_a_drill_that_exceeds_its_budget_has_failed(stand: Stand) -> None:
    assert stand.service.stop() == 0  # nobody archives the mark, so it waits
    code, _, stderr = stand.drill("--budget", "4")
    assert code == 1
    assert "the drill has not ended within its budget of 4 s" in stderr
    assert stand.left() == []
    assert not stand.remembered()["ok"]
    code, _, stderr = stand.drill("--wait", "1")
    assert code == 1
    assert "the archive has not come to" in stderr
    assert "the archive has not come to" in stand.remembered()["failure"]


def test_a_comparison_is_remembered_too(stand: Stand) -> None:
    against = ["archive", "verify", "--config", str(stand.service.config_file), "--against", as_replicator(stand.dsn)]
    assert run_cdc(*against).returncode == 0
    equal = stand.remembered(AGAINST_KEY)
    assert equal["ok"]
    assert equal["success"]["rows"] > 20
    query(stand.dsn, "ALTER PUBLICATION cdc DROP TABLE odd")
    query(stand.dsn, "DELETE FROM odd WHERE id = 1")
    query(stand.dsn, "ALTER PUBLICATION cdc ADD TABLE odd")
    assert run_cdc(*against).returncode == 1
    differs = stand.remembered(AGAINST_KEY)
    assert (differs["ok"], differs["success"]) == (False, equal["success"])
    assert "differ from the live tables" in str(stand.status()["troubles"])
