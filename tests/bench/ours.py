"""Our own pass over the WAL: `cdc run` with both sinks on, until the archive on disk and the cache have all of it."""

import time
from pathlib import Path

from tests.bench.contenders import wait_active
from tests.bench.figures import Reading
from tests.bench.stack import SLOT, Scene
from tests.bench.subject import Subject, wait_until
from tests.bench.workloads import Written


def read_with_both_sinks(scene: Scene, written: Written, name: str, root: Path | None = None) -> Reading:
    """The clock stops when the later of the two sinks has the marker. Changes are counted in the archive."""
    scene.rewind()
    before = sum(header.changes for _, header in scene.segments())
    subject = scene.start(root)
    try:
        started = wait_active(scene.connection, SLOT, subject)
        cpu_before_s = subject.cpu_s()
        archived_at, cached_at = _follow(scene, written.marker_lsn, subject)
        cpu_s = subject.cpu_s() - cpu_before_s
        subject.stop()
    finally:
        subject.kill()
    changes = sum(header.changes for _, header in scene.segments()) - before
    return Reading(name, written.changes, changes, max(archived_at, cached_at) - started, cpu_s)


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
