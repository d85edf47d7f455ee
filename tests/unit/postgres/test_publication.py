"""Judging a publication: every mistake at once, each with the SQL that mends it."""

import pytest

from cdc.change import Column
from cdc.config import TURNS_PROJECTIONS, HistoryProjection, LatestProjection, RowProjection
from cdc.errors import Invalid
from cdc.postgres.publication import Partition, Publication, PublishedTable
from cdc.postgres.publication_check import check_publication

_NAMES = ("id", "turn_id", "session_hash", "role", "state", "confidence", "metadata", "created_at")
_ALL_ACTIONS = ("insert", "update", "delete", "truncate")


def _table(
    name: str = "turns",
    *,
    identity: str = "f",
    identity_columns: tuple[str, ...] = _NAMES,
    names: tuple[str, ...] = _NAMES,
    oid: int = 1000,
    partitions: tuple[Partition, ...] = (),
    type_oid: int = 25,
    row_filter: str | None = None,
) -> PublishedTable:
    return PublishedTable(
        schema="public",
        name=name,
        oid=oid,
        columns=tuple(Column(column, "text", type_oid, -1, column == "id") for column in names),
        replica_identity=identity,
        identity_columns=identity_columns,
        primary_key=("id",),
        row_filter=row_filter,
        is_partitioned=bool(partitions),
        partitions=partitions,
    )


def _publication(*tables: PublishedTable, actions: tuple[str, ...] = _ALL_ACTIONS) -> Publication:
    return Publication("cdc", tables, actions, via_partition_root=False)


def _complaint(publication: Publication, *projections: HistoryProjection | RowProjection | LatestProjection) -> str:
    with pytest.raises(Invalid) as refused:
        check_publication(publication, projections)
    return refused.value.explain()


def test_turns_under_full_identity_serve_the_default_projections() -> None:
    check_publication(_publication(_table()), TURNS_PROJECTIONS)


def test_a_publication_without_tables_is_refused() -> None:
    assert "ADD TABLE" in _complaint(_publication())


def test_a_publication_without_delete_is_refused() -> None:
    complaint = _complaint(_publication(_table(), actions=("insert", "update")))
    assert "delete, truncate" in complaint
    assert "SET (publish = 'insert, update, delete, truncate')" in complaint


def test_a_table_without_a_key_breaks_the_applications_own_updates() -> None:
    complaint = _complaint(_publication(_table(identity="d", identity_columns=())))
    assert "refuses the application's UPDATE" in complaint
    assert 'ALTER TABLE "public"."turns" REPLICA IDENTITY FULL;' in complaint


def test_identity_nothing_is_refused_though_there_is_a_primary_key() -> None:
    assert "REPLICA IDENTITY FULL" in _complaint(_publication(_table(identity="n", identity_columns=())))


def test_a_column_list_must_cover_the_replica_identity() -> None:
    complaint = _complaint(_publication(_table(names=("id", "turn_id"))))
    assert "does not publish session_hash" in complaint


def test_a_history_under_the_default_identity_needs_full() -> None:
    table = _table(identity="d", identity_columns=("id",))
    complaint = _complaint(_publication(table), *TURNS_PROJECTIONS)
    assert "session_hash" in complaint
    assert complaint.count('ALTER TABLE "public"."turns" REPLICA IDENTITY FULL;') == 1


def test_a_row_projection_by_primary_key_needs_no_more_than_that() -> None:
    table = _table(identity="d", identity_columns=("id",))
    check_publication(_publication(table), [RowProjection(table="public.turns", key="turn:{id}")])


def test_an_unpublished_table_and_unknown_columns_are_named_together() -> None:
    complaint = _complaint(
        _publication(_table()),
        RowProjection(table="public.orders", key="order:{id}"),
        LatestProjection(table="public.turns", key="s:{hash}", order_by="id", columns=("mood",), time_column="at"),
    )
    assert 'ADD TABLE "public"."orders"' in complaint
    assert "hash, mood, at" in complaint
    assert "2 reasons" in complaint


def test_the_assumed_time_column_may_be_missing() -> None:
    table = _table(names=("id", "turn_id"), identity_columns=("id", "turn_id"))
    check_publication(_publication(table), [RowProjection(table="public.turns", key="turn:{turn_id}")])


def test_a_partition_decides_for_its_published_root() -> None:
    leaf = Partition("public", "turns_2026", 1001, "d", ())
    complaint = _complaint(_publication(_table(partitions=(leaf,))))
    assert '"public"."turns_2026"' in complaint


@pytest.mark.parametrize(
    "changed",
    [
        _table(oid=1001),
        _table(names=_NAMES[:-1]),
        _table(type_oid=1043),
        _table(identity="d", identity_columns=("id",)),
        _table(row_filter="(id > 5)"),
        _table(name="turn"),
    ],
)
def test_the_fingerprint_tells_a_changed_table(changed: PublishedTable) -> None:
    assert _publication(changed).fingerprint != _publication(_table()).fingerprint


def test_the_fingerprint_is_the_same_for_the_same_publication() -> None:
    assert _publication(_table()).fingerprint == _publication(_table()).fingerprint
    assert _publication(_table(), actions=("insert",)).fingerprint != _publication(_table()).fingerprint
    assert _publication().fingerprint != _publication(_table()).fingerprint
