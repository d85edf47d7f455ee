"""docs/reliability.md is written from reports, and a report from the results of rounds."""

import json
from collections import Counter

from tests.faults.campaign import Budget
from tests.faults.report import page, summarise, table, together
from tests.faults.round import Result
from tests.simulation.budget import Figures

BUDGET = Budget(seconds=600, count=None, round_s=60, seed=40)


def results() -> list[Result]:
    good = Result(
        40,
        "bucket",
        faults={"service_killed": 3, "redis_flushed": 1},
        figures={"transactions": 900, "changes": 61_000, "segments": 40, "writers": 2},
        starts=4,
        exits={"killed": 3, "0": 1},
        samples={"cache": 50},
        caught_up_s=2.5,
    )
    bad = Result(41, "directory", faults={"service_killed": 1}, findings=["a key went back\nwith its details"])
    return [good, bad]


def test_a_report_adds_rounds_up_and_names_each_finding_with_its_seed() -> None:
    report = summarise(BUDGET, results(), seconds=130.2)
    assert report["faults"] == {"redis_flushed": 1, "service_killed": 4}
    assert (report["faults_total"], report["kinds"], report["rounds"]) == (5, 2, 2)
    assert (report["transactions"], report["rows"]) == (900, 61_000)
    assert report["findings"] == ["seed 41: a key went back\nwith its details"]
    assert report["not_tried"]["disk_full"]
    assert json.loads(json.dumps(report)) == report
    assert "service_killed                                  4" in table(report)


def test_the_page_has_the_figures_of_both_reports() -> None:
    figures = Figures(seeds=100_000, virtual_s=12_600, faults=Counter(kill=17_000))
    simulation = {"revision": "0123abcd", "first_seed": 0, **figures.facts(1.0)}
    text = page(summarise(BUDGET, results(), seconds=130.2), simulation)
    assert "| faults | 5 of 2 kinds |" in text
    assert "| changed rows | 61,000 |" in text
    assert "| seeds, one a round, and commit | 40 to 41 at `" in text
    assert "| **violations** | **1** |" in text
    assert "- seed 41: a key went back" in text
    assert "| seeds | 100,000 |" in text
    assert "| revision | 0123abcd |" in text
    assert "| kill | 17,000 |" in text
    assert text.count("| **violations** | **0** |") == 1


def test_several_runs_are_one_whose_counts_are_added_up() -> None:
    one = summarise(BUDGET, results(), seconds=100)
    other = summarise(Budget(seconds=600, count=None, round_s=60, seed=90), results()[:1], seconds=50)
    whole = together([one, other])
    assert whole["faults"] == {"redis_flushed": 2, "service_killed": 7}
    assert (whole["faults_total"], whole["kinds"], whole["rounds"], whole["rows"]) == (9, 2, 3, 122_000)
    assert len(whole["findings"]) == 1
    assert [part.split(" at ")[0] for part in whole["parts"]] == ["40 to 41", "90 to 90"]
    assert together([one]) == one


def test_the_page_says_when_a_run_is_missing_and_its_prose_fits_the_column() -> None:
    text = page(None, None)
    assert text.count("no run was reported") == 2
    assert max(len(line) for line in text.splitlines()) <= 120
