"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer


def _effective_file(context: typer.Context, value: Path | None) -> Path | None:
    """Choose the file of `--config`, which may stand before the command or after it."""
    file = value or context.find_root().params.get("file")
    return file if isinstance(file, Path) else None


ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", envvar="CDC_CONFIG", callback=_effective_file, help="Configuration file.", metavar="FILE"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Tables = Annotated[list[str] | None, typer.Option("--table", help="Only this table; may be repeated.", metavar="NAME")]
Patience = Annotated[float, typer.Option("--wait", min=0, help="Seconds until the archive must be there.", metavar="S")]
