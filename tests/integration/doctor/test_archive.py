"""What the doctor finds on a bucket, made true first; and that the printed script mends it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc.config import ArchiveSettings
from cdc.doctor.archive import judge_address
from tests.support.doctor_script import Pasted
from tests.support.s3 import S3Server

RULE = (
    "<LifecycleConfiguration>{}</LifecycleConfiguration>",
    "<Rule><ID>{name}</ID><Status>{status}</Status><Filter><Prefix>{prefix}</Prefix></Filter>{action}</Rule>",
)
EXPIRES = "<Expiration><Days>30</Days></Expiration>"
FREEZES = "<Transition><Days>90</Days><StorageClass>GLACIER</StorageClass></Transition>"
TIDIES = "<AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload>"


def lifecycle(*rules: tuple[str, str, str]) -> str:
    """Rules of name, prefix and action."""
    written = [
        RULE[1].format(name=name, status="Enabled", prefix=prefix, action=action) for name, prefix, action in rules
    ]
    return RULE[0].format("".join(written))


@pytest.fixture
def s3() -> Iterator[S3Server]:
    """One that takes every way of sending a rule; what we send ourselves is tried on one that is as strict as R2."""
    with S3Server(tls=True, mode="plain") as server:
        yield server


@pytest.fixture
def pasted(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pasted:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return Pasted(
        tmp_path,
        None,
        "s3://archive/chat",
        None,
        slot="cdc_doctor",
        CDC_ARCHIVE__ENDPOINT_URL=s3.endpoint_url,
    )


@pytest.mark.parametrize(
    ("rules", "found", "level"),
    [
        ([("tidy", "", EXPIRES)], "'tidy' deletes objects of the archive after 30 days (prefix: everything)", "error"),
        ([("ours", "chat/", EXPIRES)], "'ours' deletes objects", "error"),
        ([("part", "chat/log/00", EXPIRES), ("uploads", "", TIDIES)], "'part' deletes objects", "error"),
        ([("cold", "chat/", FREEZES)], "'cold' moves the archive after 90 days", "warning"),
    ],
    ids=["everything", "our prefix", "a part of it", "frozen"],
)
def test_a_rule_that_endangers_the_log_is_found_and_taken_away(
    pasted: Pasted, s3: S3Server, rules: list[tuple[str, str, str]], found: str, level: str
) -> None:
    s3.configure("lifecycle", lifecycle(*rules))
    (finding,) = [one for one in pasted.findings() if found in one.message]
    assert finding.level == level
    pasted.assert_mended(found)
    assert pasted.finds("no lifecycle rule deletes or hides the log")
    kept = s3.configuration("lifecycle")
    assert [name for name, _, _ in rules if name == "uploads"] == (["uploads"] if "uploads" in kept else [])


def test_rules_for_others_and_rules_that_only_tidy_are_no_trouble(pasted: Pasted, s3: S3Server) -> None:
    s3.configure("lifecycle", lifecycle(("logs", "web/", EXPIRES), ("uploads", "", TIDIES), ("old", "chat2/", EXPIRES)))
    assert pasted.finds("no lifecycle rule deletes or hides the log")


def test_a_bucket_that_does_not_tell_is_no_error(pasted: Pasted, s3: S3Server) -> None:
    s3.deny_questions = True
    assert pasted.finds("whether a lifecycle rule deletes the log cannot be seen")
    assert not pasted.finds("the bucket keeps no versions")


def test_versions_are_offered_and_a_lock_needs_none(pasted: Pasted, s3: S3Server) -> None:
    pasted.assert_mended("the bucket keeps no versions", optional=True)
    s3.configure("versioning", "<VersioningConfiguration/>")
    s3.configure(
        "object-lock",
        "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>",
    )
    assert pasted.finds("the bucket is locked")
    assert not pasted.finds("keeps no versions")


def test_a_bucket_whose_clock_is_wrong_is_named(pasted: Pasted, s3: S3Server) -> None:
    assert pasted.finds("the bucket has our time")
    s3.clock_offset_s = -120
    assert pasted.finds("the bucket is 1")
    assert "#? timedatectl set-ntp true" in pasted.script()


def test_what_we_send_is_what_r2_takes_and_the_cost_is_said_before_it_is_paid(pasted: Pasted, s3: S3Server) -> None:
    s3.forget()
    s3.mode = "r2"
    assert pasted.finds("PUTs cost at most $11.83 a month while traffic never pauses (linger_s = 1), $0.20 without any")
    assert s3.violations == []
    pasted.cdc.settings["CDC_ARCHIVE__LINGER_S"] = "0"
    (dear,) = [one for one in pasted.findings() if "PUTs cost at most $236.68" in one.message]
    assert (dear.level, dear.hint) == ("warning", "linger_s = 1.0   # in [archive]")


def test_a_region_that_the_endpoint_does_not_take_is_an_error_with_the_line(pasted: Pasted, s3: S3Server) -> None:
    s3.mode = "r2"
    pasted.cdc.settings["CDC_ARCHIVE__REGION"] = "eu-central-1"
    (wrong,) = [one for one in pasted.findings() if (one.level, one.subject) == ("error", "archive")]
    assert "InvalidRegionName" in wrong.message
    assert 'archive.region = "auto"' in wrong.hint


@pytest.mark.parametrize(
    ("endpoint", "region", "said"),
    [
        ("http://s3.example.net", "auto", "can read every row"),
        ("http://127.0.0.1:9000", "auto", None),
        ("https://0123.r2.cloudflarestorage.com", "eu-west-1", "R2 wants auto"),
        ("https://0123.r2.cloudflarestorage.com", "auto", None),
    ],
)
def test_an_endpoint_is_judged_before_it_is_asked(endpoint: str, region: str, said: str | None) -> None:
    settings = ArchiveSettings(url="s3://archive/chat", endpoint_url=endpoint, region=region, allow_insecure=True)
    found = judge_address(settings)
    assert [said in one.message for one in found if said] == ([True] if said else [])
    assert bool(found) == bool(said)
