"""The `cdc` command: one small function per command, and no knowledge of its own.

A command reads the configuration, calls one room or the service, prints what came back and ends with an exit code:
0 done, 1 failed, 2 usage or configuration, 75 fenced by another writer, 78 a person must decide. Errors that we raise
on purpose are printed to stderr in their three parts, message, detail and hint; anything else is a bug and shows its
traceback.

The rooms are imported inside the commands, so that `cdc --help` does not wait for drivers that it will not use.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import SecretStr

from cdc import __version__
from cdc.config import load, load_archive, load_monitor, load_postgres
from cdc.errors import CdcError, Invalid


def _effective_file(context: typer.Context, value: Path | None) -> Path | None:
    """`--config` may stand before the command or after it."""
    file = value or context.find_root().params.get("file")
    return file if isinstance(file, Path) else None


ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", envvar="CDC_CONFIG", callback=_effective_file, help="Configuration file.", metavar="FILE"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

app = typer.Typer(
    help="From the WAL of Postgres to an append-only archive and a warm Redis cache.",
    epilog="Configuration: ./cdc.toml, else /etc/waltier/cdc.toml, overridden by CDC_POSTGRES__DSN and so on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they print local variables, and those may hold secrets
    context_settings={"help_option_names": ["-h", "--help"]},
)
archive_app = typer.Typer(help="Look into the archive: ls, cat, verify.", no_args_is_help=True)
app.add_typer(archive_app, name="archive")
key_app = typer.Typer(help="Keys of an encrypted archive: generate.", no_args_is_help=True)
app.add_typer(key_app, name="key")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        app(arguments, prog_name="cdc")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except CdcError as error:
        print(f"cdc: {error.explain()}", file=sys.stderr)
        return error.exit_code
    return 0


def _end(exit_code: int) -> NoReturn:
    raise typer.Exit(exit_code)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"waltier {__version__}")
        _end(0)


@app.callback()
def _root(
    file: ConfigFile = None,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    from cdc import crash, log

    log.to_stderr("warning")
    crash.arm()


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(min=1, help="How long the workload runs.")] = 20,
    rate: Annotated[int, typer.Option(min=1, help="Transactions a second.")] = 200,
) -> None:
    """Show everything at work on embedded servers; ends by itself with a checked summary."""
    from cdc import demo as theatre

    _end(asyncio.run(theatre.run(seconds, rate)))


@app.command()
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
    from cdc.postgres import install

    if only_print:
        print("\n".join(f"-- {sql.name}\n\n{sql.text}" for sql in install.read_sql(ddl_sentinel=ddl_sentinel)))
        return
    admin_dsn = dsn or load_postgres(file).dsn.get_secret_value()
    for name in asyncio.run(install.apply(admin_dsn, ddl_sentinel=ddl_sentinel)):
        print(f"applied {name}")


@app.command()
def run(file: ConfigFile = None) -> None:
    """Archive and warm until SIGTERM; logs JSON lines to stderr."""
    from cdc import log
    from cdc.service import service

    settings = load(file)
    log.to_stderr(settings.log.level)
    _end(asyncio.run(service.run(settings)))


@app.command()
def repair(file: ConfigFile = None) -> None:
    """Close a gap in the archive by a new slot and a new snapshot; logs JSON lines to stderr."""
    from cdc import log
    from cdc.service import service

    settings = load(file)
    log.to_stderr(settings.log.level)
    archive = settings.archive.model_copy(update={"on_gap": "resnapshot"})
    _end(asyncio.run(service.run(settings.model_copy(update={"archive": archive}), only_repair=True)))


@app.command()
def status(file: ConfigFile = None, as_json: Json = False) -> None:
    """Say in one screen whether all is well: exit code 0 well, 1 not well, 78 a person must decide."""
    from cdc import status as health

    found = asyncio.run(health.examine(load(file)))
    if as_json:
        _print_json(health.facts(found))
    else:
        _print_table(health.lines(found))
        print(f"\n{found.verdict}")
        for trouble in found.troubles:
            _print_trouble(f"{trouble.subject:8}", trouble.message, trouble.hint)
    _end(found.exit_code)


@app.command()
def doctor(
    file: ConfigFile = None,
    as_json: Json = False,
    fix: Annotated[bool, typer.Option("--fix", help="Print a script that mends it all, and run nothing.")] = False,
) -> None:
    """Examine server, publication, bucket and cache, and say what to mend; exit code 1 if anything is wrong."""
    from cdc import doctor as surgery

    findings = asyncio.run(surgery.examine(load(file)))
    if as_json:
        _print_json(surgery.facts(findings))
    elif fix:
        print(surgery.script(findings), end="")
    else:
        for finding in findings:
            _print_trouble(f"{finding.level:7}  {finding.subject:11}", finding.message, finding.hint)
    _end(surgery.exit_code(findings))


@app.command()
def slots(
    file: ConfigFile = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every SECONDS, until Ctrl-C.")] = False,
    seconds: Annotated[
        float, typer.Argument(min=0.1, help="With --watch: time between looks.", metavar="[SECONDS]")
    ] = 2,
) -> None:
    """List every replication slot of the server, the WAL that it retains, and when that becomes too much."""
    from cdc.monitor import table as registry

    postgres, monitor = load_postgres(file), load_monitor(file)
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(registry.follow(postgres, monitor, seconds, as_json=as_json))
        return
    found = asyncio.run(registry.look(postgres, monitor))
    warnings = found.warnings(monitor.warn_s)
    if as_json:
        _print_json(registry.report_facts(found, warnings))
        return
    print("\n".join(registry.lines(found)))
    for warning in warnings:
        _print_trouble(f"{warning.subject:8}", warning.message, warning.hint)


@app.command()
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
    from cdc.cli import teardown as removal

    settings = load(file)
    admin = settings.postgres.model_copy(update={"dsn": SecretStr(dsn)}) if dsn else settings.postgres
    if not yes:
        print("\n".join(removal.plan(settings, publication=publication, cache=cache, ddl_sentinel=ddl_sentinel)))
        _confirm("cdc teardown --yes")
    done = asyncio.run(
        removal.carry_out(settings, publication=publication, cache=cache, ddl_sentinel=ddl_sentinel, admin=admin)
    )
    print("\n".join(done))


@app.command()
def restore(
    into: Annotated[str, typer.Option(help="Database that the tables go into.", metavar="DSN")],
    file: ConfigFile = None,
    to_lsn: Annotated[str | None, typer.Option(help="Up to this commit LSN.", metavar="LSN")] = None,
    to_time: Annotated[str | None, typer.Option(help="Up to this time, with its zone.", metavar="TIME")] = None,
    to_ordinal: Annotated[int | None, typer.Option(min=0, help="Up to this transaction.", metavar="ORDINAL")] = None,
    table: Annotated[list[str] | None, typer.Option(help="Only this table; may be repeated.", metavar="NAME")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only rows like this, into a schema beside the live tables.", metavar="COLUMN=VALUE"),
    ] = None,
    schema: Annotated[
        str | None, typer.Option(help="With --where: that schema.  [default: cdc_restored]", metavar="NAME")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look at everything and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Bring the archive's tables, as they were at a moment, into an empty database; killed, it goes on.

    With --where, repeatable, only rows of which all conditions are true. The target may then be the live database: they
    go into a schema of their own and are compared with the live tables. Differences are no failure: exit code 0.
    """
    from cdc import restore as recovery

    settings, until = load_archive(file), recovery.read_until(to_lsn, to_time, to_ordinal)
    if where or schema is not None:
        from cdc.restore import excerpt

        wanted = excerpt.read_where(where or ())
        with recovery.watched() as meter:
            search = excerpt.restore_rows(
                settings, into, until, wanted,
                schema=schema or excerpt.DEFAULT_SCHEMA, tables=table or (), dry_run=dry_run, meter=meter,
            )  # fmt: skip
            found = asyncio.run(search)
        if as_json:
            _print_json(excerpt.facts(found))
        else:
            _print_table(excerpt.grid(found))
            print("\n".join(excerpt.lines(found)))
        return
    with recovery.watched() as meter:
        work = recovery.restore(settings, into, until, tables=table or (), dry_run=dry_run, meter=meter)
        outcome = asyncio.run(work)
    if as_json:
        _print_json(recovery.facts(outcome))
    else:
        print("\n".join(recovery.lines(outcome)))


