"""Round after round until the budget is spent; a round with a finding keeps its evidence, and the next one begins."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from shutil import rmtree

from tests.faults.round import Result
from tests.faults.venue import can_mount
from tests.support.cdc_process import PROGRAM

ROOT = Path(__file__).parents[2]

# A round takes about so much longer than its faults: servers, catching up, the verdict.
_AROUND_S = 20.0
_SHORTEST_S = 10.0
# Beyond that it hangs, which is a finding too.
_PATIENCE_S = 420.0


@dataclass(frozen=True)
class Budget:
    """`seconds` for everything, `count` faults at most; rounds of `round_s`."""

    seconds: float
    count: int | None
    round_s: float
    seed: int

    @classmethod
    def from_environment(cls, *, share: float = 1.0) -> "Budget":
        count = os.environ.get("CDC_FAULTS_COUNT")
        return cls(
            seconds=float(os.environ.get("CDC_FAULTS_SECONDS", "600")) * share,
            count=int(count) if count else None,
            round_s=float(os.environ.get("CDC_FAULTS_ROUND_S", "75")),
            seed=int(os.environ.get("CDC_FAULTS_SEED", str(random.randrange(1_000_000)))),
        )


def run(budget: Budget, tell: Callable[[str], None]) -> list[Result]:
    """The results of all rounds. `tell` is given a line after each."""
    home = Path(tempfile.mkdtemp(prefix="waltier-faults-", dir="/tmp"))
    home.chmod(0o755)
    started_s = time.monotonic()
    results: list[Result] = []
    while True:
        left_s = budget.seconds - (time.monotonic() - started_s) - _AROUND_S
        most = None if budget.count is None else budget.count - sum(sum(one.faults.values()) for one in results)
        if results and (left_s < _SHORTEST_S or (most is not None and most <= 0)):
            break
        seed = budget.seed + len(results)
        seconds = max(_SHORTEST_S, min(budget.round_s, left_s))
        result = play_apart(seed, seconds, home / str(seed), most=most)
        results.append(result)
        tell(_line(len(results), result))
        if result.findings:
            tell("\n".join([f"  its evidence is in {home / str(seed)}", *result.findings]))
    if not any(home.iterdir()):
        home.rmdir()
    return results


def _line(number: int, result: Result) -> str:
    figures = result.figures
    return (
        f"round {number} seed={result.seed} seconds={result.seconds:.0f} faults={sum(result.faults.values())}"
        f" transactions={figures.get('transactions', 0)} rows={figures.get('changes', 0)}"
        f" caught_up_s={result.caught_up_s:.0f} findings={len(result.findings)} ({result.venue})"
    )


def play_apart(
    seed: int,
    seconds: float,
    directory: Path,
    *,
    most: int | None = None,
    kinds: Sequence[str] = (),
    program: str = PROGRAM,
) -> Result:
    """One round in a process and a session of its own. Its directory stays if it has findings."""
    directory.mkdir(parents=True)
    directory.chmod(0o755)
    command = [sys.executable, "-m", "tests.faults.round", "--seed", str(seed), "--seconds", str(seconds)]
    command += ["--directory", str(directory), "--program", program]
    command += ["--most", str(most)] if most is not None else []
    command += ["--kinds", ",".join(kinds)] if kinds else []
    if can_mount():
        command = ["unshare", "--mount", *command]
    ended = _run_in_session(command, directory / "round.log", seconds + _PATIENCE_S)
    result = _read_result(directory / "result.json")
    if result is None:
        last_words = (directory / "round.log").read_text(errors="replace")[-3000:]
        result = Result(seed, findings=[f"the round {ended}\n{last_words}"])
        (directory / "result.json").write_text(json.dumps(asdict(result)))
    if not result.findings:
        rmtree(directory, ignore_errors=True)
    return result


def _run_in_session(command: Sequence[str], log_file: Path, timeout_s: float) -> str:
    """How it ended. Nothing of its session outlives it; its servers end with it by a signal of their own."""
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        return f"ended with {process.wait(timeout_s)} and no result"
    except subprocess.TimeoutExpired:
        return f"was still not over after {timeout_s:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read_result(file: Path) -> Result | None:
    try:
        told = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return Result(**{one.name: told[one.name] for one in fields(Result)})
