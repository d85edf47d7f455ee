"""Describes each option: its full name, its environment variable, and a line that sets it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from cdc.config.settings import SECTIONS


@dataclass(frozen=True, slots=True)
class Option:
    """One option by its full name, `postgres.slot`. `example` is a value to paste: the default, or one made up."""

    section: str
    name: str
    field: FieldInfo

    @property
    def full_name(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def variable(self) -> str:
        return f"CDC_{self.section}__{self.name}".upper()

    @property
    def secret(self) -> bool:
        """True if the value must never be printed and may be in a file of its own."""
        return "SecretStr" in str(self.field.annotation)

    @property
    def example(self) -> Any:
        return self.field.examples[0] if self.field.examples else self.field.default

    @property
    def line(self) -> str:
        """A line of cdc.toml that sets the option."""
        return f"{self.name} = {as_toml(self.example)}"


def options() -> Iterator[Option]:
    """Yield every option of every section, in the order of the documentation."""
    for section, model in SECTIONS.items():
        for name, field in model.model_fields.items():
            yield Option(section, name, field)


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {as_toml(item)}" for name, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(as_toml(item) for item in value) + "]"
    return json.dumps(value)


def as_shell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"'{text}'" if re.search(r"[^\w@%+=:,./-]", text) else text
