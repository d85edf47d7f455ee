"""The bench of restore, at a small size: what it restores is equal to the source, or it does not count."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.bench.figures import Figure, Findings, Machine
from tests.bench.restore import COPY, Unequal, check_equal, figures, restore_tables
from tests.bench.sizes import Sizes
from tests.bench.stack import Stack, open_stack
from tests.bench.table import render
from tests.support.servers import fresh_database


@pytest.fixture
def stack() -> Iterator[Stack]:
    directory = Path(tempfile.mkdtemp(prefix="waltier-bench-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        with open_stack(directory) as stack:
            yield stack
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.wide
def test_snapshot_and_log_are_restored_beside_copy_and_equal_to_the_source(stack: Stack) -> None:
    found = restore_tables(stack, Sizes(repetitions=1, restore_rows=3000, restore_changes=900))
    assert [len(standings) for standings in found.values()] == [2, 2]
    assert [standing.failure for standings in found.values() for standing in standings] == [""] * 4
    findings = Findings("2026-11-22", Machine(2, 8.0, "x86_64", "3.13", "18.6", "Valkey 9.1"), {}, restores=found)
    findings.figures += figures(found)
    text = render(findings)
    assert "### 3,000 rows of turns: a snapshot's rows" in text
    assert f"| contender | rows/s | ratio to {COPY} |" in text
    assert all(isinstance(figure, Figure) and "rows/s" in figure.measured for figure in findings.figures)


def test_a_restored_table_that_is_not_the_sources_does_not_count(stack: Stack) -> None:
    with fresh_database(stack.postgres) as source, fresh_database(stack.postgres) as target:
        for dsn in (source, target):
            with psycopg.connect(dsn) as connection:
                connection.execute("CREATE TABLE t AS SELECT n AS id, 'x' AS v FROM generate_series(1, 9) AS n")
        check_equal(source, target, "public.t")
        with psycopg.connect(target) as connection:
            connection.execute("UPDATE t SET v = 'y' WHERE id = 5")
        with pytest.raises(Unequal, match=r"public\.t is \(9, "):
            check_equal(source, target, "public.t")
