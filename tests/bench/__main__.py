"""`make bench`: one run, on one machine, of everything that we have set a figure for. Writes docs/benchmarks.md.

1. compile a copy of the package, if a C compiler is there;
2. for each workload: the same WAL for every contender, repetitions interleaved;
3. everyday life: an idle minute, steady traffic, one large transaction: PUTs, latency, memory;
4. restore, of a snapshot's rows and of the log's, beside COPY of the same rows;
5. the verdicts, and the document.
"""

import datetime
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import psycopg
from redis import Redis

from cdc import log
from cdc.archive.format.encryption import generate_key
from tests.bench import restore
from tests.bench.compiled import compile_copy
from tests.bench.contenders import Course, bare_loop, pg_recvlogical, pgoutput_decoder
from tests.bench.everyday import Idle, Large, Traffic, measure_idle, measure_large_transaction, measure_traffic
from tests.bench.figures import Figure, Findings, Machine, Reading, Standing, percentile, standings
from tests.bench.ours import read_with_both_sinks
from tests.bench.sizes import Sizes, read_sizes
from tests.bench.stack import PUBLICATION, SMALL_PROJECTIONS, START_SLOT, Scene, Stack, open_stack
from tests.bench.table import render
from tests.bench.workloads import SMALL, TURNS, WORKLOADS, Workload

_DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"
_YARDSTICK, _OURS, _COMPILED = "pg_recvlogical -f /dev/null", "waltier, both sinks", "waltier, both sinks, compiled"
_ENCRYPTED = "waltier, both sinks, encrypted to two keys"
_MIB = 1024 * 1024

_TITLES = {
    "small": "small: three columns, one to three rows a transaction",
    "turns": "turns: chat rows, three a transaction",
}


