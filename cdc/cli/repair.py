"""`cdc repair`: runs the service once, for a gap that a person has decided to close."""

import asyncio

import typer

from cdc.cli.options import ConfigFile


def repair(file: ConfigFile = None) -> None:
    """Close a gap in the archive by a new slot and a new snapshot; logs JSON lines to stderr."""
    from cdc import log
    from cdc.config import load
    from cdc.service import service

    settings = load(file)
    log.to_stderr(settings.log.level)
    archive = settings.archive.model_copy(update={"on_gap": "resnapshot"})
    raise typer.Exit(asyncio.run(service.run(settings.model_copy(update={"archive": archive}), only_repair=True)))
