"""What a relation says of its rows."""

import pytest

from cdc.change import Column, Relation


def _relation(replica_identity: str, **keys: bool) -> Relation:
    return Relation(
        1, "public", "t", replica_identity, [Column(name, "int4", 23, -1, key) for name, key in keys.items()]
    )


@pytest.mark.parametrize(
    ("relation", "identity"),
    [
        (_relation("d", id=True, text=False), ("id",)),
        (_relation("i", text=False, b=True, a=True), ("b", "a")),
        (_relation("d", a=True, b=True), ("a", "b")),
        (_relation("f", id=True, text=False), ("id",)),
        (_relation("f", a=True, b=True), ()),
        (_relation("n", a=False, b=False), ()),
    ],
    ids=["primary key", "index", "key of all columns", "full with a key", "full without a key", "nothing"],
)
def test_a_relation_names_the_columns_that_find_a_row_again(relation: Relation, identity: tuple[str, ...]) -> None:
    assert relation.identity == identity