def main() -> int:
    log.to_stderr("warning")
    sizes = read_sizes()
    directory = Path(tempfile.mkdtemp(prefix="waltier-bench-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        with open_stack(directory) as stack:
            findings = _measure(stack, sizes)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    _DOCUMENT.parent.mkdir(exist_ok=True)
    _DOCUMENT.write_text(render(findings))
    print(f"\nwritten: {_DOCUMENT.name}\n\n{_DOCUMENT.read_text()}")
    return 0


def _measure(stack: Stack, sizes: Sizes) -> Findings:
    findings = Findings(datetime.date.today().isoformat(), _machine(stack), asdict(sizes))
    compiled = _compile(stack.directory, findings) if sizes.compiled else None
    for workload in WORKLOADS:
        readings = _race(stack, workload, sizes, compiled)
        findings.workloads[_TITLES[workload.name]] = standings(readings)
        findings.figures += _race_figures(workload, findings.workloads[_TITLES[workload.name]])
    findings.figures += _everyday(stack, sizes)
    _say("restoring ...")
    findings.restores = restore.restore_tables(stack, sizes)
    findings.figures += restore.figures(findings.restores)
    findings.notes += _notes(sizes)
    return findings


def _say(text: str) -> None:
    print(text, flush=True)


def _compile(directory: Path, findings: Findings) -> Path | None:
    _say("compiling the pure rooms ...")
    try:
        return compile_copy(directory)
    except (RuntimeError, OSError) as error:
        findings.notes.append(f"Nothing could be compiled: {error}")
        return None


def _race(stack: Stack, workload: Workload, sizes: Sizes, compiled: Path | None) -> list[Reading]:
    scene = Scene(stack, workload.name, SMALL_PROJECTIONS if workload is SMALL else "")
    if workload.prepare:
        scene.connection.execute(workload.prepare.encode())
    scene.begin()
    _say(f"{workload.name}: writing {sizes.changes:,} changes ...")
    written = workload.write(scene.connection, sizes.changes)
    course = Course(stack.postgres.bin_dir, scene.dsn, START_SLOT, PUBLICATION, written)
    readings: list[Reading] = []
    for repetition in range(sizes.repetitions):
        for contend in _contenders(scene, course, sizes, compiled, first=repetition == 0):
            reading = contend()
            readings.append(reading)
            _say(f"  {reading.contender}: {reading.failure or f'{reading.rate:,.0f} changes/s'}")
    scene.end()
    return readings


def _contenders(
    scene: Scene, course: Course, sizes: Sizes, compiled: Path | None, *, first: bool
) -> list[Callable[[], Reading]]:
    """One repetition. The slow one runs only in the first."""
    connection, written = scene.connection, course.written
    contenders: list[Callable[[], Reading]] = [
        partial(pg_recvlogical, connection, course),
        partial(bare_loop, connection, course),
        partial(read_with_both_sinks, scene, written, _OURS),
    ]
    if compiled is not None:
        contenders.append(partial(read_with_both_sinks, scene, written, _COMPILED, compiled))
    if scene.name == TURNS.name:
        contenders.append(partial(read_with_both_sinks, scene, written, _ENCRYPTED, None, _encryption()))
    if first:
        contenders.append(partial(pgoutput_decoder, connection, course, sizes.decoder_changes))
    return contenders


def _encryption() -> dict[str, str]:
    """Two new keys, one of them the service's own."""
    (box, private), (safe, _) = generate_key(), generate_key()
    return {"CDC_ARCHIVE__RECIPIENTS": json.dumps([box, safe]), "CDC_ARCHIVE__IDENTITY": private}


def _race_figures(workload: Workload, found: list[Standing]) -> list[Figure]:
    by_name = {standing.contender: standing for standing in found if not standing.failure}
    yardstick = by_name.get(_YARDSTICK)
    figures = []
    for name, target_cpu_s in ((_OURS, 10), (_COMPILED, 4)):
        ours = by_name.get(name)
        if ours is None:
            continue
        kind = "compiled" if name == _COMPILED else "interpreted"
        if yardstick is not None:
            ratio = ours.ratio_to(yardstick)
            what = f"throughput with both sinks, {workload.name}, {kind}, against pg_recvlogical"
            figures.append(Figure(what, f"{ratio:.2f} ({ours.rate:,.0f} changes/s)", ">= 0.95", ratio >= 0.95))
        figures.append(_cpu_figure(workload, ours, kind, target_cpu_s))
        walsender_s, redis_s = ours.neighbours_cpu_s_per_million
        others = f"walsender {walsender_s:.1f} s, Redis {redis_s:.1f} s"
        figures.append(Figure(f"the servers' CPU per million changes meanwhile, {workload.name}, {kind}", others))
    encrypted, plain = by_name.get(_ENCRYPTED), by_name.get(_OURS)
    if encrypted is not None and plain is not None:
        what = f"throughput with an encrypted archive, {workload.name}, against the same without"
        figures.append(Figure(what, f"{encrypted.ratio_to(plain):.2f} ({encrypted.rate:,.0f} changes/s)"))
    return figures


def _cpu_figure(workload: Workload, ours: Standing, kind: str, target_s: float) -> Figure:
    """Our figure is for small changes."""
    spent_s = ours.cpu_s_per_million or 0.0
    what = f"our CPU per million changes, {workload.name}, {kind}"
    if workload is not SMALL:
        return Figure(what, f"{spent_s:.1f} s")
    return Figure(what, f"{spent_s:.1f} s", f"<= {target_s:.0f} s", spent_s <= target_s)


def _everyday(stack: Stack, sizes: Sizes) -> list[Figure]:
    scene = Scene(stack, "chat")
    subject = scene.start()
    try:
        scene.wait_streaming(subject)
        _say(f"idle for {sizes.idle_s} s ...")
        idle = measure_idle(scene, subject, sizes.idle_s)
        _say(f"latency: {sizes.latency_rate} transactions a second for {sizes.latency_s} s ...")
        traffic = measure_traffic(scene, subject, sizes.latency_rate, sizes.latency_s)
        _say(f"one transaction of {sizes.transaction_rows:,} rows ...")
        large = measure_large_transaction(scene, subject, sizes.transaction_rows)
        subject.stop()
    finally:
        subject.kill()
    scene.end()
    return [*_traffic_figures(traffic), *_bucket_figures(traffic, idle), *_memory_figures(traffic, large)]


def _traffic_figures(traffic: Traffic) -> list[Figure]:
    rate = traffic.transactions / traffic.seconds
    cache_ms = [percentile(traffic.to_cache_s, percent) * 1000 for percent in (50, 99)]
    archive_s = [percentile(traffic.to_archive_s, percent) for percent in (50, 99)]
    return [
        Figure(
            f"commit → visible in Redis, {rate:.0f} tx/s",
            f"p50 {cache_ms[0]:.1f} ms, p99 {cache_ms[1]:.1f} ms",
            "p50 <= 2 ms, p99 <= 10 ms",
            cache_ms[0] <= 2 and cache_ms[1] <= 10,
        ),
        Figure(
            f"commit → durable in the archive, {rate:.0f} tx/s",
            f"p50 {archive_s[0]:.2f} s, p99 {archive_s[1]:.2f} s",
            "<= linger (1 s) + 2 PUTs",
            archive_s[1] <= 1.2,
        ),
        Figure(f"our CPU at {rate:.0f} tx/s", f"{traffic.cpu_s / traffic.seconds:.0%} of a core"),
    ]


def _bucket_figures(traffic: Traffic, idle: Idle) -> list[Figure]:
    per_linger = traffic.segments / (traffic.seconds + 1)
    per_minute = idle.puts / idle.seconds * 60
    return [
        Figure("PUTs per linger (1 s) under traffic", f"{per_linger:.2f}", "<= 1", per_linger <= 1.05),
        Figure(f"PUTs when idle ({idle.seconds} s)", f"{per_minute:.1f} a minute", "<= 1 a minute", per_minute <= 1),
    ]


def _memory_figures(traffic: Traffic, large: Large) -> list[Figure]:
    steady, peak = traffic.peak_bytes / _MIB, large.peak_bytes / _MIB
    what = f"memory through one transaction of {large.rows:,} rows ({large.seconds:.0f} s from commit to both sinks)"
    return [
        Figure("memory, steady (peak RSS)", f"{steady:.0f} MiB", "<= 150 MiB", steady <= 150),
        Figure(what, f"{peak:.0f} MiB", "<= 256 MiB", peak <= 256),
    ]


def _notes(sizes: Sizes) -> list[str]:
    return [
        "Latency starts when COMMIT returns to the application, over a connection of its own. It ends, for Redis, when "
        "a subscriber in another process has read Redis's own notification that the turn's key was set; for the "
        "archive, when the segment that holds the turn got its name in the directory. Every transaction counts; one "
        "that never arrives fails the measurement.",
        "CPU is user and system time of the `cdc run` process with all its threads, from the walsender's start to the "
        "end of the WAL; for other contenders that of their whole process.",
        f"pgoutput-decoder reads the first {sizes.decoder_changes:,} changes of the same WAL, because it is too slow "
        "for all of it; what it reads, it does not keep.",
        "Memory is the kernel's own peak (VmHWM); it is begun again before the large transaction.",
        "Our throughput includes the last linger: up to a second in which the archive waits for more.",
    ]


def _machine(stack: Stack) -> Machine:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in facts if line.startswith("model name")), "")
    with psycopg.connect(stack.postgres.dsn()) as connection, Redis.from_url(stack.valkey.url) as cache:
        row = connection.execute("SHOW server_version").fetchone()
        info: dict[str, object] = cache.info("server")
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        memory_gib=memory_bytes / 1024**3,
        processor=model or platform.machine(),
        python=platform.python_version(),
        postgres=row[0] if row else "",
        redis=_redis_version(info),
    )


def _redis_version(info: dict[str, object]) -> str:
    name = str(info.get("server_name", "redis")).capitalize()
    return f"{name} {info.get(f'{name.lower()}_version', info.get('redis_version', ''))}"


if __name__ == "__main__":
    sys.exit(main())
