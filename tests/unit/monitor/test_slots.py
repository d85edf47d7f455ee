"""One slot is judged in one place: doctor, status and readiness say the same of it, in the same words."""

from typing import Any

import pytest

from cdc.doctor.slots import judge_slots
from cdc.finding import Finding
from cdc.monitor.meter import Meter
from cdc.monitor.report import report
from cdc.monitor.slots import judge_slot
from cdc.status.verdict import judge
from tests.unit.monitor.test_forecast import NOW, seen, slot
from tests.unit.status.test_status import archive, cache, postgres

BRINK: list[dict[str, Any]] = [
    {"wal_status": "lost", "restart_lsn": None, "confirmed_flush_lsn": None},
    {"wal_status": "unreserved", "pid": 7},
    {"invalidation_reason": "idle_timeout"},
]


def of_slots(findings: list[Finding]) -> set[str]:
    return {str(finding) for finding in findings if finding.subject == "slot" and finding.level in ("error", "warning")}


@pytest.mark.parametrize("facts", BRINK)
def test_doctor_status_and_readiness_say_the_same_of_our_slot(facts: dict[str, Any]) -> None:
    watched = slot(name="cdc", **facts)
    looked = report(seen(watched), None, Meter(), "cdc")
    said = of_slots(judge_slots([watched.slot], "cdc", looked.observation.wal_lsn, NOW))
    assert len(said) == 1
    assert of_slots(looked.reasons) == of_slots(looked.warnings(0)) == said
    assert of_slots(list(judge(postgres(slot=watched.slot), archive(), cache()))) == said


def test_doctor_and_warnings_say_the_same_of_a_strangers_slot() -> None:
    for watched in (slot(), slot(wal_status="lost", restart_lsn=None)):
        looked = report(seen(watched), None, Meter(), "cdc")
        said = of_slots(judge_slots([watched.slot], "cdc", looked.observation.wal_lsn, NOW))
        assert len(said) == 1
        assert of_slots(looked.warnings(0)) == said


@pytest.mark.parametrize(
    "facts", [{"restart_lsn": None, "wal_status": None}, {"synced": True}, {"pid": 7}], ids=["unused", "copy", "read"]
)
def test_a_strangers_slot_that_keeps_nothing_of_ours_is_no_finding(facts: dict[str, Any]) -> None:
    assert list(judge_slot(slot(**facts).slot, "cdc", wal_lsn=1, now=NOW)) == []


def test_only_our_own_lost_slot_needs_a_person() -> None:
    lost = slot(wal_status="lost").slot
    assert [finding.needs_person for finding in judge_slot(lost, "theirs")] == [True]
    assert [finding.needs_person for finding in judge_slot(lost, "cdc")] == [False]
