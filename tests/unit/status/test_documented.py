"""docs/http.md names every field that `cdc status --json` and `cdc doctor --json` print, and no other."""

import re
from pathlib import Path
from typing import Any

from cdc import doctor, status
from cdc.archive.format.header import Gap
from cdc.archive.proof.proofs import Proofs
from cdc.finding import Finding
from cdc.status import Status
from tests.unit.status.test_status import AWAY, archive, cache, postgres, tried, verified

DOCUMENT = Path(__file__).parents[3] / "docs" / "http.md"
GROUPS = ("postgres", "postgres.slot", "archive", "archive.open_gap", "archive.proofs", "cache")


def rows(heading: str) -> dict[str, str]:
    """The table below this heading: what it says of each field."""
    (table,) = re.findall(
        rf"^\| {re.escape(heading)} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", DOCUMENT.read_text(), re.MULTILINE
    )
    cells = [line.strip("|").split("|") for line in table.splitlines()]
    return {name: said for names, said in cells for name in words(names)}


def words(text: str) -> set[str]:
    return set(re.findall(r"`([\w.]+)`", text))


def facts() -> dict[str, Any]:
    """A status in which every part is there, and something is wrong."""
    proofs = Proofs(verified(), tried(), tried())
    gap = Gap(from_lsn=1, reason="lost", time_us=1)
    return status.facts(Status(postgres(), archive(proofs=proofs, open_gap=gap), cache(error=AWAY)))


def part(told: dict[str, Any], group: str) -> dict[str, Any]:
    for name in group.split("."):
        told = told[name]
    return told


def test_the_fields_of_a_status_are_those_of_the_document() -> None:
    told, documented = facts(), rows("field of `cdc status --json`")
    assert set(documented) == set(told) | set(GROUPS)
    assert words(documented["troubles"]) == set(told["troubles"][0])
    for group in set(GROUPS) - {"archive.proofs"}:
        assert words(documented[group]) == set(part(told, group)), group


def test_the_fields_of_a_proof_are_those_of_the_document() -> None:
    proofs = facts()["archive"]["proofs"]
    fields = {name for proof in proofs.values() for name in proof}
    assert words(rows("field of `cdc status --json`")["archive.proofs"]) == set(proofs) | fields


def test_the_fields_of_a_finding_are_those_of_the_document() -> None:
    (told,) = doctor.facts([Finding("cache", "evicts")])
    assert set(rows("field of a finding")) == set(told)
