"""What a run of faults amounts to: a table, a JSON report, and, with the simulation's report, docs/reliability.md.

    python -m tests.faults.report --faults faults.json [more.json] --simulation simulation.json > docs/reliability.md

The reports are written by `CDC_FAULTS_REPORT=faults.json make faults` and
`CDC_SIMULATE_REPORT=simulation.json make simulate`. Of the simulation's, whatever fields are there are printed.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.faults.campaign import Budget
from tests.faults.kinds import KINDS
from tests.faults.round import Result
from tests.faults.venue import missing
from tests.support.revision import revision

Report = dict[str, Any]

_SUMMED = ("transactions", "changes", "segments", "writers", "keys", "sessions", "cache_reads", "restores")


def summarise(budget: Budget, results: Sequence[Result], seconds: float) -> Report:
    faults, missed, exits = Counter[str](), Counter[str](), Counter[str]()
    figures, samples, committed = Counter[str](), Counter[str](), Counter[str]()
    for result in results:
        faults.update(result.faults)
        missed.update(result.missed)
        exits.update(result.exits)
        samples.update(result.samples)
        committed.update(result.committed)
        figures.update({name: result.figures.get(name, 0) for name in _SUMMED})
    return {
        "commit": revision(),
        "seed": budget.seed,
        "rounds": len(results),
        "seconds": round(seconds),
        "faults": dict(sorted(faults.items())),
        "faults_total": faults.total(),
        "kinds": len(faults),
        "impossible_just_then": dict(sorted(missed.items())),
        "not_tried": missing() | {name: "its dice never fell" for name in KINDS if name not in faults},
        "venues": dict(Counter(result.venue for result in results)),
        "transactions": figures["transactions"],
        "rows": figures["changes"],
        "segments": figures["segments"],
        "writers": figures["writers"],
        "cache_reads": figures["cache_reads"],
        "restores": figures["restores"],
        "workload": dict(sorted(committed.items())),
        "starts": sum(result.starts for result in results),
        "exits": dict(sorted(exits.items())),
        "samples": dict(sorted(samples.items())),
        "longest_catch_up_s": round(max((result.caught_up_s for result in results), default=0.0), 1),
        "findings": [f"seed {result.seed}: {finding}" for result in results for finding in result.findings],
        "rounds_with_findings": [asdict(result) for result in results if result.findings],
    }


def together(reports: Sequence[Report]) -> Report:
    """Several runs as one: what is counted is added up. `parts` are the seeds and commits of each."""
    first, *others = reports
    if not others:
        return first
    whole = dict(first)
    for name, value in first.items():
        values = [report[name] for report in reports]
        if isinstance(value, list):
            whole[name] = [one for some in values for one in some]
        elif name in ("commit", "seed", "longest_catch_up_s"):
            whole[name] = max(values)
        elif name == "not_tried":
            whole[name] = {kind: why for kind, why in value.items() if all(kind in some for some in values)}
        elif isinstance(value, dict):
            whole[name] = dict(sorted(sum((Counter(some) for some in values), Counter[str]()).items()))
        else:
            whole[name] = sum(values)
    return whole | {"kinds": len(whole["faults"]), "parts": [_part(report) for report in reports]}


def _part(report: Report) -> str:
    return f"{report['seed']} to {report['seed'] + report['rounds'] - 1} at `{report['commit']}`"


def table(report: Report) -> str:
    """For a terminal."""
    rows = [(kind, count) for kind, count in report["faults"].items()]
    rows += [("faults", report["faults_total"]), ("kinds", report["kinds"]), ("rounds", report["rounds"])]
    rows += [
        (name, report[name])
        for name in ("transactions", "rows", "segments", "writers", "cache_reads", "restores", "starts")
    ]
    rows += [(f"exit {code}", count) for code, count in report["exits"].items()]
    rows += [(f"samples of {name}", count) for name, count in report["samples"].items()]
    rows += [("longest catch-up, s", report["longest_catch_up_s"]), ("seconds", report["seconds"])]
    rows += [("findings", len(report["findings"]))]
    lines = [f"{name:36} {count:>12,}" for name, count in rows]
    lines += [f"not tried: {name}: {why}" for name, why in report["not_tried"].items()]
    return "\n".join(lines)


_PAGE = """\
# Reliability

The figures are written by `python -m tests.faults.report` from the reports of two runs; do not edit them. The README's
promises P1 to P8 are what is attacked. A run that finds something is red, and what it found was mended before the next.

## What is proved, and how

**The simulation** (`make simulate`) runs the production service against models of Postgres, bucket and Redis, with a
virtual clock and seeded faults. It reaches orders of events that real processes meet once in a million, and a seed
replays exactly. It must find planted bugs, each by its own symptom (`tests/simulation/test_simulation.py`).

