"""The contenders that keep nothing: pg_recvlogical, a bare psycopg.pq loop, and the package pgoutput-decoder.

Each runs as a program of its own on its own copy of the slot, so that its CPU can be told from everybody else's.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psycopg

from cdc.lsn import format_lsn
from tests.bench.figures import Reading
from tests.bench.subject import children_cpu_s
from tests.bench.workloads import Written

_PATIENCE_S = 240
_PROGRAM_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Course:
    """What is to be read: all that was `written` after where the slot `start` stands."""

    bin_dir: Path
    dsn: str
    start: str
    publication: str
    written: Written


@contextmanager
def slot_copy(connection: psycopg.Connection[Any], start: str, name: str) -> Iterator[str]:
    """A slot that stands where `start` stands, dropped afterwards."""
    connection.execute("SELECT pg_copy_logical_replication_slot(%s::name, %s::name)", [start, name])
    try:
        yield name
    finally:
        drop_slot(connection, name)


def drop_slot(connection: psycopg.Connection[Any], name: str) -> None:
    """Drop the slot if it is there, once its consumer has let go of it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        row = connection.execute("SELECT active FROM pg_replication_slots WHERE slot_name = %s", [name]).fetchone()
        if row is None:
            return
        if not row[0]:
            connection.execute("SELECT pg_drop_replication_slot(%s)", [name])
            return
        time.sleep(0.02)
    raise TimeoutError(f"slot {name} is still in use")


class Running(Protocol):
    """A contender's process, as far as it must be watched."""

    def poll(self) -> int | None: ...


def wait_active(connection: psycopg.Connection[Any], slot: str, process: Running) -> float:
    """The wall-clock time at which the slot's walsender was first seen, in seconds."""
    query = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s"
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        row = connection.execute(query, [slot]).fetchone()
        if row is not None and row[0] is not None:
            return time.time()
        time.sleep(0.002)
    raise TimeoutError(f"nobody read slot {slot}")


def _run(command: list[str], connection: psycopg.Connection[Any], slot: str) -> tuple[float, float, bytes]:
    """Seconds from the slot's activation to the program's end, its CPU seconds, its output."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=_PROGRAM_ROOT)
    try:
        started = wait_active(connection, slot, process)
        output, errors = process.communicate(timeout=_PATIENCE_S)
        seconds = time.time() - started
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode:
        last_line = (errors.decode(errors="replace").strip().splitlines() or [f"exit {process.returncode}"])[-1]
        raise RuntimeError(last_line)
    return seconds, 0.0, output


def _timed(command: list[str], connection: psycopg.Connection[Any], slot: str) -> tuple[float, float, bytes]:
    before = children_cpu_s()
    seconds, _, output = _run(command, connection, slot)
    return seconds, children_cpu_s() - before, output


def pg_recvlogical(connection: psycopg.Connection[Any], course: Course) -> Reading:
    """Postgres's own client, writing to /dev/null: the walsender's own limit. It counts as having read what its slot
    has passed, because it confirms what it has written."""
    name = "pg_recvlogical -f /dev/null"
    with slot_copy(connection, course.start, "bench_recvlogical") as slot:
        command = [str(course.bin_dir / "pg_recvlogical"), "--start", "-d", course.dsn, "-S", slot, "-f", "/dev/null"]
        command += ["-o", "proto_version=1", "-o", f"publication_names={course.publication}", "-o", "messages=true"]
        command += ["--endpos", format_lsn(course.written.end_lsn), "--no-loop"]
        try:
            seconds, cpu_s, _ = _timed(command, connection, slot)
        except (OSError, RuntimeError, TimeoutError) as error:
            return Reading(name, course.written.changes, 0, 0, error=str(error))
        passed = connection.execute(
            "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s",
            [format_lsn(course.written.end_lsn), slot],
        ).fetchone()
    complete = passed is not None and passed[0]
    return Reading(name, course.written.changes, course.written.changes if complete else 0, seconds, cpu_s)


def bare_loop(connection: psycopg.Connection[Any], course: Course) -> Reading:
    name = "bare psycopg.pq loop"
    with slot_copy(connection, course.start, "bench_bare") as slot:
        command = [sys.executable, "-m", "tests.bench.bare", course.dsn, slot, course.publication]
        command += [format_lsn(course.written.marker_lsn)]
        return _counted(name, course.written.changes, command, connection, slot)


def pgoutput_decoder(connection: psycopg.Connection[Any], course: Course, changes: int) -> Reading:
    """Reads only the first `changes` of the course: it is too slow for all of it."""
    name = "pgoutput-decoder 0.1.0"
    wanted = min(changes, course.written.changes)
    info = connection.info
    with slot_copy(connection, course.start, "bench_decoder") as slot:
        command = [sys.executable, "-m", "tests.bench.decoder", info.host, str(info.port), info.user, info.dbname]
        return _counted(name, wanted, [*command, slot, course.publication, str(wanted)], connection, slot)


def _counted(name: str, expected: int, command: list[str], connection: psycopg.Connection[Any], slot: str) -> Reading:
    try:
        _, cpu_s, output = _timed(command, connection, slot)
        counted = json.loads(output)
    except (OSError, RuntimeError, TimeoutError, ValueError, subprocess.TimeoutExpired) as error:
        return Reading(name, expected, 0, 0, error=str(error))
    return Reading(name, expected, counted["changes"], counted["seconds"], cpu_s)