@app.command()
def drill(
    file: ConfigFile = None,
    into: Annotated[
        str | None, typer.Option(help="Server for the scratch database; default: an embedded one.", metavar="DSN")
    ] = None,
    table: Annotated[list[str] | None, typer.Option(help="Only this table; may be repeated.", metavar="NAME")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="So many tables, drawn anew each time.")] = None,
    budget: Annotated[float, typer.Option(min=1, help="Seconds after which it has failed.", metavar="S")] = 3600,
    wait: Annotated[float, typer.Option(min=0, help="Seconds until the archive must be there.", metavar="S")] = 120,
    as_json: Json = False,
) -> None:
    """Restore the archive aside, compare it with the live tables, clean up; exit code 1 if it is not the same."""
    from cdc.restore import drill as rehearsal

    plan = rehearsal.Plan(into, tuple(table or ()), sample, budget, wait)
    done = asyncio.run(rehearsal.drill(load(file), plan))
    if as_json:
        _print_json(rehearsal.facts(done))
    else:
        print("\n".join(rehearsal.lines(done)))
    _end(0 if done.found.equal else 1)


# The archive ----------------------------------------------------------------------------------------------------------

From = Annotated[int, typer.Option("--from", min=0, help="First segment.", metavar="SEQ")]
To = Annotated[int | None, typer.Option("--to", min=0, help="Last segment.", metavar="SEQ")]


