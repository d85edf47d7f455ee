"""What the runbook plans, done as it says: a major upgrade of Postgres, and new credentials."""

from contextlib import chdir
from pathlib import Path

import pytest
import redis
from psycopg.conninfo import make_conninfo

from cdc.embedded import PostgresServer
from cdc.embedded.binaries import find_postgres
from cdc.embedded.process import run
from tests.acceptance.conftest import as_replicator
from tests.conftest import MakePostgres, MakeValkey
from tests.support.cdc_process import Service, install, query, run_cdc
from tests.support.s3 import S3Server
from tests.support.servers import DEBIAN_POSTGRES_BIN

pytestmark = pytest.mark.wide


def say(dsn: str, word: str) -> None:
    query(
        dsn,
        "INSERT INTO turns (domain, channel, session_hash, role, content) VALUES ('d', 'c', 's', 'user', %s)",
        (word,),
    )


def forget_attribute_versions(dsn: str) -> None:
    """Take away what pg_upgrade to 18.6 stops at: Debian's 15.20 gives each column an option, `pg_attver`.

    pg_dump writes it down, and 18.6 does not know it. RESET leaves it.
    """
    marked = "attrelid >= 16384 AND attoptions::text LIKE '%pg_attver%'"
    query(dsn, f"UPDATE pg_attribute SET attoptions = NULL WHERE {marked}")


def pg_upgrade(old: PostgresServer, new: PostgresServer) -> None:
    """Both are stopped. Their data checksums must agree; from Postgres 18 on, initdb turns them on."""
    programs, home = new.bin_dir, new.data_dir.parent
    identity = find_postgres(programs).identity
    run([str(programs / "pg_checksums"), "--disable", "-D", str(new.data_dir)], identity)
    directories = ["-b", str(old.bin_dir), "-B", str(programs), "-d", str(old.data_dir), "-D", str(new.data_dir)]
    with chdir(home):  # where it leaves the script that deletes the old cluster
        run([str(programs / "pg_upgrade"), *directories, "-U", "postgres", "-s", str(home)], identity, timeout_s=300)
    assert (home / "delete_old_cluster.sh").exists()


def test_a_major_upgrade_ends_one_archive_and_begins_the_next(make_postgres: MakePostgres, tmp_path: Path) -> None:
    old = make_postgres(bin_dir=DEBIAN_POSTGRES_BIN)
    install(old.dsn())
    before = Service(tmp_path / "before", dsn=old.dsn(), archive_url=(tmp_path / "chat").as_uri())
    with before:
        say(old.dsn(), "before the upgrade")
        before.wait_until_archived(old.dsn())
        against = ("archive", "verify", "--config", str(before.config_file), "--against", old.dsn())
        assert run_cdc(*against).returncode == 0
    config = ("--config", str(before.config_file))
    assert run_cdc("teardown", "--yes", *config).returncode == 0
    assert query(old.dsn(), "SELECT count(*) FROM pg_replication_slots") == [(0,)]
    forget_attribute_versions(old.dsn())
    old.stop()

    new = make_postgres()
    new.stop()
    pg_upgrade(old, new)
    new.start()
    say(new.dsn(), "before the service is back")

    wrong = Service(tmp_path / "wrong", dsn=new.dsn(), archive_url=(tmp_path / "chat").as_uri())
    wrong.start()
    assert wrong.process.wait(60) == 78
    assert "tells the history of another cluster" in wrong.failure()["reason"]

    after = Service(tmp_path / "after", dsn=new.dsn(), archive_url=(tmp_path / "chat-18").as_uri())
    with after:
        say(new.dsn(), "after the upgrade")
        after.wait_until_archived(new.dsn())
        against = ("archive", "verify", "--config", str(after.config_file), "--against", new.dsn())
        done = run_cdc(*against)
        assert (done.returncode, "public.turns: 3 rows" in done.stdout) == (0, True), done.stdout + done.stderr
    assert run_cdc("archive", "verify", "--full", *config).returncode == 0


def test_credentials_are_changed_in_their_files_and_a_restart_takes_them(
    make_postgres: MakePostgres, make_valkey: MakeValkey, tmp_path: Path
) -> None:
    """The old ones are refused at once, before the service has the new ones: it says so, and nothing is lost."""
    postgres, valkey = make_postgres(), make_valkey(settings={"requirepass": "old"})
    install(postgres.dsn())
    query(postgres.dsn(), "ALTER ROLE cdc_replicator PASSWORD 'old'")
    rules = postgres.data_dir / "pg_hba.conf"
    rules.write_text(f"host all,replication cdc_replicator 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
    query(postgres.dsn(), "SELECT pg_reload_conf()")

    def write_files(password: str, access_key: str) -> None:
        (tmp_path / "dsn").write_text(make_conninfo(as_replicator(postgres.dsn()), password=password))
        (tmp_path / "url").write_text(f"redis://:{password}@127.0.0.1:{valkey.port}/0")
        (tmp_path / "aws").write_text(f"[default]\naws_access_key_id={access_key}\naws_secret_access_key=x\n")

    with S3Server() as s3:
        write_files("old", s3.access_key)
        files = {
            "CDC_POSTGRES__DSN_FILE": str(tmp_path / "dsn"),
            "CDC_CACHE__URL_FILE": str(tmp_path / "url"),
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "aws"),
        }
        service = Service(
            tmp_path / "service",
            dsn="postgresql://of-the-file/",
            archive_url="s3://archive/chat",
            cache_url="redis://of-the-file/",
            environment=files,
            archive={"endpoint_url": s3.endpoint_url},
        )
        with service:
            say(postgres.dsn(), "with the old ones")
            service.cache_url = (tmp_path / "url").read_text()
            service.wait_until_caught_up(postgres.dsn())

            query(postgres.dsn(), "ALTER ROLE cdc_replicator PASSWORD 'new'")
            s3.access_key = "AKIANEW"
            with redis.Redis(port=valkey.port, password="old") as client:
                client.config_set("requirepass", "new")
                client.client_kill_filter(_type="normal", skipme=True)
            query(
                postgres.dsn(),
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'cdc_replicator'",
            )
            say(postgres.dsn(), "while the old ones are refused")
            assert service.wait() == 2
            assert "refused the password" in service.failure()["reason"]
            assert query(postgres.dsn(), "SELECT wal_status FROM pg_replication_slots") == [("reserved",)]
            write_files("new", "AKIANEW")
            service.start()
            say(postgres.dsn(), "with the new ones")
            service.cache_url = (tmp_path / "url").read_text()
            service.wait_until_caught_up(postgres.dsn())
            config = ("--config", str(service.config_file))
            told = run_cdc("archive", "cat", *config, environment=files, check=True).stdout
            assert [words in told for words in ("the old ones", "are refused", "the new ones")] == [True] * 3
