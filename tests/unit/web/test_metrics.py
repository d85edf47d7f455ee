"""The metrics' names are documented, keep to their conventions, and cannot grow without bound."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.metrics import MetricWrapperBase

from cdc import metrics
from cdc.change import CREATE, Change, LogicalMessage, Relation, RowChange, Transaction, Truncate
from cdc.pipeline import tally
from cdc.pipeline.tally import OTHERS, Tally

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"

_KINDS: dict[type[MetricWrapperBase], str] = {Counter: "_total", Info: "_info", Gauge: "", Histogram: ""}


def defined() -> list[MetricWrapperBase]:
    return [found for found in vars(metrics).values() if isinstance(found, MetricWrapperBase)]


def kind_of(metric: MetricWrapperBase) -> type[MetricWrapperBase]:
    return next(kind for kind in _KINDS if isinstance(metric, kind))


def name_of(metric: MetricWrapperBase) -> str:
    return f"{metric._name}{_KINDS[kind_of(metric)]}"


def rows() -> Iterator[str]:
    for metric in defined():
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)
        yield f"| `{name_of(metric)}` | {kind_of(metric).__name__.lower()} | {labels} | {metric._documentation} |"


def test_every_metric_is_documented_in_its_order_and_no_other() -> None:
    """Paste what this prints."""
    table = "\n".join(rows())
    print(table)
    assert re.findall(r"^\| `cdc_.*$", DOCUMENT.read_text(), re.MULTILINE) == table.splitlines()


def test_every_metric_that_the_document_speaks_of_is_there() -> None:
    names = {name_of(metric) for metric in defined()}
    spoken = set(re.findall(r"\bcdc_[a-z_]+\b", DOCUMENT.read_text()))
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in spoken} <= names


@pytest.mark.parametrize("metric", defined(), ids=name_of)
def test_names_begin_with_cdc_and_help_is_a_sentence_without_an_end(metric: MetricWrapperBase) -> None:
    assert name_of(metric).startswith("cdc_")
    assert metric._documentation[0].isupper() or metric._documentation[0] == "1"
    assert not metric._documentation.endswith(".")


def literals_of(source: str) -> set[str]:
    """Names of metrics, or of their samples, in a file's strings and docstrings."""
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    spoken = {word for text in texts if isinstance(text, str) for word in re.findall(r"\bcdc_[a-z_]+\b", text)}
    names = {name_of(metric) for metric in defined()} | {metric._name for metric in defined()}
    return {word for word in spoken if re.sub(r"_(bucket|count|sum|created)$", "", word) in names}


def test_no_metric_is_named_outside_the_file_of_their_names() -> None:
    """Who needs a number has the object, or the vitals; the registry is not asked by name."""
    room = Path(metrics.__file__).parent
    found = {str(file.relative_to(room)): literals_of(file.read_text()) for file in room.rglob("*.py")}
    assert len(found.pop("metrics.py")) == len(defined())
    assert {file: names for file, names in found.items() if names} == {}


PLANTED = ['value("cdc_puts_total")', "f'cdc_received_lsn{x}'", "'cdc_barrier_seconds_bucket'", "'see cdc_puts'"]


@pytest.mark.parametrize("planted", PLANTED)
def test_a_metric_that_is_named_somewhere_else_is_found(planted: str) -> None:
    assert len(literals_of(planted)) == 1


def test_a_total_is_over_all_labels_and_a_level_is_what_was_set() -> None:
    registry = CollectorRegistry()
    total = metrics.Total("t", "", ["kind"], registry=registry)
    total.labels("a").inc()
    total.labels(kind="b").inc(2)
    total.labels("b").inc(3)
    assert (total.labels("a").total, total.labels("b").total) == (1, 5)
    assert (total.total, registry.get_sample_value("t_total", {"kind": "b"})) == (6, 5)
    level = metrics.Level("l", "", ["kind"], registry=registry)
    assert level.of("a") is None
    assert list(registry.collect())[1].samples == []
    level.labels("a").set(2**63 - 1)
    assert (level.of("a"), level.of("b")) == (2**63 - 1, None)
    assert registry.get_sample_value("l", {"kind": "a"}) == 2**63


def relation(name: str) -> Relation:
    return Relation(1, "public", name, "d", [])


def transaction(*changes: Change) -> Transaction:
    return Transaction(1, 10, 0, list(changes), end_lsn=11)


def counted(table: str, operation: str) -> float:
    return metrics.REGISTRY.get_sample_value("cdc_table_changes_total", {"table": table, "operation": operation}) or 0


@pytest.fixture(autouse=True)
def no_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tally, "_tables", set())


def test_changes_are_counted_by_table_and_operation() -> None:
    table = relation("tallied")
    before = counted("", "message")
    Tally().count(
        [
            transaction(*(RowChange(op, 0, table, [], None) for op in "ccudc")),
            transaction(Truncate(0, table, cascade=False, restart_identity=False)),
            transaction(LogicalMessage(0, "p", b"", transactional=True)),
        ]
    )
    operations = ("create", "update", "delete", "truncate")
    assert [counted("public.tallied", operation) for operation in operations] == [3, 1, 1, 1]
    assert counted("", "message") - before == 1


def test_tables_beyond_the_bound_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "TABLES", 2)
    before = counted(OTHERS, "create")
    tables = [relation(name) for name in ("first", "second", "third", "fourth")]
    for connection in (Tally(), Tally()):
        connection.count([transaction(*(RowChange(CREATE, 0, table, [], None) for table in tables))])
    assert counted("public.second", "create") == 2
    assert counted("public.third", "create") == 0
    assert counted(OTHERS, "create") - before == 4