**The nemesis** (`make faults`) torments real processes: `cdc run`, Postgres, Valkey or Redis, and a bucket that refuses
what R2 refuses. Sixteen writers do what an application does: inserts, small updates, updates that leave long values
alone, changed keys, deletes, savepoints and rollbacks, transactions over both tables, transactions of 50,000 rows,
TRUNCATE; other sessions change tables and keep transactions open. Rounds of a minute end with healing; then the service
must catch up by itself, and a checker that shares no code with it compares

- the archive with an independent witness, a `test_decoding` slot: lost, doubled, reordered, torn, altered, invented;
- the archive, replayed from its base, with the tables, and the cache with the tables, key by key;
- during the round, the slot's `confirmed_flush_lsn` with what the archive held, and each read of the cache with the
  versions that were committed, and with what was read before;
- moments taken at random during the round with what `cdc restore --to-lsn` gives back;
- every end of the service with the one that was due (0, or 75 for a zombie), and its log with what is no bug.

What it does not do: lose what a primary had committed (it promotes without a loss; the simulation, `test_failover.py`
and `test_exceptions.py` of `tests/acceptance` lose tails), or fill the disk of Postgres, which ends Postgres
(`test_disk_full.py` does). What it must do is find bugs: `tests/acceptance/test_nemesis.py` plants some in the service.
Each kind of fault is a few lines in `tests/faults/kinds`.
"""

_AGAIN = """\
## Again

```sh
CDC_FAULTS_SECONDS=2700 CDC_FAULTS_REPORT=faults.json make faults         # CDC_FAULTS_SEED, _COUNT, _ROUND_S, _KILLS
CDC_SIMULATE_SEEDS=100000 CDC_SIMULATE_REPORT=simulation.json make simulate
.venv/bin/python -m tests.faults.report --faults faults.json --simulation simulation.json > docs/reliability.md
```

A seed of the nemesis repeats the choice of servers, and the kinds, lengths and order of the faults. What they meet
depends on threads and processes; a round with a finding therefore keeps its directory: logs, data and objects.
"""


def page(faults: Report | None, simulation: Report | None) -> str:
    """docs/reliability.md."""
    parts = [_PAGE, "## Figures\n"]
    parts.append(_faults_section(faults) if faults else "The nemesis: no run was reported.\n")
    parts.append(_simulation_section(simulation) if simulation else "The simulation: no run was reported.\n")
    return "\n".join([*parts, _AGAIN])


def _faults_section(report: Report) -> str:
    rows: dict[str, Any] = {
        "seeds, one a round, and commit": "; ".join(report.get("parts", [_part(report)])),
        "duration": f"{report['seconds'] / 60:.0f} minutes",
        "faults": f"{report['faults_total']:,} of {report['kinds']} kinds",
        "committed transactions": report["transactions"],
        "changed rows": report["rows"],
        "segments": report["segments"],
        "writers of the archive, one after another": report["writers"],
        "reads of the cache, each a committed version and none older than before": report["cache_reads"],
        "random moments restored, equal to the database then": report["restores"],
        "starts of the service": report["starts"],
        **{f"ends of the service: {code}": count for code, count in report["exits"].items()},
        **{f"samples of {name}": count for name, count in report["samples"].items()},
        "longest catch-up after a round": f"{report['longest_catch_up_s']} s",
        "**violations**": f"**{len(report['findings'])}**",
    }
    parts = ["### The nemesis, on real processes\n", _grid("what", "figure", rows)]
    parts.append(_grid("kind of fault", "times", report["faults"]))
    parts.append(_grid("venue", "rounds", report["venues"]))
    if report["not_tried"]:
        parts.append(_grid("not tried in this run", "why", report["not_tried"]))
    parts += [f"- {finding.splitlines()[0][:110]}\n" for finding in report["findings"]]
    return "\n".join(parts)


def _simulation_section(report: Report) -> str:
    plain = {name.replace("_", " "): value for name, value in report.items() if not isinstance(value, dict | list)}
    tables = {name: value for name, value in report.items() if isinstance(value, dict) and value}
    plain["**violations**"] = f"**{plain.pop('findings')}**"
    parts = ["### The simulation\n", _grid("what", "figure", plain)]
    parts += [_grid(name.replace("_", " "), "times", value) for name, value in tables.items()]
    return "\n".join(parts)


def _grid(what: str, figure: str, rows: Mapping[str, Any]) -> str:
    lines = [f"| {what} | {figure} |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def main() -> None:
    options = argparse.ArgumentParser(description="print docs/reliability.md")
    options.add_argument("--faults", type=Path, nargs="+", default=[])
    options.add_argument("--simulation", type=Path)
    chosen = options.parse_args()
    faults = [json.loads(file.read_text()) for file in chosen.faults]
    simulation = json.loads(chosen.simulation.read_text()) if chosen.simulation else None
    print(page(together(faults) if faults else None, simulation), end="")


if __name__ == "__main__":
    main()
