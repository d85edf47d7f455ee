"""The service in everyday life: latencies at a steady rate, memory, and what it asks of the bucket.

All on one run of `cdc run`, in this order: nothing at all, steady traffic, one transaction of a million rows.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cdc.archive.format.object_key import HINT_KEY, log_key
from cdc.archive.format.segment import decode_segment
from tests.bench.stack import Scene
from tests.bench.subject import Subject, wait_until

_ROOT = Path(__file__).parents[2]
_SETTLE_S = 5
_IDLE_MINUTE_S = 90
_LARGE_TRANSACTION = """
INSERT INTO turns (domain, channel, session_hash, role, content)
SELECT 'support', 'web', 'session-' || n / 50, 'user', 'turn ' || n || repeat(' some words of a chat', 5)
FROM generate_series(1, {rows}) AS n
"""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Seconds from COMMIT's return to each sink, for every transaction; both may be a little below zero."""

    transactions: int
    seconds: float
    to_cache_s: list[float]
    to_archive_s: list[float]
    segments: int
    cpu_s: float
    peak_bytes: int


def measure_traffic(scene: Scene, subject: Subject, rate: int, seconds: int) -> Traffic:
    """Steady traffic. Raises RuntimeError if a transaction never arrived: it would be missing from the latencies."""
    first_seq, _ = scene.last_header()
    cpu_before_s = subject.cpu_s()
    with _watching(scene.stack.valkey.port) as visible:
        commits = _times(_run("tests.bench.traffic", scene.dsn, str(rate), str(seconds)))
        cpu_s = subject.cpu_s() - cpu_before_s
        # Longer than the linger and a PUT: what is not there then counts as lost, below.
        time.sleep(_SETTLE_S)
        subject.check_running()
    last_seq, _ = scene.last_header(first_seq)
    durable = _durable_times(scene, range(first_seq + 1, last_seq + 1))
    if not commits.keys() <= visible.keys() or not commits.keys() <= durable.keys():
        raise RuntimeError(f"{len(commits)} committed, {len(visible)} seen in Redis, {len(durable)} in the archive")
    return Traffic(
        transactions=len(commits),
        seconds=max(commits.values()) - min(commits.values()),
        to_cache_s=[visible[turn_id] - at for turn_id, at in commits.items()],
        to_archive_s=[durable[turn_id] - at for turn_id, at in commits.items()],
        segments=last_seq - first_seq,
        cpu_s=cpu_s,
        peak_bytes=subject.peak_bytes(),
    )


def _run(module: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=_ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def _times(printed: str) -> dict[str, float]:
    return {turn_id: float(at) for turn_id, at in (line.split() for line in printed.splitlines())}


@contextmanager
def _watching(port: int) -> Iterator[dict[str, float]]:
    """Times by turn, filled in when the block is left."""
    seen: dict[str, float] = {}
    command = [sys.executable, "-m", "tests.bench.watcher", str(port)]
    process = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield seen
        process.send_signal(signal.SIGTERM)
        seen |= _times(process.communicate(timeout=60)[0])
    finally:
        process.kill()
        process.wait()


def _durable_times(scene: Scene, seqs: range) -> dict[str, float]:
    """The time at which the segment with each turn got its name, by turn."""
    durable: dict[str, float] = {}
    for seq in seqs:
        path = scene.archive / log_key(seq)
        at = path.stat().st_ctime
        for line in decode_segment(path.read_bytes()).lines:
            _, found, rest = line.partition(b'"turn_id":"')
            if found:
                durable[rest[:36].decode()] = at
    return durable


@dataclass(frozen=True, slots=True)
class Idle:
    """PUTs of any kind in so many seconds, while WAL is written that has nothing for us."""

    puts: int
    seconds: float


def measure_idle(scene: Scene, subject: Subject, seconds: int) -> Idle:
    """Nothing published is written; another table is, once a second, as in any database.

    It counts from an idle minute's end on: of PUTs a minute apart, any other so many seconds may hold one more.
    """
    scene.connection.execute("CREATE TABLE IF NOT EXISTS public.unpublished (at timestamptz)")
    last, _ = scene.last_header()
    deadline = time.monotonic() + _IDLE_MINUTE_S
    while scene.last_header(last)[0] == last and time.monotonic() < deadline:
        _idle_a_second(scene, subject)
    _idle_a_second(scene, subject)
    before, _ = scene.last_header(last)
    hints = set[int]()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        hints |= _idle_a_second(scene, subject)
    after, _ = scene.last_header(before)
    return Idle(after - before + len(hints) - 1, seconds)


def _idle_a_second(scene: Scene, subject: Subject) -> set[int]:
    """The inodes that the hint had meanwhile: a new one for each PUT."""
    scene.connection.execute("INSERT INTO public.unpublished VALUES (now())")
    hints = set()
    for _ in range(10):
        hints.add(_inode(scene.archive / HINT_KEY))
        time.sleep(0.1)
    subject.check_running()
    return hints


def _inode(path: Path) -> int:
    return path.stat().st_ino if path.exists() else 0


@dataclass(frozen=True, slots=True)
class Large:
    """One transaction of so many rows: the most memory through it, and how long it took from COMMIT to both sinks."""

    rows: int
    peak_bytes: int
    seconds: float


def measure_large_transaction(scene: Scene, subject: Subject, rows: int) -> Large:
    before, _ = scene.last_header()
    subject.forget_peak()
    scene.connection.execute(_LARGE_TRANSACTION.format(rows=rows).encode())
    committed = time.monotonic()
    lsn = scene.wal_position()
    # Something published behind it, so that nobody waits for the coverage of idle WAL.
    scene.connection.execute("INSERT INTO outbox (event_type, idempotency_key, payload) VALUES ('end', 'end', '{}')")
    seq = [before]

    def both_there() -> bool:
        seq[0], header = scene.last_header(seq[0])
        return header.covered_upto >= lsn and scene.cache_lsn() >= lsn

    wait_until("both sinks have the large transaction", both_there, subject, timeout_s=600, poll_s=0.2)
    seconds = time.monotonic() - committed
    changes = sum(header.changes for _, header in scene.segments()[before + 1 :] if header.part is not None)
    if changes != rows:
        raise RuntimeError(f"{changes} changes archived of {rows}")
    return Large(rows, subject.peak_bytes(), seconds)
