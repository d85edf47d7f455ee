"""Runs `make simulate`: as many worlds as the budget allows, on every core, and the figures of them all.

CDC_SIMULATE_SEEDS    how many seeds (default 3000)
CDC_SIMULATE_FIRST    the first one (default 0)
CDC_SIMULATE_SECONDS  at most so long (default 600); the seeds done by then are the run
CDC_SIMULATE_JOBS     processes (default: one for each core)
CDC_SIMULATE_REPORT   a file for the figures, as JSON
CDC_SIMULATE_SEED     only this seed, with its trace

The exit code is 1 if any world broke a promise. Each such world is reported with the command that replays it.
"""

import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.simulation.story import Outcome, simulate
from tests.support.revision import revision

CHUNK = 25
_PROGRESS_S = 30.0
_SHOWN_LINES = 150
_SHOWN_FINDINGS = 5


def replay_command(outcome: Outcome) -> str:
    return f"CDC_SIMULATE_SEED={outcome.seed} make simulate"


def told(outcome: Outcome) -> str:
    """Report a seed that failed: its violation, the end of its trace, and the command that replays it."""
    lines = outcome.trace[-_SHOWN_LINES:]
    return "\n".join([f"seed {outcome.seed}: {outcome.violation}", *lines, f"again: {replay_command(outcome)}"])


@dataclass
class Figures:
    """The sums over many worlds. `findings` has the violation of each seed that broke a promise."""

    seeds: int = 0
    virtual_s: float = 0.0
    commits: int = 0
    puts: int = 0
    forks: int = 0
    gaps: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    findings: dict[int, str] = field(default_factory=dict)
    stories: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.virtual_s += outcome.virtual_s
        self.commits += outcome.commits
        self.puts += outcome.puts
        self.forks += outcome.forks
        self.gaps += outcome.gaps
        self.faults.update(outcome.faults)
        if outcome.violation:
            self.findings[outcome.seed] = outcome.violation
            self.stories.append(told(outcome))

    def merge(self, other: "Figures") -> None:
        for name in ("seeds", "virtual_s", "commits", "puts", "forks", "gaps"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.faults.update(other.faults)
        self.findings.update(other.findings)
        self.stories += other.stories

    def facts(self, elapsed_s: float) -> dict[str, Any]:
        """The figures under the names of the report; `elapsed_s` is the run's time."""
        return {
            "seeds": self.seeds,
            "findings": len(self.findings),
            "found": {str(seed): violation for seed, violation in sorted(self.findings.items())},
            "virtual_hours": round(self.virtual_s / 3600, 1),
            "commits": self.commits,
            "puts": self.puts,
            "failovers": self.faults["failover"],
            "forks": self.forks,
            "gaps": self.gaps,
            "kills": self.faults["kill"],
            "faults": self.faults.total(),
            "faults_by_kind": dict(sorted(self.faults.items())),
            "seconds": round(elapsed_s, 1),
            "ms_per_seed": round(elapsed_s * 1000 / max(1, self.seeds), 1),
        }


def live_through(chunk: range) -> Figures:
    """Simulate every seed of one portion, in the process that calls this."""
    figures = Figures()
    for seed in chunk:
        figures.add(simulate(seed))
    return figures


def shares(first: int, seeds: int, until: float) -> Iterator[range]:
    """Yield the seeds in small portions, until the time is up."""
    for begin in range(first, first + seeds, CHUNK):
        if time.monotonic() > until:
            return
        yield range(begin, min(begin + CHUNK, first + seeds))


def run(first: int, seeds: int, seconds: float, jobs: int) -> Figures:
    """Simulate the seeds in `jobs` processes, for at most `seconds`; a free process gets the next portion."""
    figures, until, told_at = Figures(), time.monotonic() + seconds, time.monotonic()
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        portions, waiting = shares(first, seeds, until), []
        for portion in portions:
            waiting.append(pool.apply_async(live_through, (portion,)))
            if len(waiting) > jobs:
                figures.merge(waiting.pop(0).get())
            if time.monotonic() - told_at > _PROGRESS_S:
                told_at = time.monotonic()
                print(
                    f"{figures.seeds} of {seeds} seeds, findings: {sorted(figures.findings)}",
                    file=sys.stderr,
                    flush=True,
                )
        for share in waiting:
            figures.merge(share.get())
    return figures


def _replay(seed: int) -> int:
    outcome = simulate(seed)
    print("\n".join(outcome.trace))
    print(f"seed={seed} digest={outcome.digest} {outcome.violation or 'every promise was kept'}")
    return int(bool(outcome.violation))


def _line(facts: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in facts.items() if not isinstance(value, dict))


def main() -> int:
    if "CDC_SIMULATE_SEED" in os.environ:
        return _replay(int(os.environ["CDC_SIMULATE_SEED"]))
    started, first = time.monotonic(), int(os.environ.get("CDC_SIMULATE_FIRST", "0"))
    origin = {"revision": revision(), "first_seed": first}
    figures = run(
        first,
        int(os.environ.get("CDC_SIMULATE_SEEDS", "3000")),
        float(os.environ.get("CDC_SIMULATE_SECONDS", "600")),
        int(os.environ.get("CDC_SIMULATE_JOBS", "0")) or os.cpu_count() or 1,
    )
    for story in figures.stories[:_SHOWN_FINDINGS]:
        print(story, end="\n\n")
    facts = figures.facts(time.monotonic() - started)
    print(" ".join(f"{kind}={count}" for kind, count in facts["faults_by_kind"].items()))
    print(_line(facts))
    for seed, violation in facts["found"].items():
        print(f"seed {seed}: {violation}   # CDC_SIMULATE_SEED={seed} make simulate")
    if report := os.environ.get("CDC_SIMULATE_REPORT"):
        Path(report).write_text(json.dumps(origin | facts, indent=2) + "\n")
    return int(bool(figures.findings))
