"""Writes docs/benchmarks.md from the findings of one run. Every number in it was measured in that run."""

from tests.bench.figures import Figure, Findings, Standing

_YES_NO = {True: "yes", False: "**no**", None: ""}

_INTRODUCTION = """\
# Benchmarks

Written by `make bench`; do not edit. Measured {date}, in one run, on one machine: {cores} cores ({processor}),
{memory:.0f} GiB of memory, Python {python}, PostgreSQL {postgres}, {redis}, the archive a directory on the local disk.
Postgres, Redis, the load and the program under test share those cores, so contenders compete with the server they read.
"""

_READING_THE_SAME_WAL = """\
## Reading the same WAL

Each contender reads the very same WAL from the same position, through its own copy of one logical replication slot.
Repetitions are interleaved; a rate is the median of {repetitions}, with the slowest and the fastest in brackets, and a
ratio is the median of the ratios within each repetition, since the machine's mood changes between them.
The clock runs from the walsender's start to the end of the WAL: for us until the archive on disk covers it and the
cache has it, for the others until they have read it (they keep nothing). A contender that saw fewer changes than the
WAL holds has failed.
"""

_RESTORING = """\
## Restoring

The same rows of one table go into databases with the tables, indexes and keys of sql/: by one COPY from a file, and by
`cdc restore` from the archive, from the command's start to its end (it checks the chain, copies a chunk a transaction
with the record of how far it is, and sets sequences). Repetitions are interleaved, and each restored table is compared
with the source's by checksum.
"""


def _grid(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _standing_row(standing: Standing, yardstick: Standing | None) -> list[str]:
    if standing.failure:
        return [standing.contender, f"failed: {standing.failure}", "", ""]
    slowest, fastest = standing.spread
    cpu = standing.cpu_s_per_million
    ratio = yardstick is not None and not yardstick.failure
    return [
        standing.contender,
        f"{standing.rate:,.0f} ({slowest:,.0f} … {fastest:,.0f})",
        f"{standing.ratio_to(yardstick):.2f}" if ratio and yardstick else "",
        "" if cpu is None else f"{cpu:.1f}",
    ]


def workload_table(standings: list[Standing], unit: str = "changes") -> str:
    """Contenders of one workload; ratios are to the first of them."""
    yardstick = standings[0] if standings else None
    name = yardstick.contender if yardstick else ""
    head = ["contender", f"{unit}/s", f"ratio to {name}", f"CPU s per million {unit}"]
    return _grid(head, [_standing_row(standing, yardstick) for standing in standings])


def figures_table(figures: list[Figure]) -> str:
    """Figure, target, reached: the table of our figures."""
    rows = [[figure.what, figure.measured, figure.target, _YES_NO[figure.reached]] for figure in figures]
    return _grid(["what", "measured", "target", "reached"], rows)


def render(findings: Findings) -> str:
    """The whole document."""
    machine = findings.machine
    introduction = _INTRODUCTION.format(
        date=findings.date,
        cores=machine.cores,
        processor=machine.processor,
        memory=machine.memory_gib,
        python=machine.python,
        postgres=machine.postgres,
        redis=machine.redis,
    )
    parts = [introduction, "## Figures to reach\n", figures_table(findings.figures)]
    parts.append(_READING_THE_SAME_WAL.format(repetitions=findings.sizes.get("repetitions", 1)))
    for workload, standings in findings.workloads.items():
        parts += [f"### {workload}\n", workload_table(standings)]
    parts += [_RESTORING] if findings.restores else []
    for title, standings in findings.restores.items():
        parts += [f"### {title}\n", workload_table(standings, "rows")]
    if findings.notes:
        parts += ["## How it was measured\n", "\n".join(f"- {note}" for note in findings.notes) + "\n"]
    sizes = ", ".join(f"`CDC_BENCH_{name.upper()}={value}`" for name, value in findings.sizes.items())
    parts.append(f"Sizes of this run: {sizes}.\n")
    return "\n".join(parts)
