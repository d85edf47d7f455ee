"""Finds secrets outside of cdc.toml: in a variable, in a file that a variable names, or in a systemd credential.

    CDC_POSTGRES__DSN=postgresql://...             the secret itself
    CDC_POSTGRES__DSN_FILE=/run/secrets/dsn        a file that holds it: Docker, Kubernetes
    $CREDENTIALS_DIRECTORY/postgres.dsn            systemd: LoadCredential=postgres.dsn:/etc/waltier/dsn
    $CREDENTIALS_DIRECTORY/aws                     the same for S3, in the form of ~/.aws/credentials

Two sources for one secret are a mistake. They have no order of precedence: one of the two is stale, and an order would
hide which one is used. The line break at the end of a file is not part of the secret. No error here quotes a file.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cdc.errors import Invalid

# The name of the credential that the S3 client reads; it stands for AWS_SHARED_CREDENTIALS_FILE.
AWS_CREDENTIAL = "aws"

_FILE_SUFFIX = "_FILE"

# systemd allows a credential 1 MiB; a connection string or a key is far below this, and /dev/zero is above it.
_LARGEST_BYTES = 64 * 1024

_AWS_SOURCES = ("AWS_ACCESS_KEY_ID", "AWS_SHARED_CREDENTIALS_FILE")


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret, and the source to name in messages. The repr leaves its text out."""

    text: str
    source: str
    file: Path | None = None

    def __repr__(self) -> str:
        return f"Secret(source={self.source!r})"


def find_secret(name: str, variable: str, environ: Mapping[str, str] = os.environ) -> Secret | None:
    """Find the secret `name` (`postgres.dsn`) outside of cdc.toml; None if no source has it.

    Raises Invalid if two sources have it, or if its file is unreadable, empty, too large or not UTF-8.
    """
    text, file_variable, credential = environ.get(variable), variable + _FILE_SUFFIX, credential_file(name, environ)
    files = {file_variable: Path(environ[file_variable])} if environ.get(file_variable) else {}
    if credential is not None:
        files[f"credential {name}"] = credential
    sources = [*([variable] if text else []), *files]
    if len(sources) > 1:
        raise Invalid(f"is given twice, by {' and by '.join(sources)}", hint="keep one of them")
    if text:
        return Secret(text, variable)
    return next((Secret(_read(file), source, file) for source, file in files.items()), None)


def credential_file(name: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The file of the systemd credential `name`; None if systemd passes none."""
    directory = environ.get("CREDENTIALS_DIRECTORY")
    file = Path(directory) / name if directory else None
    return file if file is not None and file.exists() else None


def aws_credentials_file(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The file of the S3 credential; None if systemd passes none. Raises Invalid if S3 has a second source."""
    file = credential_file(AWS_CREDENTIAL, environ)
    twice = next((name for name in _AWS_SOURCES if environ.get(name)), None)
    if file is not None and twice is not None:
        raise Invalid(
            f"the credentials for S3 are given twice, by {twice} and by credential {AWS_CREDENTIAL}",
            hint=f"unset {twice}   # or take LoadCredential={AWS_CREDENTIAL}:... out of the unit",
        )
    return file


def is_open_to_others(file: Path) -> bool:
    """True if any user of this machine may read the file and may pass every directory above it."""
    file = file.resolve()
    try:
        way_is_open = all(parent.stat().st_mode & stat.S_IXOTH for parent in file.parents)
        return way_is_open and bool(file.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise Invalid(f"{file} cannot be read: {error.strerror or error}", hint=f"ls -l {file}") from None
    if len(content) > _LARGEST_BYTES:
        raise Invalid(f"{file} is larger than {_LARGEST_BYTES} bytes, and so no secret", hint=f"ls -l {file}")
    try:
        text = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise Invalid(f"{file} is not UTF-8 text", hint=f"file {file}") from None
    if not text:
        raise Invalid(f"{file} is empty", hint=f"ls -l {file}")
    return text
