"""The `cdc` command: one file for each command, and no knowledge of its own.

A command reads the configuration, calls one room, prints what came back and ends with an exit code: 0 done, 1 failed,
2 usage or configuration, 75 fenced by another writer, 78 a person must decide. Rooms return values; this room makes
tables and JSON of them. Errors that we raise on purpose are printed to stderr in their three parts, message, detail and
hint; anything else is a bug and shows its traceback.

A command imports its room inside its function, so that `cdc --help` does not wait for drivers that it will not use.
"""

import sys
from typing import Annotated

import typer

from cdc import __version__
from cdc.cli import archive, config, demo, doctor, drill, init, key, repair, restore, run, slots, status, teardown
from cdc.cli.options import ConfigFile
from cdc.errors import CdcError

app = typer.Typer(
    help="From the WAL of Postgres to an append-only archive and a warm Redis cache.",
    epilog="Configuration: ./cdc.toml, else /etc/waltier/cdc.toml, overridden by CDC_POSTGRES__DSN and so on.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # pretty ones print local variables, which may hold secrets
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command()(init.init)
app.command()(run.run)
app.command()(repair.repair)
app.command()(status.status)
app.command()(doctor.doctor)
app.command()(slots.slots)
app.command()(teardown.teardown)
app.command()(restore.restore)
app.command()(drill.drill)
app.add_typer(archive.app, name="archive")
app.add_typer(key.app, name="key")
app.add_typer(config.app, name="config")


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


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"waltier {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    file: ConfigFile = None,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    from cdc import crash, log

    log.to_stderr("warning")
    crash.arm()
