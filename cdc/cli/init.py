"""`cdc init`: installs or prints the operator's SQL."""

import asyncio
from typing import Annotated

import typer

from cdc.cli.options import ConfigFile


def init(
    file: ConfigFile = None,
    dsn: Annotated[
        str | None,
        typer.Option(envvar="CDC_ADMIN_DSN", show_envvar=True, help="Administrator who may create tables and roles."),
    ] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Print the SQL and touch nothing.")] = False,
    ddl_sentinel: Annotated[
        bool, typer.Option("--ddl-sentinel", help="Record schema changes too (event triggers: superuser).")
    ] = False,
) -> None:
    """Install the tables, the publication and the roles of sql/; harmless to repeat."""
    from cdc.config import load_postgres
    from cdc.postgres.install import apply, read_sql

    if only_print:
        print("\n".join(f"-- {sql.name}\n\n{sql.text}" for sql in read_sql(ddl_sentinel=ddl_sentinel)))
        return
    admin_dsn = dsn or load_postgres(file).dsn.get_secret_value()
    for name in asyncio.run(apply(admin_dsn, ddl_sentinel=ddl_sentinel)):
        print(f"applied {name}")
