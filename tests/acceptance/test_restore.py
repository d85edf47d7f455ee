"""P4: the archive restored is the database as it was, row for row, at its end and at any transaction before."""

import contextlib
import fcntl
import json
import os
import pty
import random
import re
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cdc.postgres.install import read_sql
from tests.acceptance.conftest import as_replicator
from tests.faults.checker import TABLES, Verdict, check_replay, read_table
from tests.faults.objects import Archive, read_archive, read_directory
from tests.faults.workload import Workload
from tests.support.cdc_process import COMMAND, Service, install, query, run_cdc, wait_until
from tests.support.servers import PostgresAddress, fresh_database

pytestmark = pytest.mark.xdist_group("restore")

SCHEMA = r"""
CREATE TYPE mood AS ENUM ('sad', 'very happy');
CREATE DOMAIN small AS int CHECK (VALUE < 10);
CREATE TYPE pair AS (a int, b text);
CREATE TABLE odd (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, i2 int2, f8 float8, n numeric(12, 3), b bool, t text, c char(5),
    v varchar(9), by bytea, ts timestamp, tz timestamptz, d date, ti time, iv interval, j json, jb jsonb, ia int[],
    ta text[], m mood, ma mood[], sm small, p pair, r int4range, bits bit(4),
    doubled numeric GENERATED ALWAYS AS (n * 2) STORED
);
CREATE TABLE keyless (a int, b json, f float8);
ALTER TABLE keyless REPLICA IDENTITY FULL;
CREATE TABLE parent (id serial PRIMARY KEY, long text, other int);
ALTER TABLE parent ALTER long SET STORAGE EXTERNAL;
CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent);
CREATE TABLE "Odd Name" ("Key col" text PRIMARY KEY, "a ""b" text);
"""
ODD = ("public.odd", "public.keyless", "public.parent", "public.child", 'public."Odd Name"')
EXISTED = r"""
INSERT INTO odd (f8, n, t, m) VALUES ('NaN', 'NaN', E'tab\t nl\n back\\slash \\. ''quoted''', 'very happy');
INSERT INTO keyless VALUES (1, '{"a":  1}', 'NaN'), (1, '{"a":  1}', 'NaN'), (NULL, NULL, NULL);
INSERT INTO parent (long, other) SELECT repeat('x', 9000) || n, n FROM generate_series(1, 20) AS n;
"""
CHANGED = (
    r"""INSERT INTO odd (i2, f8, n, b, t, c, v, by, ts, tz, d, ti, iv, j, jb, ia, ta, m, ma, sm, p, r, bits) VALUES
       (1, '-Infinity', 1.5, true, '', 'ab', 'é😀', '\x00ff5c', 'infinity', '-infinity', '0044-03-15 BC', '24:00:00',
        '1 year -3 days 04:05:06.7', E'{"a":\n null}', 'null', '[2:4]={1,2,3}', ARRAY['a,b', NULL, '"', '\'], 'sad',
        ARRAY['sad', 'very happy']::mood[], 9, ROW(1, 'x y'), '[1,5)', '1010')""",
    """INSERT INTO odd (f8, n, b, by, jb, ia, ta) VALUES (1e-300, -0.001, false, '', '{"$json": 1}', '{}', '{}')""",
    "UPDATE odd SET t = 'changed', n = 2.5 WHERE id = 1",
    "INSERT INTO odd (t) SELECT 'row ' || n FROM generate_series(1, 500) AS n",
    "DELETE FROM odd WHERE id % 7 = 3",
    "UPDATE keyless SET a = 2 WHERE ctid = (SELECT ctid FROM keyless WHERE a = 1 LIMIT 1)",
    "DELETE FROM keyless WHERE a IS NULL",
    "UPDATE parent SET other = other + 1",
    "UPDATE parent SET id = id + 1000 WHERE id < 5",
    "INSERT INTO child SELECT id, id FROM parent",
    "TRUNCATE parent, child RESTART IDENTITY",
    "INSERT INTO parent (long) SELECT repeat('y', 5000) FROM generate_series(1, 3)",
    "INSERT INTO child SELECT id, id FROM parent",
    """INSERT INTO "Odd Name" VALUES ('k''1', NULL), ('k"2', 'x')""",
    """UPDATE "Odd Name" SET "Key col" = 'k3' WHERE "Key col" = 'k"2'""",
)


