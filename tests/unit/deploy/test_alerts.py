"""The alert rules fit the metrics that there are and the runbook, as far as that can be seen without Prometheus."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.unit.web.test_metrics import defined, name_of

ROOT = Path(__file__).parents[3]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def names() -> list[str]:
    return [rule["alert"] for rule in rules()]


@pytest.mark.parametrize("rule", rules(), ids=names())
def test_every_alert_says_what_why_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["alert"].startswith("Waltier")
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert (ROOT / path).read_text() == RUNBOOK
    assert anchor == rule["alert"].lower()
    assert f"### {rule['alert']}\n" in RUNBOOK


def test_the_runbook_speaks_of_no_alert_that_is_not_there() -> None:
    assert set(re.findall(r"\bWaltier[A-Z]\w+", RUNBOOK)) == set(names())


@pytest.mark.parametrize("rule", rules(), ids=names())
def test_every_metric_of_an_expression_is_there_and_has_its_labels(rule: dict[str, Any]) -> None:
    labels = {name_of(metric): {*metric._labelnames, "job", "instance"} for metric in defined()}
    for name, matchers in re.findall(r"\b(cdc_\w+)(?:\{([^}]*)\})?", rule["expr"]):
        assert name in labels
        assert set(re.findall(r"(\w+)\s*[=!]~?", matchers)) <= labels[name]


@pytest.mark.parametrize("rule", rules(), ids=names())
def test_what_is_critical_comes_within_an_hour_and_a_warning_within_days(rule: dict[str, Any]) -> None:
    number, unit = re.fullmatch(r"(\d+)([smhd])", rule.get("for", "0s")).groups()  # type: ignore[union-attr]
    hours = int(number) * {"s": 1 / 3600, "m": 1 / 60, "h": 1, "d": 24}[unit]
    assert hours <= {"critical": 1, "warning": 72}[rule["labels"]["severity"]]