@archive_app.command("ls")
def archive_ls(file: ConfigFile = None, first: From = 0, last: To = None, as_json: Json = False) -> None:
    """List segments: kind, positions, transactions, changes, time and size."""
    from cdc.cli import listing

    asyncio.run(_write(listing.ls(load_archive(file), first, last, as_json=as_json)))


@archive_app.command("cat")
def archive_cat(
    file: ConfigFile = None,
    first: From = 0,
    last: To = None,
    table: Annotated[str | None, typer.Option(help="Of this table only, as public.turns.", metavar="NAME")] = None,
) -> None:
    """Print changes as they are archived, one JSON object a line."""
    from cdc.cli import listing

    asyncio.run(_write(listing.cat(load_archive(file), first, last, table=table)))


@archive_app.command("verify")
def archive_verify(
    file: ConfigFile = None,
    against: Annotated[
        str | None, typer.Option(help="Compare with the live tables of the source too.", metavar="DSN")
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds until the archive must be there.", metavar="S")] = 120,
    full: Annotated[bool, typer.Option("--full", help="Read everything again, not only what is new.")] = False,
    as_json: Json = False,
) -> None:
    """Prove chain, order, density and checksums of what is new; exit code 1 if the archive is damaged, or differs."""
    from cdc.cli import listing

    run = asyncio.run(listing.prove(load_archive(file), full=full))
    facts, lines, well = listing.report_facts(run), list(listing.report_lines(run)), run.report.intact
    if against is not None and run.report.intact:
        from cdc.restore import comparison

        found = asyncio.run(comparison.compare_and_remember(load_archive(file), against, patience_s=wait))
        facts["against"], well = comparison.facts(found), found.equal
        lines += comparison.lines(found)
    if as_json:
        _print_json(facts)
    else:
        print("\n".join(lines))
    _end(0 if well else 1)


@key_app.command("generate")
def key_generate(
    out: Annotated[Path, typer.Option(help="New file for the private key; it must not exist.", metavar="FILE")],
) -> None:
    """Draw a pair of keys: the private one into a file, the public one, for archive.recipients, to stdout."""
    from cdc.archive.format.key_file import write_identity

    print(write_identity(out))


# Printing -------------------------------------------------------------------------------------------------------------


async def _write(lines: AsyncIterator[bytes]) -> None:
    async for line in lines:
        sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def _confirm(unasked: str) -> None:
    """Go on only if somebody says so; a script, in which nobody can, is told the command that does not ask."""
    try:
        agreed = typer.confirm("Go on?")
    except typer.Abort:
        raise Invalid("nobody answered, so nothing was done", hint=unasked) from None
    if not agreed:
        raise typer.Abort


def _print_json(facts: Any) -> None:
    print(json.dumps(facts, indent=2))


def _print_table(rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; never cut to a terminal's width, for a pipe has none."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_trouble(subject: str, message: str, hint: str) -> None:
    print(f"{subject}  {message}")
    for line in f"hint: {hint}".splitlines() if hint else ():
        print(f"{'':{len(subject)}}  {line.strip()}")
