"""Names an archive's objects, below the prefix in `archive.url`.

    log/0000000000000041.ndjson.zst                                segment 41
    base/0000000000000002/public.turns/00000000.ndjson.zst          a chunk of the snapshot that segment 2 commits
    base/0000000000000002/public.turns/deleted/00000000.ndjson.zst  keys of rows that were deleted inside a gap
    hint.json                                                      where the log's end was

Log keys are dense: segment n exists only if all before it do.
"""

from urllib.parse import quote

from cdc.change import Relation

LOG = "log/"
BASE = "base/"
HINT_KEY = "hint.json"
SUFFIX = ".ndjson.zst"


def log_key(seq: int) -> str:
    return f"{LOG}{seq:016d}{SUFFIX}"


def seq_of(key: str) -> int | None:
    """The segment number in a log key; None if it is not one."""
    digits = key.removeprefix(LOG).removesuffix(SUFFIX)
    return int(digits) if digits.isdecimal() and log_key(int(digits)) == key else None


def base_key(seq: int, relation: Relation, number: int, *, deleted: bool = False) -> str:
    """The key of a table's chunk `number`, of the snapshot that segment `seq` commits."""
    table = f"{_part_of_key(relation.schema)}.{_part_of_key(relation.name)}"
    return f"{BASE}{seq:016d}/{table}/{'deleted/' if deleted else ''}{number:08d}{SUFFIX}"


def _part_of_key(name: str) -> str:
    """An identifier as a part of a key. Letters and digits of any script stay; characters that break paths do not."""
    quoted = "".join(char if char.isalnum() or char in "_-.$" else quote(char, safe="") for char in name)
    return quoted.replace(".", "%2E")
