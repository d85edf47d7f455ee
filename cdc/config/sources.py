"""Reads cdc.toml, the environment and the files of secrets, and notes which of them gave each value."""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdc.config.credentials import find_secret
from cdc.config.option import Option, options
from cdc.errors import Invalid

# Tried in this order when `--config` is absent. None need exist: the environment may give every option.
DEFAULT_PATHS = (Path("cdc.toml"), Path("/etc/waltier/cdc.toml"))

_ENVIRONMENT_NAME = re.compile(r"CDC_([A-Z0-9]+)__([A-Z0-9_]+)")
_PASSWORD = re.compile(r"password\s*=|://[^/@]*:[^/@]+@", re.IGNORECASE)

# Options that a variable gives as JSON.
_LISTS = ("projections", "recipients")


@dataclass(frozen=True, slots=True)
class Found:
    """The merged values, the source of each, and a complaint for each secret that could not be read."""

    values: dict[str, Any]
    file: Path | None
    said_by: dict[tuple[str, ...], str]
    complaints: dict[tuple[str, ...], str]
    secret_files: list[Path]

    @property
    def sources(self) -> str:
        return f"{self.file} and the environment" if self.file else "the environment; there is no cdc.toml here"

    def put(self, section: str, option: str, value: Any, source: str) -> None:
        """Set one option; a value of the environment replaces that of the file."""
        self.said_by[section, option] = source
        table = self.values.setdefault(section, {})
        if isinstance(table, dict):
            table[option] = value


def read(path: Path | None, environ: Mapping[str, str], sections: Sequence[str]) -> Found:
    """Read every option, but only the secrets of `sections`: a command opens no file that it does not need.

    Raises Invalid if cdc.toml or a variable cannot be parsed; a secret that cannot be read is a complaint.
    """
    file = path or next((candidate for candidate in DEFAULT_PATHS if candidate.is_file()), None)
    found = Found(_read_file(file) if file else {}, file, {}, {}, [])
    secrets = [option for option in options() if option.secret]
    if file and any(_holds_secret(found.values, option) for option in secrets):
        found.secret_files.append(file)
    names_of_files = {f"{option.variable}_FILE" for option in secrets}
    for name, text in environ.items():
        match = _ENVIRONMENT_NAME.fullmatch(name)
        # An empty variable is one that a compose file passed through unset.
        if match and text and name not in names_of_files:
            section, option = match[1].lower(), match[2].lower()
            found.put(section, option, _parse_variable(name, text) if option in _LISTS else text, name)
    for secret in secrets:
        if secret.section in sections:
            _read_secret(found, secret, environ)
    return found


def _holds_secret(values: Mapping[str, Any], option: Option) -> bool:
    """True if cdc.toml contains this secret; an address without a password is none."""
    table = values.get(option.section)
    text = table.get(option.name) if isinstance(table, dict) else None
    return isinstance(text, str) and (option.name not in ("dsn", "url") or bool(_PASSWORD.search(text)))


def _read_secret(found: Found, option: Option, environ: Mapping[str, str]) -> None:
    try:
        secret = find_secret(option.full_name, option.variable, environ)
    except Invalid as error:
        found.complaints[option.section, option.name] = (
            f"{option.full_name}: {error.message}" + f"\n      {error.hint}" * bool(error.hint)
        )
        return
    if secret is None:
        return
    found.put(option.section, option.name, secret.text, secret.source)
    if secret.file is not None:
        found.secret_files.append(secret.file)


def _parse_variable(name: str, text: str) -> Any:
    example: Any = next((option.example for option in options() if option.variable == name), [])
    try:
        return json.loads(text)
    except ValueError as error:
        raise Invalid(
            f"{name} is not JSON",
            detail=str(error),
            hint=f"{name}='{json.dumps(example)}'",
        ) from error


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Invalid(
            f"the configuration file {path} cannot be read",
            detail=error.strerror or str(error),
            hint=f"ls -l {path}",
        ) from error
    except ValueError as error:
        # Both TOMLDecodeError, which names line and column, and UnicodeDecodeError.
        raise Invalid(
            f"the configuration file {path} is not TOML",
            detail=str(error),
            hint='texts are quoted, as in: slot = "cdc"',
        ) from error