class Source:
    """An archive with a good deal in it, whose service has ended, and the database it came from."""

    def __init__(self, server: PostgresAddress, dsn: str, directory: Path) -> None:
        self.server = server
        self.dsn = dsn
        self.archive_url = (directory / "archive").as_uri()
        self.tables = [file.text for file in read_sql()[:2]]
        install(dsn)
        for statement in (SCHEMA, EXISTED):
            query(dsn, statement)
        query(dsn, f"GRANT SELECT ON {', '.join(ODD)} TO cdc_reader")
        query(dsn, f"ALTER PUBLICATION cdc ADD TABLE {', '.join(ODD)}")
        Workload(dsn, seed=4, rate=200, large_every_s=1).run_for(1.5)
        self.service = Service(
            directory,
            dsn=as_replicator(dsn),
            archive_url=self.archive_url,
            archive={"segment_bytes": 1024 * 1024},
        )
        with self.service:
            self.service.wait_until_archived(dsn)
            for statement in CHANGED:
                query(dsn, statement)
            Workload(dsn, seed=5, rate=150, large_every_s=1.5, truncate_every_s=1.3).run_for(5)
            self.service.wait_until_archived(dsn)
            assert self.service.stop() == 0

    def archive(self) -> Archive:
        return read_archive(read_directory(self.archive_url))

    @contextlib.contextmanager
    def target(self, schema: bool = True) -> Iterator[str]:
        """An empty database with the source's tables."""
        with fresh_database(self.server) as dsn:
            if schema:
                for statement in (*self.tables, SCHEMA):
                    query(dsn, statement)
            yield dsn

    def command(self, into: str, *options: str) -> list[str]:
        return ["restore", "--config", str(self.service.config_file), "--into", into, *options]

    def restore(self, into: str, *options: str) -> "subprocess.CompletedProcess[str]":
        return run_cdc(*self.command(into, *options))


