"""`cdc key`: draws keys for an encrypted archive."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Keys of an encrypted archive: generate.", no_args_is_help=True)


@app.command()
def generate(
    out: Annotated[Path, typer.Option(help="New file for the private key; it must not exist.", metavar="FILE")],
) -> None:
    """Draw a pair of keys. The private one goes into a file, the public one, for archive.recipients, to stdout."""
    from cdc.archive.format.key_file import write_identity

    print(write_identity(out))
