"""`cdc run`: runs the service."""

import asyncio

import typer

from cdc.cli.options import ConfigFile


def run(file: ConfigFile = None) -> None:
    """Archive and warm until SIGTERM; logs JSON lines to stderr."""
    from cdc import log
    from cdc.config import load
    from cdc.service import service

    settings = load(file)
    log.to_stderr(settings.log.level)
    raise typer.Exit(asyncio.run(service.run(settings)))
