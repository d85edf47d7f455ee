"""Reports every mistake at once: the full name of the option, what is wrong with it, and a line to paste.

No value of a secret, of an unknown option, or with an `@` in it is ever printed.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from cdc.config.option import Option, as_shell, options
from cdc.config.section import SectionT
from cdc.config.settings import KINDS, SECTIONS
from cdc.config.sources import Found
from cdc.errors import Invalid


def validate(model: type[SectionT], values: Any, prefix: tuple[str, ...], found: Found) -> SectionT:
    """Make settings of these values; `prefix` names the section if they belong to one. Raises Invalid."""
    errors: list[ErrorDetails] = []
    try:
        settings = model.model_validate(values)
        if not found.complaints:
            return settings
    except ValidationError as failure:
        errors = failure.errors(include_url=False)
    mistakes = [*found.complaints.values()]
    mistakes += [_explain(error, prefix, found) for error in errors if not _follows(error, prefix, found)]
    raise Invalid(
        f"the configuration has {len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''} ({found.sources})",
        detail="\n  " + "\n  ".join(mistakes),
        hint="cdc --config FILE names another file; cdc config sample   # explains every option",
    )


def _follows(error: ErrorDetails, prefix: tuple[str, ...], found: Found) -> bool:
    """True if the error only repeats a complaint: a secret could not be read, so its option or section is missing."""
    location = (prefix + tuple(str(part) for part in error["loc"]))[:2]
    return any(at[: len(location)] == location for at in found.complaints)


def _explain(error: ErrorDetails, prefix: tuple[str, ...], found: Found) -> str:
    """Describe one mistake: the option's full name, what is wrong, and a line to paste."""
    location = prefix + tuple(str(part) for part in error["loc"])
    if not location:  # what two sections say together
        return str(error["ctx"]["error"])
    name, siblings = _resolve(location)
    source = found.said_by.get(location[:2])
    said_by = f" (from {source})" if source else ""
    if error["type"] == "extra_forbidden":
        return f"{name}{said_by}: there is no such option{_did_you_mean(location, siblings)}"
    return f"{name}{said_by}: {_what_is_wrong(error, location)}{_paste(location, siblings)}"


def _resolve(location: Sequence[str]) -> tuple[str, Mapping[str, FieldInfo]]:
    """Return the option's full name, and the fields in which its last part is looked up."""
    if len(location) > 2 and location[1] == "projections":
        # cache, projections, 0, history, key: the tag of the union is no part of the name.
        kind = location[3] if len(location) > 3 and location[3] in KINDS else "row"
        rest = [part for part in location[3:] if part not in KINDS]
        return ".".join([f"cache.projections[{location[2]}]", *rest]), KINDS[kind].model_fields
    section = SECTIONS.get(location[0])
    return ".".join(location), section.model_fields if section and len(location) > 1 else {}


def _did_you_mean(location: Sequence[str], siblings: Mapping[str, FieldInfo]) -> str:
    wrong = location[-1]
    if len(location) == 1:
        elsewhere = next((option for option in options() if option.name == wrong), None)
        if elsewhere:
            return f"; did you mean {elsewhere.full_name}?\n      [{elsewhere.section}]\n      {elsewhere.line}"
        near = difflib.get_close_matches(wrong, SECTIONS, 1)
        return f"; did you mean [{near[0]}]?" if near else f"; the sections are {', '.join(SECTIONS)}"
    near = difflib.get_close_matches(wrong, siblings, 1, 0.5)
    if not near:
        return f"; there are {', '.join(siblings)}" if siblings else f"; the sections are {', '.join(SECTIONS)}"
    right = ".".join([_resolve(location)[0].rpartition(".")[0], near[0]])
    return f"; did you mean {right}?{_paste([*location[:-1], near[0]], siblings)}"


def _what_is_wrong(error: ErrorDetails, location: Sequence[str]) -> str:
    match error["type"]:
        case "missing":
            return "is missing"
        case "union_tag_not_found":
            return "kind is missing: one of history, row, latest"
        case "union_tag_invalid":
            return "kind should be one of history, row, latest"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "should be a table"
        case "value_error":
            reason = str(error["ctx"]["error"])
        case _:
            reason = error["msg"].replace("Input should be", "should be")
    return reason + _as_given(error["input"], location)


def _as_given(value: Any, location: Sequence[str]) -> str:
    # A bucket's url is no secret, but people put credentials into it.
    secret = location[-1] == "url" or any(option.secret and location[-1] == option.name for option in options())
    if secret or "@" in str(value) or not isinstance(value, str | int | float):
        return ""
    return f", not {str(value)[:80]!r}"


def _paste(location: Sequence[str], siblings: Mapping[str, FieldInfo]) -> str:
    field = siblings.get(location[-1])
    if field is None:
        return ""
    option = Option(location[0], location[-1], field)
    if len(location) > 2:
        return f"\n      {option.line}"
    return f"\n      [{option.section}]\n      {option.line}\n      or: {option.variable}={as_shell(option.example)}"
