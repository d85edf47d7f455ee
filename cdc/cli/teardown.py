"""`cdc teardown`: removes what makes Postgres keep WAL for us, and says what remains.

The slot goes first, because a forgotten slot fills the server's disk. The archive is never touched.
"""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cdc.cli.options import ConfigFile
from cdc.cli.printing import confirm, print_lines
from cdc.errors import Unavailable

if TYPE_CHECKING:
    from cdc.config import PostgresSettings, Settings


def teardown(
    file: ConfigFile = None,
    publication: Annotated[bool, typer.Option("--publication", help="Drop the publication too.")] = False,
    cache: Annotated[bool, typer.Option("--cache", help="Remove the cache's keys too.")] = False,
    ddl_sentinel: Annotated[
        bool, typer.Option("--ddl-sentinel", help="Drop the event triggers of the DDL sentinel too.")
    ] = False,
    dsn: Annotated[
        str | None,
        typer.Option(
            envvar="CDC_ADMIN_DSN", show_envvar=True, help="Administrator, for --publication and --ddl-sentinel."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Drop our replication slot, so that Postgres keeps no WAL for us any more; the archive stays."""
    from pydantic import SecretStr

    from cdc.config import load

    settings = load(file)
    admin = settings.postgres.model_copy(update={"dsn": SecretStr(dsn)}) if dsn else settings.postgres
    plan = _Plan(
        settings=settings,
        admin=admin,
        publication=publication,
        cache=cache and bool(settings.cache.url),
        ddl_sentinel=ddl_sentinel,
    )
    if not yes:
        print_lines([*plan.removed(), *plan.remaining()])
        confirm("cdc teardown --yes")
    print_lines(asyncio.run(_carry_out(plan)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """The plan of a teardown: what to remove beside the slot."""

    settings: "Settings"
    admin: "PostgresSettings"
    publication: bool
    cache: bool
    ddl_sentinel: bool

    def removed(self) -> list[str]:
        postgres = self.settings.postgres
        removed = [f"replication slot {postgres.slot}, and with it every change that is not archived yet"]
        removed += ["the DDL sentinel's event triggers"] if self.ddl_sentinel else []
        removed += [f"publication {postgres.publication}"] if self.publication else []
        removed += ["the cache's keys"] if self.cache else []
        return [f"to be removed: {what}" for what in removed]

    def remaining(self) -> list[str]:
        settings = self.settings
        remains = [f"the archive {settings.archive.url}", "tables and roles"]
        remains += [] if self.publication else [f"publication {settings.postgres.publication} (--publication)"]
        remains += [] if self.cache or not settings.cache.url else ["the cache's keys, until they expire (--cache)"]
        return [f"remains: {what}" for what in remains]


async def _carry_out(plan: _Plan) -> list[str]:
    """Remove everything of the plan; return what was done and what remains.

    1. the slot, 2. event triggers and publication, 3. the cache's keys.
    """
    from cdc.cache.removal import remove_keys
    from cdc.postgres.ddl_sentinel import drop_ddl_sentinel
    from cdc.postgres.publication import drop_publication
    from cdc.postgres.session import connect

    done, admin = [await _remove_slot(plan.settings.postgres)], plan.admin  # 1
    if plan.ddl_sentinel:  # 2
        async with await connect(admin) as connection:
            found = await drop_ddl_sentinel(connection)
        done.append("dropped the DDL sentinel" if found else "there was no DDL sentinel")
    if plan.publication:
        async with await connect(admin) as connection:
            found = await drop_publication(connection, admin.publication)
        done.append(f"{'dropped' if found else 'there was no'} publication {admin.publication}")
    if plan.cache:  # 3
        done.append(f"removed {await remove_keys(plan.settings.cache)} keys from the cache")
    return [*done, *plan.remaining()]


async def _remove_slot(settings: "PostgresSettings") -> str:
    """Drop our slot. Raises Unavailable while a session reads it."""
    from cdc.postgres.session import connect
    from cdc.postgres.slot import drop_slot, read_slot

    async with await connect(settings) as connection:
        slot = await read_slot(connection, settings.slot)
        if slot is None:
            return f"there was no slot {settings.slot}"
        if slot.active_pid is not None:
            raise Unavailable(
                f"replication slot {slot.name} is in use by pid {slot.active_pid}; nothing was removed",
                hint=f"stop `cdc run` first, or: SELECT pg_terminate_backend({slot.active_pid});",
            )
        await drop_slot(connection, slot.name)
        return f"dropped slot {slot.name}"
