"""The short version of the nemesis, and its self-test: bugs that are planted in the service must turn it red."""

import re
from pathlib import Path

import pytest

import cdc.pipeline.progress
from tests.faults.bugs import program_with
from tests.faults.campaign import play_apart
from tests.faults.kinds import KINDS

pytestmark = [pytest.mark.wide, pytest.mark.timeout(400)]  # a round takes most of a minute

SECONDS = 8.0
# Seeds whose venue is a bucket and the embedded servers, which most of the planted bugs need.
IN_A_BUCKET = (5, 11, 13)


@pytest.fixture
def directory(server_dir: Path, request: pytest.FixtureRequest) -> Path:
    """As short a path as servers need."""
    made = server_dir / re.sub(r"\W+", "-", request.node.name)[-20:]
    made.mkdir()
    made.chmod(0o755)
    return made


def test_a_short_haunting_breaks_no_promise(directory: Path) -> None:
    result = play_apart(6, SECONDS, directory / "6")
    assert result.findings == []
    assert sum(result.faults.values()) > 3
    assert result.figures["transactions"] > 50


@pytest.mark.parametrize(
    ("bug", "kinds", "symptom"),
    [
        ("acknowledged_on_receipt", ["bucket_slow", "service_killed"], "acknowledged .* while the archive held"),
        # Others between the kills, so that something is archived and acknowledged before the next one.
        ("archived_again", ["postmaster_killed", "index_created_and_dropped"], "comes after a later commit"),
        ("retry_with_other_bytes", ["bucket_answer_lost"], "ended with 75 by itself"),
        ("flushed_cache_is_taken_for_warm", ["redis_flushed"], "cache keys are not what Postgres holds"),
    ],
)
def test_a_planted_bug_is_found(bug: str, kinds: list[str], symptom: str, directory: Path) -> None:
    if bug == "acknowledged_on_receipt" and not str(cdc.pipeline.progress.__file__).endswith(".py"):
        pytest.skip("a compiled class takes no planted bug")
    found: list[str] = []
    for seed in IN_A_BUCKET:  # what happens between two faults is the machine's
        found += play_apart(seed, SECONDS, directory / str(seed), kinds=kinds, program=program_with(bug)).findings
        if any(re.search(symptom, finding) for finding in found):
            return
    raise AssertionError(found)


def test_there_are_many_kinds_of_fault_and_each_heals_in_a_bounded_time() -> None:
    assert len(KINDS) >= 18
    assert max(kind.lasts_s[1] for kind in KINDS.values()) <= 10
