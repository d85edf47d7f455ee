"""Projections without a server: keys, patterns, what fits a table, and what a plan joins."""

from typing import Any

import orjson
import pytest

from cdc.cache.plan import MemberIdentity, Plan
from cdc.cache.projection import Template, bind, find_conflicts, find_mistakes, warm_queries
from cdc.change import UPDATE, Column, Relation, RowChange
from cdc.config import TURNS_PROJECTIONS, HistoryProjection, LatestProjection, Projection, RowProjection
from cdc.errors import Invalid
from cdc.row import ABSENT, Row
from tests.support.cache_model import HISTORY, LATEST, ROW, TURNS, created, deleted, row_of, turn, updated

# As in script.lua.
SET, UNLINK, ADD, REPLACE, NEWEST, REVISE = range(1, 7)
WIDTHS = {SET: 4, UNLINK: 2, ADD: 6, REPLACE: 11, NEWEST: 6, REVISE: 7}


def operations(plan: Plan) -> list[tuple[Any, ...]]:
    """The plan read back: (operation, key, the other numbers …), and for a SET its value."""
    keys, numbers, values = plan.flatten(1)
    flat, read = orjson.loads(numbers), []
    while flat:
        operation, flat = flat[: WIDTHS[flat[0]]], flat[WIDTHS[flat[0]] :]
        read.append((operation[0], keys[operation[1] - 2].decode(), *operation[2:]))
    assert all(0 <= number <= len(values) for operation in read if operation[0] == SET for number in operation[2:])
    return read


def planned(*changes: RowChange, projection: Projection) -> Plan:
    plan = Plan()
    bound = bind(projection, TURNS)
    for change in changes:
        bound.apply(change, 1_000, plan)
    return plan


# Keys ----------------------------------------------------------------------------------------------------------------


def test_a_key_is_made_of_the_values_text() -> None:
    projection = RowProjection(table="public.turns", key="{session_hash}/{id}:x{turn_id}")
    assert operations(planned(created(turn(7, "ü")), projection=projection))[0][1] == "ü/7:xt7"


@pytest.mark.parametrize("key", ["t:{session_hash}", "t:{session_hash}:{id}"])
def test_null_gives_no_key(key: str) -> None:
    projection = RowProjection(table="public.turns", key=key)
    assert operations(planned(created(turn(7, None)), projection=projection)) == []


def test_a_pattern_matches_the_templates_keys_and_nothing_that_only_looks_special() -> None:
    template = Template("a*b?[{x}]\\:{y}^")
    assert template.pattern == rb"a\*b\?\[*\]\\:*\^"
    assert template.regex.fullmatch(b"a*b?[1\n]\\:2^")
    assert not template.regex.fullmatch(b"aab?[1]\\:2^")


# What fits -----------------------------------------------------------------------------------------------------------


def test_every_mistake_of_a_projection_is_named_at_once() -> None:
    projection = LatestProjection(table="public.turns", key="x:{gone}", order_by="content", columns=("id", "missing"))
    assert find_mistakes(projection, TURNS) == [
        "column 'gone' is not published",
        "column 'missing' is not published",
        "order_by 'content' is text, neither a number nor a time",
    ]
    with pytest.raises(Invalid):
        bind(projection, TURNS)


@pytest.mark.parametrize("projection", TURNS_PROJECTIONS)
def test_the_default_projections_do_not_disturb_one_another(projection: Projection) -> None:
    assert find_conflicts(TURNS_PROJECTIONS) == []
    assert projection.key


@pytest.mark.parametrize(
    ("keys", "word"),
    [(("a:{id}", "a:{turn_id}"), "same key"), (("{id}",), "cdc:meta"), (("c{id}",), "cdc:meta")],
)
def test_keys_that_disturb_one_another_are_refused(keys: tuple[str, ...], word: str) -> None:
    conflicts = find_conflicts([RowProjection(table="public.turns", key=key) for key in keys])
    assert len(conflicts) == 1
    assert word in conflicts[0]


def test_a_warm_up_asks_once_for_each_table_for_rows_in_the_order_of_the_history() -> None:
    other = RowProjection(table="public.other", key="o:{id}", time_column=None)
    turns, others = warm_queries([LATEST, HISTORY, ROW, other])
    assert (turns.table, turns.time_column, turns.window_s) == ("public.turns", "created_at", HISTORY.ttl_s)
    assert turns.order_by == ("session_hash", "pos")
    assert (others.table, others.time_column, others.order_by) == ("public.other", None, ())


