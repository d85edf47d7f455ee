"""Judges the publication: what it leaves out, and whether archive and cache can work with it (pure)."""

from collections.abc import Iterator, Sequence

from cdc.config import AnyProjection, CacheSettings, LatestProjection
from cdc.finding import Finding, mended_by_sql
from cdc.postgres.publication import FULL, Publication, PublishedTable
from cdc.postgres.publication_check import find_mistakes
from cdc.postgres.quoting import quote_identifier
from cdc.postgres.schema import Schema, UnpublishedTable

# Generated columns are published since then, if the publication says so.
_PUBLISHES_GENERATED = 18


def judge_publication(publication: Publication, cache: CacheSettings) -> list[Finding]:
    """Judge the publication: mistakes that keep `cdc run` from starting, and changes that it leaves out."""
    mistakes = [
        Finding("publication", f"publication {publication.name}: {what}", hint, level="error", sql=_statement(hint))
        for what, hint in find_mistakes(publication, cache.served)
    ]
    tables = ", ".join(table.qualified_name for table in publication.tables)
    well = Finding("publication", f"publication {publication.name}: {tables}", level="ok")
    return [*(mistakes or [well]), *_judge_what_is_left_out(publication)]


def _statement(hint: str) -> str:
    """The SQL of a hint that is SQL, else ''. Of two ways it takes the second, which needs no decision."""
    sql = hint.rpartition("; or: ")[2].partition("  (")[0].partition(" (or run")[0]
    return sql if sql.startswith(("ALTER ", "CREATE ")) and sql.endswith(";") else ""


def _judge_what_is_left_out(publication: Publication) -> list[Finding]:
    findings = [
        mended_by_sql(
            "warning",
            "publication",
            f"{table.qualified_name} has a row filter: rows outside it are in neither archive nor cache",
            _publish_whole(publication, table),
            "if that is not meant",
            optional=True,
        )
        for table in publication.tables
        if table.row_filter
    ]
    if publication.via_partition_root and any(table.is_partitioned for table in publication.tables):
        message = "publish_via_partition_root: Postgres does not publish TRUNCATE of a single partition"
        mend = f"ALTER PUBLICATION {quote_identifier(publication.name)} SET (publish_via_partition_root = false);"
        remark = "or DELETE instead of TRUNCATE"
        findings.append(mended_by_sql("warning", "publication", message, mend, remark, optional=True))
    return findings


def _publish_whole(publication: Publication, table: PublishedTable) -> str:
    """The SQL that publishes a table without filter and column list, in one transaction: no change is missed."""
    alter = f"ALTER PUBLICATION {quote_identifier(publication.name)}"
    return f"BEGIN; {alter} DROP TABLE {table.sql_name}; {alter} ADD TABLE {table.sql_name}; COMMIT;"


def judge_schema(schema: Schema, publication: Publication, cache: CacheSettings, server_version: int) -> list[Finding]:
    """Judge the tables and columns that are not published, and long values that an UPDATE does not send."""
    return [
        *_judge_unpublished(schema.unpublished, publication),
        *_judge_columns(schema, publication, server_version),
        *_judge_toast(schema, publication, cache.served),
    ]


def _judge_unpublished(tables: Sequence[UnpublishedTable], publication: Publication) -> Iterator[Finding]:
    alter = f"ALTER PUBLICATION {quote_identifier(publication.name)}"
    for table in tables:
        if table.unlogged:
            message = f"{table.qualified_name} is unlogged: its rows are not in the WAL, and in no archive"
            yield mended_by_sql(
                "info", "publication", message, f"ALTER TABLE {table.sql_name} SET LOGGED;", optional=True
            )
            continue
        identity = "" if table.identified else f"ALTER TABLE {table.sql_name} REPLICA IDENTITY FULL; "
        without = "" if table.identified else ", and has no key"
        message = f"{table.qualified_name} is not published: it is in neither archive nor cache{without}"
        yield mended_by_sql(
            "info", "publication", message, f"{identity}{alter} ADD TABLE {table.sql_name};", optional=True
        )


def _judge_columns(schema: Schema, publication: Publication, server_version: int) -> Iterator[Finding]:
    alter = f"ALTER PUBLICATION {quote_identifier(publication.name)}"
    for table in publication.tables:
        columns = schema.columns[table.qualified_name]
        if columns.left_out:
            message = (
                f"{table.qualified_name} is published without {', '.join(columns.left_out)}: "
                "they are in neither archive nor cache"
            )
            mend = _publish_whole(publication, table)
            yield mended_by_sql("warning", "publication", message, mend, "if that is not meant", optional=True)
        elif columns.generated:
            message = (
                f"generated columns of {table.qualified_name} are not published: {', '.join(columns.generated)}; "
                "a restore computes them, readers of the archive must"
            )
            mend = f"{alter} SET (publish_generated_columns = stored);"
            possible = server_version >= _PUBLISHES_GENERATED and columns.stored
            yield mended_by_sql("info", "publication", message, mend if possible else "", optional=True)


def _judge_toast(schema: Schema, publication: Publication, projections: Sequence[AnyProjection]) -> Iterator[Finding]:
    """Judge columns with long values (TOAST) that the cache reads.

    Unless the identity is FULL, an UPDATE does not send such a value that it leaves alone: the cache drops the key.
    """
    for table in publication.tables:
        toastable = schema.columns[table.qualified_name].toastable
        mine = [projection for projection in projections if projection.table == table.qualified_name]
        read = [name for name in toastable if any(_reads(projection, name) for projection in mine)]
        for bearer in table.bearers:
            if not read or bearer.replica_identity == FULL:
                continue
            message = (
                f"an UPDATE of {bearer.schema}.{bearer.name} does not send a long value that it leaves alone "
                f"({', '.join(read)}): the row's keys leave the cache until it is written again"
            )
            name = f"{quote_identifier(bearer.schema)}.{quote_identifier(bearer.name)}"
            yield mended_by_sql("warning", "publication", message, f"ALTER TABLE {name} REPLICA IDENTITY FULL;")


def _reads(projection: AnyProjection, column: str) -> bool:
    """True if the projection needs the column: a `latest` reads some columns, the other kinds the whole row."""
    return column in projection.columns if isinstance(projection, LatestProjection) else True
