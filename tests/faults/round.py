"""One round: a fresh stage, the load, the nemesis; then everything heals, catches up, and is judged.

`python -m tests.faults.round --seed N --seconds S --directory D` plays one and leaves its result as D/result.json. A
round has a process of its own, so that whatever hangs or leaks ends with it.

1. Servers, witness, one service; it catches up with an empty database.
2. For so many seconds the load and the nemesis; the samplers look on.
3. Healing. Where columns were added, every row is written once more, because Postgres itself told nobody about the old
   ones. Then the service must catch up, and end with 0.
4. The verdict: archive, replay and cache against the witness and the tables; each read of the cache against what was
   committed; random moments, restored, against what they were.
"""

import argparse
import json
import random
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psycopg

from tests.faults.checker import TABLES, check
from tests.faults.nemesis import Nemesis
from tests.faults.objects import read_archive
from tests.faults.reads import check_reads
from tests.faults.restore_points import Moments, check_restores
from tests.faults.stage import Stage
from tests.faults.trouble import Findings
from tests.faults.venue import choose_venue
from tests.faults.watch import SteadyWitness, acknowledgement_watch
from tests.faults.workload import Workload
from tests.support.cdc_process import PROGRAM, confirmed_flush_lsn, mark

WRITERS = 16
_RATE = 70
_CATCH_UP_S = 180.0
# Restored at the end of a round; a run has many rounds.
_MOMENTS = 3
_POLL_S = 0.1


@dataclass
class Result:
    """`figures` are the checker's; `findings` what was wrong."""

    seed: int
    venue: str = ""
    seconds: float = 0.0
    caught_up_s: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    committed: dict[str, int] = field(default_factory=dict)
    figures: dict[str, int] = field(default_factory=dict)
    starts: int = 0
    exits: dict[str, int] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)


def play(
    seed: int,
    seconds: float,
    directory: Path,
    *,
    most: int | None = None,
    kinds: Sequence[str] = (),
    program: str = PROGRAM,
) -> Result:
    """Whatever goes wrong is a finding; nothing is raised but what ends us."""
    started_s = time.monotonic()
    dice = random.Random(seed)
    venue = choose_venue(dice)
    result = Result(seed, str(venue))
    findings = Findings()
    try:
        stage = Stage(directory, venue, program=program)
        findings = stage.findings
        with stage:
            _play(stage, Nemesis(stage, dice, most=most, only=kinds), seconds, result)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # pytest.fail is none of Exception
        findings.add(f"the round failed: {type(error).__name__}: {error}", traceback.format_exc())
    result.findings = findings.all()
    result.seconds = time.monotonic() - started_s
    return result


def _play(stage: Stage, nemesis: Nemesis, seconds: float, result: Result) -> None:
    witness = SteadyWitness(stage.dsn, TABLES)  # 1
    wait_until_caught_up(stage)
    acknowledgements = acknowledgement_watch(stage.dsn, stage.tail)
    moments = Moments(stage.dsn, limit=_MOMENTS, mean_pause_s=seconds / _MOMENTS / 2, seed=result.seed)
    load = Workload(
        stage.dsn,
        seed=result.seed,
        writers=WRITERS,
        rate=_RATE,
        large_rows=1000,
        bulk_every_s=max(10.0, seconds / 3),
        truncate_turns_every_s=seconds * random.Random(result.seed).uniform(0.5, 3),
    )
    try:
        with acknowledgements, stage.cache_watch, witness:  # 2
            with load, moments:
                nemesis.haunt(seconds)
            stage.heal()  # 3
            if stage.rewritten:
                _write_every_row(stage)
            result.caught_up_s = wait_until_caught_up(stage)
        stage.crew.stop()
        _judge(stage, witness, moments, result)  # 4
    finally:
        for finding in acknowledgements.findings[:5]:
            stage.findings.add(finding)
        result.faults, result.missed = dict(nemesis.counts), dict(nemesis.missed)
        result.committed = dict(load.committed)
        result.starts, result.exits = stage.crew.starts, dict(stage.crew.exits)
        result.samples = {"acknowledgements": acknowledgements.looks, "cache": stage.cache_watch.looks}
        if stage.findings.all():
            stage.keep_objects()


def _write_every_row(stage: Stage) -> None:
    stage.query("UPDATE turns SET redaction_version = redaction_version + 1")
    stage.query("UPDATE outbox SET event_type = event_type")


def wait_until_caught_up(stage: Stage) -> float:
    """Both sinks hold everything that was committed before this call; how long that took."""
    started_s = time.monotonic()
    target = mark(stage.dsn)
    while not _has_caught_up(stage, target):
        if stage.crew.given_up or time.monotonic() - started_s > _CATCH_UP_S:
            stage.findings.add("nothing is wrong any more, and the service does not catch up", _where(stage, target))
            break
        time.sleep(_POLL_S)
    return time.monotonic() - started_s


def _has_caught_up(stage: Stage, target: int) -> bool:
    try:
        return confirmed_flush_lsn(stage.dsn) >= target and stage.crew.main.cached_lsn() >= target
    except psycopg.OperationalError:
        return False


def _where(stage: Stage, target: int) -> str:
    confirmed, cached = confirmed_flush_lsn(stage.dsn), stage.crew.main.cached_lsn()
    return f"wanted {target:X}, acknowledged {confirmed:X}, cached {cached:X}\n{stage.crew.main.log_tail(15)}"


def _judge(stage: Stage, witness: SteadyWitness, moments: Moments, result: Result) -> None:
    objects, told = stage.objects(), witness.transactions()
    verdict = check(stage.dsn, objects, stage.cache_url, told, breaks_are_told=stage.promoted)
    result.figures = verdict.figures
    findings = verdict.findings + moments.findings
    if read_archive(objects).gaps:
        findings.append("the archive records a gap, and no slot was lost")
    # A column that is added changes how a row of before prints, and no version of it was ever committed so.
    if not stage.rewritten:
        findings += [finding for reads in stage.cache_watch.eras for finding in check_reads(reads, told)[:5]]
        result.figures["cache_reads"] = sum(reads.count for reads in stage.cache_watch.eras)
        config, environment = stage.crew.main.config_file, stage.s3.environment
        restored, wrong = check_restores(
            stage.dsn, config, moments.taken, told, read_archive(objects), limit=_MOMENTS, environment=environment
        )
        result.figures["restores"] = restored
        findings += wrong
    for finding in findings:
        stage.findings.add(finding)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--seed", type=int, required=True)
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--most", type=int)
    options.add_argument("--directory", type=Path, required=True)
    options.add_argument("--kinds", default="", help="only these, with commas")
    options.add_argument("--program", default=PROGRAM)
    chosen = options.parse_args()
    chosen.directory.mkdir(parents=True, exist_ok=True)
    chosen.directory.chmod(0o755)
    kinds = [kind for kind in chosen.kinds.split(",") if kind]
    result = play(chosen.seed, chosen.seconds, chosen.directory, most=chosen.most, kinds=kinds, program=chosen.program)
    (chosen.directory / "result.json").write_text(json.dumps(asdict(result), indent=1))


if __name__ == "__main__":
    main()
