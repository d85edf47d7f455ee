"""What real servers sent for tests/unit/golden/scenario.sql, decoded. See tests/unit/golden/capture.py."""

import base64
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from cdc.change import Change, Relation, RowChange, Transaction, Truncate
from cdc.lsn import parse_lsn
from cdc.pgoutput.assembler import Assembler
from tests.unit.pgoutput import encoder as wire

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = ("pg15", "pg16", "pg17", "pg18")
PRIMARY_KEYS = {"public.in_full": ("id",)}

# The two values that are long enough to be TOASTed, as the file of expected changes spells them.
LONG_VALUES = {"0123456789" * 220: "0123456789 x 220", "abcdefghij" * 220: "abcdefghij x 220"}


def frames(version: str) -> Iterator[bytes]:
    for line in (GOLDEN / f"{version}.txt").read_text().splitlines():
        lsn, message = line.split()
        yield wire.xlog_data(base64.b64decode(message), parse_lsn(lsn))


def transactions(version: str) -> list[Transaction]:
    return Assembler({23: "integer"}, PRIMARY_KEYS).feed(frames(version)).transactions


def rows(version: str, table: str) -> list[RowChange]:
    changes = [change for transaction in transactions(version) for change in transaction.changes]
    return [c for c in changes if isinstance(c, RowChange) and c.relation.name == table]


def relation(version: str, table: str) -> Relation:
    return rows(version, table)[0].relation


def spell(change: Change) -> str:
    """A change as one line, with everything that does not differ from server to server."""
    if isinstance(change, RowChange):
        words = {
            "op": change.op,
            "table": change.relation.qualified_name,
            "key": json.loads(change.key),
            "before": change.before and json.loads(change.before),
            "after": change.after and json.loads(change.after),
            "unchanged": change.unchanged,
        }
    elif isinstance(change, Truncate):
        words = {
            "op": "t",
            "table": change.relation.qualified_name,
            "cascade": change.cascade,
            "restart_identity": change.restart_identity,
        }
    else:
        words = {
            "op": "m",
            "prefix": change.prefix,
            "content": change.content.decode("latin-1"),
            "transactional": change.transactional,
        }
    line = json.dumps(words, ensure_ascii=False)
    for value, short in LONG_VALUES.items():
        line = line.replace(value, short)
    return line


def spell_all(version: str) -> str:
    return "\n".join("\n".join([*map(spell, t.changes), "commit"]) for t in transactions(version)) + "\n"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_scenario_gives_the_changes_written_down(version: str) -> None:
    assert spell_all(version) == (GOLDEN / "expected.txt").read_text()


@pytest.mark.parametrize("version", VERSIONS)
def test_commit_lsns_strictly_increase_though_a_message_ends_where_a_commit_begins(version: str) -> None:
    decoded = transactions(version)
    lsns = [transaction.commit_lsn for transaction in decoded]
    assert lsns == sorted(set(lsns))
    assert all(b.commit_lsn >= a.end_lsn for a, b in pairwise(decoded))
    message, commit = next((a, b) for a, b in pairwise(decoded) if a.end_lsn == b.commit_lsn)
    assert (message.xid, message.commit_lsn) == (0, message.end_lsn - 1)
    assert commit.xid != 0


@pytest.mark.parametrize("version", VERSIONS)
def test_an_unchanged_toast_value_is_named_and_absent(version: str) -> None:
    updates = [change for change in rows(version, "by_key") if change.op == "u"]
    assert [change.unchanged for change in updates] == [["big"], ["big"], []]
    assert b"big" not in (updates[0].after or b"")


@pytest.mark.parametrize("version", VERSIONS)
def test_an_unchanged_toast_value_is_merged_from_a_full_old_row(version: str) -> None:
    updates = [change for change in rows(version, "in_full") if change.op == "u"]
    assert len(updates) == 2
    for change in updates:
        assert change.unchanged == []
        assert change.new is not None
        assert change.new[2] == b"abcdefghij" * 220


@pytest.mark.parametrize("version", VERSIONS)
def test_under_full_the_primary_key_is_the_key_and_without_one_every_column(version: str) -> None:
    assert [column.key for column in relation(version, "in_full").columns] == [True, False, False]
    unaware = Assembler({}, {}).feed(frames(version)).transactions
    columns = next(
        change.relation.columns
        for transaction in unaware
        for change in transaction.changes
        if isinstance(change, RowChange) and change.relation.name == "in_full"
    )
    assert [column.key for column in columns] == [True, True, True]


@pytest.mark.parametrize("version", VERSIONS)
def test_types_are_named_by_the_mapping_then_by_the_stream_then_by_oid(version: str) -> None:
    types = {column.name: column.type_name for column in relation(version, "kinds").columns}
    assert types["id"] == "integer"
    assert types["m"] == "public.mood"
    assert types["p"] == "public.pair"
    assert types["at"] == "1184"
    # The stream names the type beneath a domain.
    assert types["d"] == "pg_catalog.int4"


@pytest.mark.parametrize("version", VERSIONS)
def test_json_null_is_not_null_and_bytes_survive_the_archive(version: str) -> None:
    for change in rows(version, "kinds"):
        codec = change.relation.codec
        assert change.new is not None
        assert change.after is not None
        decoded = codec.decode(change.after)
        expected = [value.replace(b"\n", b" ") if isinstance(value, bytes) else value for value in change.new]
        assert decoded == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_a_table_made_anew_has_a_new_oid_and_an_altered_one_new_columns(version: str) -> None:
    made = {change.relation.oid for change in rows(version, "of_nothing")}
    assert len(made) == 2
    shapes = [list(change.relation.column_index) for change in rows(version, "by_key")]
    assert shapes[0] == ["id", "note", "big"]
    assert shapes[-1] == ["id", "note", "added"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("step", [1, 2, 7, 50])
def test_the_number_of_frames_fed_at_once_makes_no_difference(version: str, step: int) -> None:
    assembler = Assembler({23: "integer"}, PRIMARY_KEYS)
    copy_data = list(frames(version))
    spelled = [
        spell(change)
        for begin in range(0, len(copy_data), step)
        for transaction in assembler.feed(copy_data[begin : begin + step]).transactions
        for change in transaction.changes
    ]
    assert spelled == [spell(change) for transaction in transactions(version) for change in transaction.changes]
