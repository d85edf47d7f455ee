"""P5 in full: each read of the cache is a committed version of its row, and never one older than was read before.

`Reads` notes what a sampler reads, from every projection, in the order in which Redis answered; of a row that is read
twice alike, once. `check_reads` compares with the row's versions as the witness tells them. A row is in several keys,
and one script call moves all of them: so the order must hold across keys, not only within one.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from tests.faults.history import Row, Transaction

TURNS = "public.turns"
STATE_COLUMNS = ("id", "turn_id", "role", "state", "confidence", "metadata", "created_at")

# Which columns a projection shows: all of the row's, or the state's.
FULL, STATE = "full", "state"

Version = tuple[str, bytes]


def digest(row: Row, shape: str) -> bytes:
    """Names a version of a row as a projection of that shape shows it."""
    names = sorted(row) if shape == FULL else STATE_COLUMNS
    text = repr([(name, row.get(name, "absent")) for name in names])
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()


class Reads:
    """What was read of each row, in order."""

    def __init__(self) -> None:
        self.count = 0
        self.of_row: dict[str, list[tuple[str, Version]]] = defaultdict(list)
        self._since: dict[str, set[Version]] = {}

    def note(self, key: str, row: Row, shape: str) -> None:
        """This row was read from this key. Left out if nothing else was read of it since it was read alike."""
        self.note_version(key, str(row.get("id")), (shape, digest(row, shape)))

    def note_version(self, key: str, row_id: str, version: Version) -> None:
        """The same, for who knows the digest already."""
        self.count += 1
        since = self._since.setdefault(row_id, set())
        if version in since:
            return
        if any(shape == version[0] for shape, _ in since):
            since.clear()
        since.add(version)
        self.of_row[row_id].append((key, version))


def check_reads(reads: Reads, told: Sequence[Transaction], before: Iterable[Row] = ()) -> list[str]:
    """What is wrong with the reads. `before` are the rows that were there when the witness began to listen."""
    versions = versions_of(told, before)
    findings = []
    for row_id, seen in reads.of_row.items():
        known = versions.get(row_id, [])
        at = 0
        for key, (shape, found) in seen:
            later = next((n for n in range(at, len(known)) if known[n][shape] == found), None)
            if later is not None:
                at = later
                continue
            if any(version[shape] == found for version in known):
                findings.append(f"{key} went back to an older version of row {row_id}")
            else:
                findings.append(f"{key} held a version of row {row_id} that was never committed")
            break
    return findings


def versions_of(told: Sequence[Transaction], before: Iterable[Row] = ()) -> dict[str, list[Mapping[str, bytes]]]:
    """Every version that each turn had, by its id: what was there, and then each change of a committed transaction."""
    rows: dict[str, Row] = {str(row["id"]): row for row in before}
    versions = {row_id: [_shapes(row)] for row_id, row in rows.items()}
    for transaction in told:
        for change in transaction.changes:
            if change.table != TURNS or change.new is None:
                continue
            last = change.old if change.old is not None and "id" in change.old else change.new
            previous = rows.pop(str(last["id"]), {})
            row = {**change.new, **{name: previous.get(name) for name in change.unchanged}}
            rows[str(row["id"])] = row
            versions.setdefault(str(row["id"]), []).append(_shapes(row))
    return versions


def _shapes(row: Row) -> Mapping[str, bytes]:
    return {shape: digest(row, shape) for shape in (FULL, STATE)}