def test_without_a_common_time_column_all_rows_are_asked_for() -> None:
    (query,) = warm_queries([HISTORY, ROW.model_copy(update={"time_column": "updated_at"})])
    assert query.time_column is None


# Joining -------------------------------------------------------------------------------------------------------------


def test_of_several_writes_to_a_row_the_last_counts() -> None:
    changes = (created(turn(1)), updated(turn(1), turn(1, content="x")), created(turn(2)), deleted(turn(2)))
    assert [operation[:2] for operation in operations(planned(*changes, projection=ROW))] == [
        (SET, "turn:t1"),
        (UNLINK, "turn:t2"),
    ]


def test_members_of_one_history_go_together_until_something_is_taken_out() -> None:
    changes = (
        created(turn(1)), created(turn(2)), deleted(turn(1)), created(turn(3)), created(turn(4)), created(turn(5, "b"))
    )  # fmt: skip
    read = operations(planned(*changes, projection=HISTORY))
    assert [(operation[0], operation[1]) for operation in read] == [
        (ADD, "session:a:turns"),
        (REPLACE, "session:a:turns"),
        (ADD, "session:a:turns"),
        (ADD, "session:b:turns"),
    ]
    assert [operation[5] - operation[4] + 1 for operation in read if operation[0] == ADD] == [4, 4, 2]


def test_of_several_new_rows_the_newest_is_sent_and_an_update_joins_its_insert() -> None:
    changes = (created(turn(5)), created(turn(3)), updated(turn(5), turn(5, content="new")))
    plan = planned(*changes, projection=LATEST)
    assert [operation[0] for operation in operations(plan)] == [NEWEST]
    assert b'{"pos":5,"id":5,"content":"new"}' in plan.flatten(1)[2]


def test_an_update_of_another_row_does_not_join() -> None:
    changes = (created(turn(5)), updated(turn(3), turn(3, content="new")), created(turn(6)))
    assert [operation[0] for operation in operations(planned(*changes, projection=LATEST))] == [NEWEST, REVISE, NEWEST]


def test_a_row_that_two_projections_hold_travels_once() -> None:
    plan = Plan()
    change = created(turn(1))
    for projection in (HISTORY, ROW):
        bind(projection, TURNS).apply(change, 1_000, plan)
    assert change.after is not None
    assert plan.flatten(1)[2].count(change.after) == 1


# What is not known ---------------------------------------------------------------------------------------------------


def test_a_delete_that_does_not_say_which_key_is_named() -> None:
    old: Row = [b"1", ABSENT, ABSENT, ABSENT, ABSENT, ABSENT]
    plan = planned(RowChange("d", 0, TURNS, None, old), projection=ROW)
    assert plan.unreachable == {"public.turns"}
    assert operations(plan) == []


def test_an_unknown_old_row_is_found_by_its_key_columns() -> None:
    plan = planned(RowChange(UPDATE, 0, TURNS, row_of(turn(1)), None), projection=HISTORY)
    ((operation, key, _, _, member, score, first, last, *_),) = operations(plan)
    assert (operation, key, member, score) == (REPLACE, "session:a:turns", 0, 0)
    assert plan.flatten(1)[2][first - 1 : last] == [b'"id"', b"1"]


def test_a_hole_in_a_column_that_latest_does_not_show_is_no_hole_there() -> None:
    new = row_of(turn(1))
    new[TURNS.column_index["turn_id"]] = ABSENT
    change = RowChange(UPDATE, 0, TURNS, new, row_of(turn(1)))
    assert [operation[0] for operation in operations(planned(change, projection=LATEST))] == [REVISE]
    assert [operation[0] for operation in operations(planned(change, projection=HISTORY))] == [UNLINK]


def test_a_table_without_a_key_has_no_second_way_to_a_member() -> None:
    keyless = Relation(1, "public", "log", "f", [Column("n", "integer", 23, -1, False)])
    plan = Plan()
    projection = HistoryProjection(table="public.log", key="log:{n}", order_by="n")
    bind(projection, keyless).apply(RowChange("d", 0, keyless, None, [b"5"]), 1_000, plan)
    _, _, values = plan.flatten(1)
    assert values == [b"604801000", b'{"n":5}', b"5"]


def test_an_identity_may_be_all_unknown() -> None:
    plan = Plan()
    plan.replace(b"k", 3, MemberIdentity(None, None, []), [], 1, reordered=False)
    ((_, _, _, _, member, score, first, last, *_),) = operations(plan)
    assert (member, score) == (0, 0)
    assert first > last
