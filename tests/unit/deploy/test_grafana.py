"""The Grafana dashboard asks for metrics and labels that are there, and its panels lie beside one another.

That every query is one, and finds something, is asked of a Prometheus that runs (tests/acceptance/test_alerts.py).
"""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.unit.web.test_metrics import defined, name_of

DASHBOARD = Path(__file__).parents[3] / "deploy" / "grafana" / "dashboard.json"


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = dashboard()["panels"]
    return found


def targets() -> Iterator[tuple[str, str, str]]:
    """Title, query and legend of each query."""
    for panel in panels():
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], target["legendFormat"]


def unknown(expression: str, legend: str) -> list[str]:
    """Metrics and labels of a query, and labels of its legend, that are not there."""
    known = {name_of(metric): set(metric._labelnames) for metric in defined()}
    known["cdc_build_info"] |= {"version", "python", "compiled"}
    wrong, labels = [], {"instance", "job"}
    for name, matchers in re.findall(r"\b(cdc_\w+)(?:\{([^}]*)\})?", expression):
        base = re.sub(r"_(bucket|count|sum)$", "", name)
        if base not in known:
            wrong.append(name)
        labels |= known.get(base, set())
        own = known.get(base, set()) | {"instance", "job"}
        wrong += [label for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers) if label not in own]
    for by in re.findall(r"\b(?:by|without) \(([^)]*)\)", expression):
        wrong += [label for label in re.split(r",\s*", by) if label not in labels | {"le"}]
    return wrong + [label for label in re.findall(r"\{\{(\w+)\}\}", legend) if label not in labels]


@pytest.mark.parametrize(("title", "expression", "legend"), list(targets()))
def test_metrics_and_labels_of_every_query_are_there(title: str, expression: str, legend: str) -> None:
    assert unknown(expression, legend) == []
    assert 'instance=~"$instance"' in expression


@pytest.mark.parametrize(
    ("expression", "legend"),
    [
        ("rate(cdc_putz_total[5m])", ""),
        ('cdc_lag_seconds{sinc="archive"}', ""),
        ("sum by (flavour) (cdc_lag_seconds)", ""),
        ("cdc_lag_seconds", "{{slot}}"),
    ],
)
def test_what_is_not_there_is_found(expression: str, legend: str) -> None:
    assert len(unknown(expression, legend)) == 1


def test_every_question_of_a_person_on_call_has_its_row() -> None:
    rows = [panel["title"] for panel in panels() if panel["type"] == "row"]
    assert rows == [
        *("Health", "Lags", "Work and latencies", "Slots and forecast", "Archive and its cost"),
        *("Cache and errors", "Process"),
    ]


def test_panels_do_not_overlap_and_have_names_of_their_own() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels())
    for panel in panels():
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24, panel["title"]
    for one, other in combinations(panels(), 2):
        assert not overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    def apart(axis: str, size: str) -> bool:
        return one[axis] + one[size] <= other[axis] or other[axis] + other[size] <= one[axis]

    return not (apart("x", "w") or apart("y", "h"))


def test_it_goes_to_whatever_prometheus_is_chosen() -> None:
    sources = [target["datasource"]["uid"] for panel in panels() for target in panel.get("targets", ())]
    assert set(sources) == {"${datasource}"}
    assert {variable["name"] for variable in dashboard()["templating"]["list"]} == {"datasource", "instance"}
