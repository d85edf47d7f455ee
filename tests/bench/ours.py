"""Our own pass over the WAL: `cdc run` with both sinks on, until the archive on disk and the cache have all of it."""

import time
from collections.abc import Mapping
from pathlib import Path

from tests.bench.contenders import wait_active
from tests.bench.figures import Reading
from tests.bench.stack import SLOT, Scene
from tests.bench.subject import Subject, cpu_s, wait_until
from tests.bench.workloads import Written


def read_with_both_sinks(
    scene: Scene,
    written: Written,
    name: str,
    root: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Reading:
    """The clock stops when the later of the two sinks has the marker. Changes are counted in the archive."""
    scene.rewind()
    before = sum(header.changes for _, header in scene.segments())
    subject = scene.start(root, environment)
    try:
        started = wait_active(scene.connection, SLOT, subject)
        pids = (subject.pid, scene.walsender_pid(), scene.stack.valkey.pid)
        before_s = [cpu_s(pid) for pid in pids]
        archived_at, cached_at = _follow(scene, written.marker_lsn, subject)
        spent_s = [cpu_s(pid) - spent for pid, spent in zip(pids, before_s, strict=True)]
        subject.stop()
    finally:
        subject.kill()
    changes = sum(header.changes for _, header in scene.segments()) - before
    seconds = max(archived_at, cached_at) - started
    return Reading(
        name,
        written.changes,
        changes,
        seconds,
        spent_s[0],
        walsender_cpu_s=spent_s[1],
        redis_cpu_s=spent_s[2],
    )


def _follow(scene: Scene, marker_lsn: int, subject: Subject) -> tuple[float, float]:
    """When the archive got the segment with the marker, and when the cache was seen to have it."""
    cached_at: list[float] = []
    seq = [0]

    def both_there() -> bool:
        if not cached_at and scene.cache_lsn() >= marker_lsn:
            cached_at.append(time.time())
        seq[0], header = scene.last_header(seq[0])
        return bool(cached_at) and header.covered_upto >= marker_lsn

    wait_until("archive and cache have all of the WAL", both_there, subject, poll_s=0.05)
    archived_at = next(at for at, header in scene.segments() if header.covered_upto >= marker_lsn)
    return archived_at, cached_at[0]
