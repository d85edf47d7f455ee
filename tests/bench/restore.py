"""`cdc restore` beside `COPY FROM` of the same rows from a file: one table of chat rows, into databases of sql/.

The rows come once as a snapshot (the service began after them) and once as changes (it was at work when they were
written, three a transaction). Every restored table must be equal to the source's, by checksum, or it does not count.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from cdc.postgres import install
from tests.bench.figures import Figure, Reading, Standing, standings
from tests.bench.sizes import Sizes
from tests.bench.stack import Scene, Stack
from tests.bench.subject import children_cpu_s, wait_until
from tests.bench.workloads import TURNS

COPY = "COPY from a file"
_RESTORE = "cdc restore"
_CHECKOUT = Path(__file__).parents[2]
_MAIN = "import sys; from cdc.cli import main; sys.exit(main())"
_PIECE_BYTES = 1024 * 1024

_ROWS = """
INSERT INTO turns (domain, channel, session_hash, role, content, confidence, state)
SELECT 'support', 'web', 'session-' || n / 50, (ARRAY['user', 'assistant', 'tool'])[1 + n % 3],
       'turn ' || n || E' says:\n' || repeat('some words of a chat, ', 2 + n % 4),
       CASE WHEN n % 2 = 0 THEN n % 97 / 97.0 END,
       CASE WHEN n % 3 = 0 THEN '{{"step": 3, "intent": "refund"}}'::jsonb END
  FROM generate_series(1, {rows}) AS n
"""


class Unequal(RuntimeError):
    pass


def restore_tables(stack: Stack, sizes: Sizes) -> dict[str, list[Standing]]:
    """Standings by what the archive holds. Raises Unequal if a restored table is not the source's."""
    found = {}
    for title, begin, rows in (
        ("a snapshot's rows", _begin_with_rows, sizes.restore_rows),
        ("changes of the log, three a transaction", _begin_with_changes, sizes.restore_changes),
    ):
        if rows:
            scene = begin(stack, rows)
            found[f"{rows:,} rows of turns: {title}"] = standings(_race(scene, rows, sizes.repetitions))
            scene.end()
    return found


def figures(found: dict[str, list[Standing]]) -> list[Figure]:
    """How restore stands to COPY."""
    made = []
    for title, (yardstick, ours) in found.items():
        if not yardstick.failure and not ours.failure:
            measured = f"{ours.ratio_to(yardstick):.2f} ({ours.rate:,.0f} rows/s, {yardstick.rate:,.0f} by COPY)"
            made.append(Figure(f"cdc restore against COPY from a file, {title}", measured))
    return made


def _begin_with_rows(stack: Stack, rows: int) -> Scene:
    scene = Scene(stack, "restore_rows")
    scene.connection.execute(_ROWS.format(rows=rows).encode())
    scene.connection.execute("VACUUM ANALYZE turns")
    subject = scene.start()
    try:
        scene.wait_streaming(subject)
        subject.stop()
    finally:
        subject.kill()
    return scene


def _begin_with_changes(stack: Stack, rows: int) -> Scene:
    scene = Scene(stack, "restore_changes")
    subject = scene.start()
    try:
        scene.wait_streaming(subject)
        written = TURNS.write(scene.connection, rows)
        seq = [0]

        def archived() -> bool:
            seq[0], header = scene.last_header(seq[0])
            return header.covered_upto >= written.marker_lsn

        wait_until("the archive has all rows", archived, subject)
        subject.stop()
    finally:
        subject.kill()
    return scene


def _race(scene: Scene, rows: int, repetitions: int) -> list[Reading]:
    file = scene.stack.directory / f"{scene.name}.copy"
    _copy_out(scene.connection, file)
    readings: list[Reading] = []
    for _ in range(repetitions):
        with _empty_database(scene) as dsn:
            readings.append(_copy_in(dsn, file, rows))
        with _empty_database(scene) as dsn:
            readings.append(_restore(scene, dsn, rows))
            check_equal(scene.dsn, dsn, "public.turns")
        for reading in readings[-2:]:
            print(f"  {scene.name}: {reading.contender}: {reading.rate:,.0f} rows/s", flush=True)
    file.unlink()
    return readings


@contextmanager
def _empty_database(scene: Scene) -> Iterator[str]:
    name = f"{scene.name}_target"
    with psycopg.connect(scene.stack.postgres.dsn(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
        dsn = scene.stack.postgres.dsn(database=name)
        asyncio.run(install.apply(dsn))
        admin.execute("CHECKPOINT")
        try:
            yield dsn
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def _copy_out(connection: psycopg.Connection[Any], file: Path) -> None:
    with file.open("wb") as out, connection.cursor().copy("COPY turns TO STDOUT") as copy:
        for piece in copy:
            out.write(piece)


def _copy_in(dsn: str, file: Path, rows: int) -> Reading:
    started, before_s = time.monotonic(), time.process_time()
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        with file.open("rb") as lines, cursor.copy("COPY turns FROM STDIN") as copy:
            while piece := lines.read(_PIECE_BYTES):
                copy.write(piece)
        copied = cursor.rowcount
    return Reading(COPY, rows, copied, time.monotonic() - started, time.process_time() - before_s)


def _restore(scene: Scene, dsn: str, rows: int) -> Reading:
    """The whole command, from its start to its end."""
    command = [sys.executable, "-c", _MAIN, "restore", "--config", str(scene.configuration), "--into", dsn, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(_CHECKOUT)}
    started, before_s = time.monotonic(), children_cpu_s()
    done = subprocess.run(command, cwd=_CHECKOUT, env=environment, stdout=subprocess.PIPE, check=True)
    seconds = time.monotonic() - started
    told = json.loads(done.stdout)
    return Reading(_RESTORE, rows, told["rows_copied"] + told["changes"], seconds, children_cpu_s() - before_s)


def check_equal(source: str, target: str, table: str) -> None:
    """Raises Unequal unless the table has the same rows in both databases, by count and checksum."""
    query = f"SELECT count(*), md5(string_agg(md5(t::text), '' ORDER BY id)) FROM {table} AS t"
    sums = []
    for dsn in (source, target):
        with psycopg.connect(dsn) as connection:
            sums.append(connection.execute(query.encode()).fetchone())
    if sums[0] != sums[1]:
        raise Unequal(f"{table} is {sums[1]} after the restore, and {sums[0]} at the source")
