"""`cdc archive verify --against`: equal while everybody writes on, and every planted difference found."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import as_replicator
from tests.acceptance.test_restore import CHANGED, EXISTED, ODD, SCHEMA
from tests.faults.workload import Workload
from tests.support.cdc_process import Service, install, query, run_cdc
from tests.support.servers import PostgresAddress, fresh_database

pytestmark = pytest.mark.xdist_group("comparison")


class Stand:
    """A service at work over odd tables."""

    def __init__(self, dsn: str, directory: Path) -> None:
        self.dsn = dsn
        install(dsn)
        query(dsn, SCHEMA)
        query(dsn, EXISTED)
        query(dsn, f"GRANT SELECT ON {', '.join(ODD)} TO cdc_reader")
        query(dsn, f"ALTER PUBLICATION cdc ADD TABLE {', '.join(ODD)}")
        url = (directory / "archive").as_uri()
        self.service = Service(directory, dsn=as_replicator(dsn), archive_url=url)

    def verify(self, *options: str) -> tuple[int, Any, str]:
        """Exit code, what `--json` says of the comparison, and stderr."""
        config = str(self.service.config_file)
        against = options or ("--against", as_replicator(self.dsn))
        done = run_cdc("archive", "verify", "--config", config, "--json", *against)
        return done.returncode, json.loads(done.stdout)["against"] if done.stdout else None, done.stderr


@pytest.fixture
def stand(postgres_server: PostgresAddress, tmp_path: Path) -> Iterator[Stand]:
    with fresh_database(postgres_server) as dsn:
        stand = Stand(dsn, tmp_path)
        with stand.service:
            stand.service.wait_until_archived(dsn)
            yield stand


@pytest.mark.wide
def test_the_archive_equals_the_live_tables_while_everybody_writes(stand: Stand) -> None:
    assert Workload(stand.dsn, seed=5, large_every_s=1, truncate_every_s=1).run_for(4)["truncate_outbox"] > 0
    # No TRUNCATE while it compares: each would have it begin again, on a slow machine without end.
    with Workload(stand.dsn, seed=6, large_every_s=2, truncate_every_s=1000):
        for statement in CHANGED:
            query(stand.dsn, statement)
        for _ in range(2):
            code, told, stderr = stand.verify()
            assert stderr == ""
            assert told["differences"][:5] == []
            assert code == 0
            assert told["unknown_values"] == 0
    assert told["rows"]["public.turns"] > 500
    assert told["rows"]["public.odd"] > 300
    assert query(stand.dsn, "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'cdc_verify%'") == [(0,)]


def test_every_row_that_differs_is_named(stand: Stand) -> None:
    """What is done to a table while it is not published is what an archive cannot know."""
    query(stand.dsn, "INSERT INTO odd (t) SELECT 'row ' || n FROM generate_series(1, 20) AS n")
    query(stand.dsn, "ALTER PUBLICATION cdc DROP TABLE odd, keyless")
    query(stand.dsn, "UPDATE odd SET t = 'behind the back', n = 1 WHERE id = 5")
    query(stand.dsn, "DELETE FROM odd WHERE id = 6")
    query(stand.dsn, "INSERT INTO odd (t) VALUES ('unseen')")
    query(stand.dsn, "DELETE FROM keyless WHERE ctid = (SELECT ctid FROM keyless WHERE a = 1 LIMIT 1)")
    query(stand.dsn, "ALTER PUBLICATION cdc ADD TABLE odd, keyless")
    code, told, _ = stand.verify()
    assert code == 1
    found = [(one["table"], one["kind"], one["key"], one["columns"]) for one in told["differences"]]
    assert sorted(found, key=str) == sorted(
        [
            ("public.odd", "unequal", {"id": "5"}, ["n", "t"]),
            ("public.odd", "extra", {"id": "6"}, []),
            ("public.odd", "missing", {"id": "22"}, []),
            ("public.keyless", "extra", {}, []),
        ],
        key=str,
    )


def test_a_truncate_meanwhile_is_never_taken_for_a_difference(stand: Stand) -> None:
    """To an older snapshot a truncated table is empty, so nothing can be said of it."""
    over = threading.Event()

    def truncate() -> None:
        while not over.wait(0.05):
            query(stand.dsn, "INSERT INTO keyless VALUES (5)")
            query(stand.dsn, "TRUNCATE keyless")

    thread = threading.Thread(target=truncate)
    thread.start()
    try:
        code, _, stderr = stand.verify()
    finally:
        over.set()
        thread.join()
    assert code == 1
    assert "a TRUNCATE came between" in stderr
    assert stand.verify()[0] == 0


def truncate_once(dsn: str, slots: set[str], over: threading.Event) -> None:
    """As soon as a comparison has its snapshot; `slots` are those that were seen."""
    made = (
        "SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'cdc_verify%' AND confirmed_flush_lsn > '0/0'"
    )
    while not over.wait(0.02):
        names = {row[0] for row in query(dsn, made)}
        if names and not slots:
            query(dsn, "TRUNCATE keyless")
        slots |= names


def test_after_one_truncate_it_compares_again_and_finds_all_equal(stand: Stand) -> None:
    for _ in range(5):  # the TRUNCATE may come too late, on a machine that is busy
        slots, over = set[str](), threading.Event()
        thread = threading.Thread(target=truncate_once, args=(stand.dsn, slots, over))
        query(stand.dsn, "INSERT INTO keyless VALUES (5)")
        thread.start()
        try:
            code, told, stderr = stand.verify()
        finally:
            over.set()
            thread.join()
        assert (code, stderr) == (0, "")
        if len(slots) == 2:
            assert told["rows"]["public.keyless"] == 0
            return
    raise AssertionError(slots)


def test_a_column_that_was_added_is_compared_only_where_the_archive_has_it(stand: Stand) -> None:
    query(stand.dsn, "ALTER TABLE odd ADD COLUMN added int DEFAULT 7")
    query(stand.dsn, "INSERT INTO odd (t) VALUES ('later')")
    code, told, stderr = stand.verify()
    assert (code, stderr) == (0, "")
    assert told["unknown_values"] == 1


def test_another_database_is_refused(stand: Stand, postgres_server: PostgresAddress) -> None:
    with fresh_database(postgres_server) as other:
        code, _, stderr = stand.verify("--against", other)
    assert code == 2
    assert "this database is not the one that the archive tells of" in stderr


def test_without_a_service_the_wait_ends_with_a_hint(stand: Stand) -> None:
    assert stand.service.stop() == 0
    query(stand.dsn, "INSERT INTO odd (t) VALUES ('nobody archives this')")
    code, _, stderr = stand.verify("--against", as_replicator(stand.dsn), "--wait", "1")
    assert code == 1
    assert "the archive has not come to" in stderr
