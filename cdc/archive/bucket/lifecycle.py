"""Reads the rules by which a bucket deletes or moves objects by itself, its locks and versions, and its clock.

Only a bucket on S3 has such rules. Not every store answers, and not every key may ask: an unknown fact is None.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

from cdc.archive.bucket.bucket import Bucket
from cdc.config import ArchiveSettings
from cdc.errors import CdcError

# Reading an object from these storage classes takes hours, and a restore reads all of them.
_DEEP = ("GLACIER", "DEEP_ARCHIVE")

_OURS = ("log/", "base/")


@runtime_checkable
class _Described(Protocol):
    async def describe(self, operation: str) -> dict[str, Any] | None: ...


@dataclass(frozen=True, slots=True)
class Rule:
    """A lifecycle rule that concerns the archive: it deletes objects, or moves them to where reading takes hours."""

    name: str
    prefix: str
    deletes: bool
    when: str


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of a bucket. `others` are the lifecycle rules that may stay, as S3 writes them. None: not known."""

    harmful: tuple[Rule, ...] | None
    others: tuple[Mapping[str, Any], ...]
    versioned: bool | None
    locked: bool | None


async def read_rules(settings: ArchiveSettings, bucket: Bucket) -> Rules | None:
    """Read the bucket's rules; None for a bucket without any, such as a directory. Raises Unavailable or Invalid."""
    if not isinstance(bucket, _Described):
        return None
    lifecycle = await _ask(bucket, "get_bucket_lifecycle_configuration")
    versioning = await _ask(bucket, "get_bucket_versioning")
    lock = await _ask(bucket, "get_object_lock_configuration")
    prefix = urlsplit(settings.url).path.strip("/")
    harmful, others = sort_rules((lifecycle or {}).get("Rules", ()), f"{prefix}/" if prefix else "")
    return Rules(
        None if lifecycle is None else harmful,
        others,
        None if versioning is None else versioning.get("Status") == "Enabled",
        None if lock is None else lock.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled",
    )


async def read_bucket_time(bucket: Bucket) -> float | None:
    """Read the store's clock, in whole seconds since 1970; None if it has none. Raises Unavailable or Invalid."""
    answer = await bucket.describe("head_bucket") if isinstance(bucket, _Described) else None
    date = ((answer or {}).get("ResponseMetadata") or {}).get("HTTPHeaders", {}).get("date")
    return None if date is None else parsedate_to_datetime(date).timestamp()


async def _ask(bucket: _Described, operation: str) -> dict[str, Any] | None:
    """Ask the store; {} if there is no such configuration, None if the store refuses to tell, as it may."""
    try:
        return await bucket.describe(operation) or {}
    except CdcError:
        return None


def sort_rules(
    rules: Iterable[Mapping[str, Any]], prefix: str
) -> tuple[tuple[Rule, ...], tuple[Mapping[str, Any], ...]]:
    """Sort lifecycle rules (pure): first those that delete or move objects under this prefix, then the rest."""
    harmful, others = [], []
    for rule in rules:
        found = _judge(rule, prefix)
        if found is None:
            others.append(rule)
        else:
            harmful.append(found)
    return tuple(harmful), tuple(others)


def _judge(rule: Mapping[str, Any], prefix: str) -> Rule | None:
    where = rule.get("Filter") or {}
    both = where.get("And") or {}
    theirs = both.get("Prefix") or where.get("Prefix") or rule.get("Prefix") or ""
    tagged = both.get("Tags") or where.get("Tag")  # our objects have no tags
    concerned = any((prefix + ours).startswith(theirs) or theirs.startswith(prefix + ours) for ours in _OURS)
    if rule.get("Status") != "Enabled" or tagged or not concerned:
        return None
    name, expiration = rule.get("ID", "without a name"), rule.get("Expiration") or {}
    if "Days" in expiration or "Date" in expiration:
        return Rule(name, theirs, True, _when(expiration))
    deep = [one for one in rule.get("Transitions") or () if one.get("StorageClass") in _DEEP]
    return Rule(name, theirs, False, _when(deep[0])) if deep else None


def _when(action: Mapping[str, Any]) -> str:
    return f"after {action['Days']} days" if "Days" in action else f"on {action.get('Date'):%Y-%m-%d}"