@pytest.fixture(scope="module")
def source(postgres_server: PostgresAddress, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    with fresh_database(postgres_server) as dsn:
        yield Source(postgres_server, dsn, tmp_path_factory.mktemp("restore"))


def checksum(dsn: str, table: str) -> tuple[int, str]:
    """Rows, and a digest of all of them as text in sorted order."""
    found = query(dsn, f"SELECT count(*), md5(string_agg(t::text, E'\\n' ORDER BY t::text)) FROM {table} AS t")
    return found[0][0], found[0][1]


def differing(a: str, b: str) -> list[str]:
    return [table for table in (*TABLES, *ODD) if checksum(a, table) != checksum(b, table)]


def test_restored_to_the_end_every_table_is_the_sources(source: Source) -> None:
    with source.target() as into:
        done = source.restore(into, "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert differing(source.dsn, into) == []
        assert told["created"] == []
        assert told["snapshot_rows"] == told["rows_copied"] > 1000
        assert told["transactions"] > 100
        assert not told["triggers_fired"]


def test_sequences_go_on_after_the_restored_rows(source: Source) -> None:
    with source.target() as into:
        assert source.restore(into).returncode == 0
        for table in ("turns", "odd", "parent"):
            last = query(into, f"SELECT max(id) FROM {table}")[0][0]
            column = {"turns": "domain, channel, session_hash, role, content", "odd": "t", "parent": "long"}[table]
            values = ", ".join(["'x'"] * (column.count(",") + 1))
            assert query(into, f"INSERT INTO {table} ({column}) VALUES ({values}) RETURNING id") == [(last + 1,)]


@pytest.mark.parametrize("number", [0, 1, *(pytest.param(n, marks=pytest.mark.wide) for n in (2, 3, 4))])
def test_restored_to_any_ordinal_it_is_what_an_independent_replay_gives(source: Source, number: int) -> None:
    archive = source.archive()
    ordinal = random.Random(number).randrange(len(archive.transactions) - 1)
    archive.transactions = archive.transactions[: ordinal + 1]
    with source.target() as into:
        done = source.restore(into, "--to-ordinal", str(ordinal))
        assert done.returncode == 0, done.stderr
        verdict = Verdict()
        check_replay(archive, {name: read_table(into, name) for name in TABLES}, verdict)
        assert verdict.findings == [], f"ordinal {ordinal}"


def test_an_lsn_and_a_time_name_the_same_moment_as_an_ordinal(source: Source) -> None:
    archive = source.archive()
    lines = source.service.command("archive", "cat").stdout.splitlines()
    ordinal = len(archive.transactions) // 2
    line = next(found for found in map(json.loads, lines) if found["ord"] == ordinal)
    sums = []
    for option, value in (("--to-ordinal", str(ordinal)), ("--to-lsn", line["lsn"]), ("--to-time", line["time"])):
        with source.target() as into:
            done = source.restore(into, option, value, "--table", "public.turns")
            assert done.returncode == 0, done.stderr
            sums.append(checksum(into, "public.turns"))
            assert checksum(into, "public.outbox")[0] == 0
    assert sums[0] == sums[1] == sums[2]


def test_at_the_snapshots_own_lsn_only_its_rows_are_there(source: Source) -> None:
    archive = source.archive()
    lsn = archive.consistent_lsn - 1
    with source.target() as into:
        done = source.restore(into, "--to-lsn", f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["transactions"] == 0
        assert checksum(into, "public.turns")[0] == len(archive.base["public.turns"])


def test_tables_that_are_absent_are_created_from_their_archived_shapes(source: Source) -> None:
    with source.target(schema=False) as into:
        query(into, "CREATE TYPE mood AS ENUM ('sad', 'very happy'); CREATE DOMAIN small AS int;")
        query(into, "CREATE TYPE pair AS (a int, b text)")
        done = source.restore(into, "--json")
        assert done.returncode == 0, done.stderr
        assert "public.odd" in json.loads(done.stdout)["created"]
        columns = "id, n, t, c, v, j, jb, ia, ta, m, ma, sm, p, r, bits"
        for table in (
            "public.turns",
            "public.outbox",
            "public.keyless",
            "public.parent",
            f"(SELECT {columns} FROM odd)",
        ):
            assert checksum(source.dsn, table) == checksum(into, table), table
        types = "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'odd'::regclass"
        expected = query(source.dsn, f"{types} AND attnum > 0 AND attname <> 'doubled' ORDER BY 1")
        assert query(into, f"{types} AND attnum > 0 ORDER BY 1") == expected


def test_a_type_that_is_missing_is_named(source: Source) -> None:
    with source.target(schema=False) as into:
        done = source.restore(into, "--table", "public.odd")
        assert done.returncode == 2
        assert "the target has no type public.mood" in done.stderr
        assert "pg_dump --schema-only" in done.stderr


def test_killed_in_the_middle_the_second_run_goes_on(source: Source) -> None:
    """Twice: while base rows are copied, and while transactions are replayed. A trigger holds it there."""
    with source.target() as into:
        query(into, "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                    " PERFORM pg_catalog.pg_advisory_xact_lock(1); RETURN NEW; END $$")  # fmt: skip
        middle = query(source.dsn, "SELECT percentile_disc(0.9) WITHIN GROUP (ORDER BY id) FROM turns")[0][0]
        for table, condition in (("turns", "NEW.id > 5"), ("turns", f"NEW.id > {middle}")):
            query(into, f"CREATE TRIGGER hold BEFORE INSERT ON {table} FOR EACH ROW WHEN ({condition})"
                        " EXECUTE FUNCTION hold()")  # fmt: skip
            query(into, f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER hold")
            with psycopg.connect(into) as holder:
                holder.execute("SELECT pg_advisory_xact_lock(1)")
                kill_when_held(source, into)
            wait_until(lambda: not others(into), "the killed restore's session gone")
            query(into, f"DROP TRIGGER hold ON {table}")
        chunks, ordinal, finished = query(into, "SELECT chunks, next_ordinal, finished FROM cdc.restore")[0]
        assert (chunks > 0, ordinal > 0, finished) == (True, True, False)
        done = source.restore(into, "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["resumed"]
        assert told["transactions"] == len(source.archive().transactions) - ordinal
        assert differing(source.dsn, into) == []


def kill_when_held(source: Source, into: str) -> None:
    process = subprocess.Popen([*COMMAND, *source.command(into)])
    try:
        wait_until(lambda: bool(others(into, "AND wait_event_type = 'Lock'")), "the restore held")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def others(dsn: str, condition: str = "") -> list[int]:
    found = query(
        dsn,
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        f" AND application_name = 'waltier restore' {condition}",
    )
    return [pid for (pid,) in found]


def test_on_a_terminal_a_bar_shows_rows_a_second_and_the_time_that_remains(source: Source) -> None:
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    with source.target() as into:
        command = [*COMMAND, *source.command(into)]
        # Whoever sets COLUMNS, as some terminals and test runners do, is believed more than the terminal.
        environment = {n: v for n, v in os.environ.items() if n not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
        process = subprocess.Popen(command, stderr=terminal, stdout=subprocess.PIPE, env=environment)
        os.close(terminal)
        shown = b"".join(iter(lambda: _read_terminal(controller), b"")).decode()
        os.close(controller)
        printed = process.communicate()[0].decode()
        assert process.returncode == 0, shown
    frames = [re.sub(r"\x1b\[[\d;?]*\w", "", frame) for frame in shown.split("\r")]
    assert any(re.search(r"restoring .* 100% [\d,]+ rows/s \d:\d\d:\d\d", frame) for frame in frames), frames
    assert max(map(len, frames)) <= 61, "a line wraps"
    assert shown.rstrip().endswith("\x1b[2K"), "the bar stays"
    assert printed.startswith("began with the snapshot")
    assert "\x1b" not in printed


def _read_terminal(controller: int) -> bytes:
    """Nothing when whoever wrote to the other end is gone: Linux says EIO then."""
    try:
        return os.read(controller, 65536)
    except OSError:
        return b""


def test_a_dry_run_writes_nothing(source: Source) -> None:
    with source.target(schema=False) as into:
        done = source.restore(into, "--dry-run", "--json")
        assert done.returncode == 0, done.stderr
        assert "public.turns" in json.loads(done.stdout)["created"]
        assert query(into, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == [(0,)]
        assert query(into, "SELECT count(*) FROM pg_namespace WHERE nspname = 'cdc'") == [(0,)]


def test_rows_in_the_target_are_refused(source: Source) -> None:
    with source.target() as into:
        query(into, "INSERT INTO keyless VALUES (1)")
        done = source.restore(into)
        assert done.returncode == 2
        assert "public.keyless in the target has rows" in done.stderr
        assert checksum(into, "public.turns")[0] == 0


def test_the_source_itself_is_refused(source: Source) -> None:
    done = source.restore(source.dsn)
    assert done.returncode == 2
    assert "the target is the archive's own source" in done.stderr


def test_what_is_no_dsn_is_refused_without_quoting_it(source: Source) -> None:
    for command in (source.command("s3cret"), ["archive", "verify", "--against", "s3cret"]):
        done = run_cdc(*command, environment={"CDC_CONFIG": str(source.service.config_file)})
        assert done.returncode == 2
        assert "is not a connection string" in done.stderr
        assert "s3cret" not in done.stderr


def test_a_finished_restore_is_not_written_over(source: Source) -> None:
    with source.target() as into:
        assert source.restore(into, "--to-ordinal", "3").returncode == 0
        done = source.restore(into)
        assert done.returncode == 2
        assert "the target holds a finished restore" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--to-ordinal", "99999999"), "the archive ends before ordinal 99999999"),
        (("--to-lsn", "FFFF/0"), "the archive ends before FFFF/0"),
        (("--to-lsn", "0/1"), "the archive has no snapshot at or before 0/1"),
        (("--to-time", "2001-01-01T00:00:00Z"), "the archive has no snapshot at or before 2001"),
        (("--to-time", "2001-01-01T00:00:00"), "the moment to restore to cannot be read"),
        (("--to-lsn", "0/1", "--to-ordinal", "1"), "only one of"),
        (("--table", "public.nothing"), "the archive has no table public.nothing"),
    ],
)
def test_a_moment_that_the_archive_does_not_have_is_refused(
    source: Source, options: tuple[str, ...], message: str
) -> None:
    with source.target() as into:
        done = source.restore(into, *options)
        assert done.returncode == 2
        assert message in done.stderr


def test_a_damaged_base_is_never_restored(source: Source, tmp_path: Path) -> None:
    objects = read_directory(source.archive_url)
    for key, body in objects.items():
        path = tmp_path / "archive" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body[:-1] + b"?" if key.startswith("base/") else body)
    with source.target() as into:
        environment = {"CDC_ARCHIVE__URL": (tmp_path / "archive").as_uri()}
        done = run_cdc(*source.command(into), environment=environment)
        assert done.returncode == 1
        assert "not as the snapshot record describes it" in done.stderr
