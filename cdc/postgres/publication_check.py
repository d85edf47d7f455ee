"""Checks that we can keep our promises with what is published: all mistakes at once, each with the SQL that mends it.

A published table without a usable replica identity is refused because Postgres itself then refuses the application's
UPDATE and DELETE. Pure: no server is asked.
"""

from collections.abc import Iterable, Sequence

from cdc.config import AnyProjection, LatestProjection, RowProjection, placeholders
from cdc.errors import Invalid
from cdc.postgres.publication import ACTIONS, DEFAULT, Partition, Publication, PublishedTable
from cdc.postgres.quoting import quote_identifier

_Mistake = tuple[str, str]


def check_publication(publication: Publication, projections: Sequence[AnyProjection]) -> None:
    """Check the publication. Raises Invalid with every mistake and what mends it."""
    unique = find_mistakes(publication, projections)
    if not unique:
        return
    raise Invalid(
        f"publication {publication.name} cannot be used: {unique[0][0]}"
        if len(unique) == 1
        else f"publication {publication.name} cannot be used, for {len(unique)} reasons",
        detail="" if len(unique) == 1 else "; ".join(what for what, _ in unique),
        hint="\n      ".join(dict.fromkeys(hint for _, hint in unique)),
    )


def find_mistakes(publication: Publication, projections: Sequence[AnyProjection]) -> list[tuple[str, str]]:
    """Find every mistake in the publication, each with what mends it: SQL, or words."""
    mistakes = [*_of_publication(publication)]
    for table in publication.tables:
        mistakes += _of_table(table)
    for projection in projections:
        mistakes += _of_projection(publication, projection)
    return list(dict.fromkeys(mistakes))


def _of_publication(publication: Publication) -> Iterable[_Mistake]:
    name = quote_identifier(publication.name)
    if not publication.tables:
        yield "it has no tables", f"ALTER PUBLICATION {name} ADD TABLE public.turns, public.outbox;"
    absent = [action for action in ACTIONS if action not in publication.actions]
    if absent:
        yield (
            f"it does not publish {', '.join(absent)}",
            f"ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate');",
        )


def _of_table(table: PublishedTable) -> Iterable[_Mistake]:
    published = {column.name for column in table.columns}
    for bearer in table.bearers:
        if not bearer.identity_columns:
            yield (
                f"{bearer.schema}.{bearer.name} has no usable replica identity, "
                "so Postgres refuses the application's UPDATE and DELETE",
                _mend_identity(bearer),
            )
        elif hidden := [name for name in bearer.identity_columns if name not in published]:
            yield (
                f"{bearer.schema}.{bearer.name} does not publish {', '.join(hidden)} of its replica identity, "
                "so Postgres refuses the application's UPDATE and DELETE",
                f"publish all columns of {table.sql_name} (generated ones by publish_generated_columns = stored), "
                "or make its replica identity an index on published ones",
            )


def _mend_identity(bearer: PublishedTable | Partition) -> str:
    name = bearer.sql_name
    if bearer.replica_identity == DEFAULT:
        return f"ALTER TABLE {name} ADD PRIMARY KEY (...); or: ALTER TABLE {name} REPLICA IDENTITY FULL;"
    return f"ALTER TABLE {name} REPLICA IDENTITY FULL;"


def _of_projection(publication: Publication, projection: AnyProjection) -> Iterable[_Mistake]:
    table = publication.table(projection.table)
    if table is None:
        yield (
            f"the cache projection {projection.key!r} reads {projection.table}, which is not published",
            f"ALTER PUBLICATION {quote_identifier(publication.name)} ADD TABLE {_sql_name_of(projection.table)};",
        )
        return
    published = [column.name for column in table.columns]
    unknown = [name for name in _columns_read(projection) if name not in published]
    if unknown:
        yield (
            f"the cache projection {projection.key!r} names {', '.join(unknown)}, not published in {projection.table}",
            f"columns of {projection.table} are: {', '.join(published)} (cache.projections)",
        )
    yield from _of_old_rows(table, projection, unknown)


def _of_old_rows(table: PublishedTable, projection: AnyProjection, unknown: Sequence[str]) -> Iterable[_Mistake]:
    """Find the columns that an old row must have, and has not, so that its entry in the cache is found again."""
    for bearer in table.bearers:
        needed = [name for name in _columns_of_entry(projection) if name not in unknown]
        untold = [name for name in needed if name not in bearer.identity_columns]
        if untold and bearer.identity_columns:
            yield (
                f"the cache projection {projection.key!r} needs {', '.join(untold)} of deleted and updated rows, "
                f"which the replica identity of {bearer.schema}.{bearer.name} leaves out",
                f"ALTER TABLE {bearer.sql_name} REPLICA IDENTITY FULL;",
            )


def _columns_of_entry(projection: AnyProjection) -> list[str]:
    """The columns that say where in the cache a row is."""
    order_by = [] if isinstance(projection, RowProjection) else [projection.order_by]
    return list(dict.fromkeys([*placeholders(projection.key), *order_by]))


def _columns_read(projection: AnyProjection) -> list[str]:
    """Every column that the projection names. `time_column` counts if it was set: its default is only a guess."""
    columns = list(projection.columns) if isinstance(projection, LatestProjection) else []
    set_time = projection.time_column if "time_column" in projection.model_fields_set else None
    return list(dict.fromkeys([*_columns_of_entry(projection), *columns, *([set_time] if set_time else [])]))


def _sql_name_of(qualified_name: str) -> str:
    return ".".join(quote_identifier(part) for part in qualified_name.split(".", 1))
