"""`[[cache.projections]]`: which keys the cache holds, and what they hold."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from cdc.config.section import Section

_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


def placeholders(template: str) -> tuple[str, ...]:
    """The columns that a key template names: `session:{session_hash}:turns` gives `("session_hash",)`."""
    return tuple(_PLACEHOLDER.findall(template))


def nameless(template: str) -> str:
    """A key template without its columns' names. Two templates that are equal in this form make the same keys."""
    return _PLACEHOLDER.sub("{}", template)


class _Projection(Section):
    table: str = Field(description="the table, with its schema", examples=["public.turns"])
    key: str = Field(description="template of the Redis key; {column} stands for a value", examples=["turn:{turn_id}"])
    time_column: str | None = Field(
        "created_at", description='when the row was made, for warming only what still lives; "" warms every row'
    )

    @field_validator("table")
    @classmethod
    def _has_a_schema(cls, table: str) -> str:
        if table.count(".") == 1:
            return table
        raise ValueError("needs its schema, as in public.turns")

    @field_validator("key")
    @classmethod
    def _names_columns(cls, key: str) -> str:
        if key.startswith("cdc:"):
            raise ValueError("starts with cdc:, where the cache's own keys are")
        if placeholders(key):
            return key
        raise ValueError("names no column, as turn:{turn_id} does")

    @field_validator("time_column")
    @classmethod
    def _empty_is_none(cls, column: str | None) -> str | None:
        return column or None


class HistoryProjection(_Projection):
    """A sorted set of the newest rows that share a key: score = `order_by`, member = the row as JSON."""

    kind: Literal["history"] = Field("history", description="a sorted set of the newest rows that share a key")
    order_by: str = Field(
        min_length=1, description="the column that orders the rows, a number or a time", examples=["id"]
    )
    limit: int = Field(200, ge=1, le=10_000, description="how many rows are kept")
    ttl_s: int = Field(7 * 86_400, ge=1, description="life of the key, from the commit of its newest row")


class RowProjection(_Projection):
    """A string: the row as JSON."""

    kind: Literal["row"] = Field("row", description="a string: the row as JSON")
    ttl_s: int = Field(7 * 86_400, ge=1, description="life of the key, from the commit of its row")


class LatestProjection(_Projection):
    """A string: chosen columns of the newest row that shares a key, as JSON. `order_by` is always among them."""

    kind: Literal["latest"] = Field("latest", description="a string: columns of the newest row that shares a key")
    order_by: str = Field(min_length=1, description="the column that says which row is newest", examples=["id"])
    columns: tuple[str, ...] = Field(
        min_length=1, description="the columns in the value; order_by is always among them", examples=[["id", "state"]]
    )
    ttl_s: int = Field(45 * 60, ge=1, description="life of the key, from the commit of its newest row")


AnyProjection = HistoryProjection | RowProjection | LatestProjection
Projection = Annotated[AnyProjection, Field(discriminator="kind")]

TURNS_PROJECTIONS: tuple[AnyProjection, ...] = (
    HistoryProjection(table="public.turns", key="session:{session_hash}:turns", order_by="id"),
    RowProjection(table="public.turns", key="turn:{turn_id}"),
    LatestProjection(
        table="public.turns",
        key="session:{session_hash}:state",
        order_by="id",
        columns=("id", "turn_id", "role", "state", "confidence", "metadata", "created_at"),
    ),
)
