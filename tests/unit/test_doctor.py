"""What the doctor says of facts: pure judgement, no server."""

from collections.abc import Mapping

import pytest

from cdc import doctor
from cdc.cache.server import CacheServer
from cdc.change import Column
from cdc.config import CacheSettings
from cdc.doctor import Finding
from cdc.postgres.publication import Publication, PublishedTable
from cdc.postgres.role import Role
from cdc.postgres.slot import Slot

SANE = {"wal_sender_timeout": "1min", "max_slot_wal_keep_size": "50GB", "idle_replication_slot_timeout": "0"}


def configuration(**changed: str) -> Mapping[str, str]:
    return SANE | changed


def slot(name: str = "cdc", **changed: object) -> Slot:
    facts: dict[str, object] = {
        "name": name,
        "plugin": "pgoutput",
        "database": "chat",
        "temporary": False,
        "active_pid": 42,
        "restart_lsn": 1000,
        "confirmed_flush_lsn": 2000,
        "wal_status": "reserved",
        "safe_wal_size": None,
        "two_phase": False,
        "conflicting": False,
        "invalidation_reason": None,
        "inactive_since": None,
        "failover": False,
        "synced": False,
    }
    return Slot(**(facts | changed))  # type: ignore[arg-type]


def cache_server(**changed: object) -> CacheServer:
    facts: dict[str, object] = {
        "software": "valkey",
        "version": (7, 2, 4),
        "role": "master",
        "cluster": False,
        "maxmemory_bytes": 0,
        "maxmemory_policy": "noeviction",
        "append_only": True,
        "checkpoint": None,
    }
    return CacheServer(**(facts | changed))  # type: ignore[arg-type]


def table(**changed: object) -> PublishedTable:
    facts: dict[str, object] = {
        "schema": "public",
        "name": "notes",
        "oid": 16400,
        "columns": (Column("id", "bigint", 20, -1, True),),
        "replica_identity": "d",
        "identity_columns": ("id",),
        "primary_key": ("id",),
        "row_filter": None,
        "is_partitioned": False,
        "partitions": (),
    }
    return PublishedTable(**(facts | changed))  # type: ignore[arg-type]


def publication(*tables: PublishedTable, via_partition_root: bool = False) -> Publication:
    return Publication("cdc", tables, ("insert", "update", "delete", "truncate"), via_partition_root)


def role(**changed: object) -> Role:
    facts: dict[str, object] = {
        "name": "cdc_replicator", "superuser": False, "replication": True, "unreadable": (), "wal_senders": 0
    }  # fmt: skip
    return Role(**(facts | changed))  # type: ignore[arg-type]


def troubles(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level != "ok"]


def only(findings: list[Finding]) -> Finding:
    (found,) = troubles(findings)
    return found


def test_a_sane_server_has_no_troubles() -> None:
    assert troubles(doctor.judge_configuration(configuration(), 2.0)) == []
    assert troubles(doctor.judge_slots([slot()], "cdc", 5000)) == []
    assert troubles(doctor.judge_publication(publication(table()), CacheSettings())) == []
    assert troubles(doctor.judge_role(role(), 10)) == []
    assert troubles(doctor.judge_cache(cache_server())) == []


def test_only_an_error_makes_the_exit_code_1() -> None:
    assert doctor.exit_code([Finding("ok", "slot", "x"), Finding("warning", "slot", "x")]) == 0
    assert doctor.exit_code([Finding("error", "slot", "x")]) == 1


@pytest.mark.parametrize(
    ("setting", "value", "level", "said"),
    [
        ("wal_sender_timeout", "0", "warning", "a connection that died unnoticed holds the slot"),
        ("wal_sender_timeout", "3s", "warning", "only 3s"),
        ("wal_sender_timeout", "500ms", "warning", "only 500ms"),
        ("max_slot_wal_keep_size", "-1", "warning", "unlimited: a slot that nobody drains fills the disk"),
        ("max_slot_wal_keep_size", "1GB", "warning", "only 1GB"),
        ("max_slot_wal_keep_size", "512MB", "warning", "only 512MB"),
        ("max_slot_wal_keep_size", "0", "warning", "only 0"),
        ("idle_replication_slot_timeout", "1d", "warning", "down for longer loses its slot"),
    ],
)
def test_a_setting_that_is_a_risk_is_named(setting: str, value: str, level: str, said: str) -> None:
    found = only(doctor.judge_configuration(configuration(**{setting: value}), 2.0))
    assert found.level == level
    assert setting in found.message
    assert said in found.message
    assert found.hint


def test_a_server_older_than_the_idle_timeout_is_judged_without_it() -> None:
    older = {name: value for name, value in SANE.items() if name != "idle_replication_slot_timeout"}
    assert troubles(doctor.judge_configuration(older, 2.0)) == []


def test_a_slot_that_is_not_there_yet_is_no_trouble() -> None:
    assert troubles(doctor.judge_slots([], "cdc", 5000)) == []


def test_a_lost_slot_is_an_error_though_its_positions_are_null() -> None:
    lost = slot(wal_status="lost", restart_lsn=None, confirmed_flush_lsn=None, active_pid=None)
    assert only(doctor.judge_slots([lost], "cdc", 5000)).level == "error"


def test_a_strangers_slot_that_nobody_reads_is_a_warning_with_what_it_retains() -> None:
    stranger = slot("old", active_pid=None, restart_lsn=0)
    found = only(doctor.judge_slots([slot(), stranger], "cdc", 3 * 1024**3))
    assert found.level == "warning"
    assert "3.0 GB" in found.message
    assert "pg_drop_replication_slot('old')" in found.hint


def test_a_failover_slot_that_waits_for_its_standby_is_no_trouble_and_the_standbys_settings_are_named() -> None:
    standby = slot("standby", plugin=None)
    findings = doctor.judge_failover([slot(failover=True), standby], "cdc", "standby")
    assert troubles(findings) == []
    assert "hot_standby_feedback" in findings[-1].hint


@pytest.mark.parametrize(
    ("ours", "standby", "listed", "level", "said"),
    [
        (slot(), slot("standby", plugin=None), "standby", "warning", "not a failover slot yet"),
        (slot(failover=True), slot("standby", plugin=None), "", "warning", "synchronized_standby_slots is empty"),
        (slot(failover=True), slot("standby", plugin=None, active_pid=None), "standby", "error", "no standby reads"),
        (slot(failover=True), slot("standby", plugin=None), 'standby, "other"', "error", "names other"),
    ],
    ids=["not made yet", "waits for nobody", "waits for a standby that is away", "waits for one that never was"],
)
def test_what_keeps_a_failover_slot_from_being_safe_is_named(
    ours: Slot, standby: Slot, listed: str, level: str, said: str
) -> None:
    found = only(doctor.judge_failover([ours, standby], "cdc", listed))
    assert found.level == level
    assert said in found.message
    assert found.hint


def test_a_table_without_an_identity_is_an_error() -> None:
    bare = table(replica_identity="n", identity_columns=())
    assert only(doctor.judge_publication(publication(bare), CacheSettings())).level == "error"


def test_projections_are_judged_only_with_a_cache() -> None:
    assert troubles(doctor.judge_publication(publication(table()), CacheSettings())) == []
    cached = CacheSettings(url="redis://localhost")
    assert "public.turns" in only(doctor.judge_publication(publication(table()), cached)).message


def test_a_row_filter_and_a_published_root_are_warnings() -> None:
    filtered = only(doctor.judge_publication(publication(table(row_filter="id > 5")), CacheSettings()))
    assert (filtered.level, "row filter" in filtered.message) == ("warning", True)
    partitioned = publication(table(is_partitioned=True), via_partition_root=True)
    assert "TRUNCATE" in only(doctor.judge_publication(partitioned, CacheSettings())).message


@pytest.mark.parametrize(
    ("changed", "level", "hint"),
    [
        ({"superuser": True}, "warning", "cdc init"),
        ({"replication": False}, "error", "ALTER ROLE cdc_replicator REPLICATION;"),
        ({"unreadable": ("public.notes",)}, "error", "GRANT SELECT ON public.notes TO cdc_replicator;"),
        ({"wal_senders": 9}, "warning", "ALTER SYSTEM SET max_wal_senders = 20;"),
    ],
)
def test_a_role_with_too_few_or_too_many_rights_is_named(changed: dict[str, object], level: str, hint: str) -> None:
    found = only(doctor.judge_role(role(**changed), 10))
    assert found.level == level
    assert hint in found.hint


@pytest.mark.parametrize(
    ("changed", "level", "said"),
    [
        ({"version": (6, 0, 9)}, "error", "too old"),
        ({"role": "slave"}, "error", "replica"),
        ({"cluster": True}, "error", "cluster"),
        ({"maxmemory_policy": "allkeys-lru"}, "warning", "may evict the checkpoint"),
        ({"maxmemory_bytes": 10**9}, "warning", "a full Redis refuses every change"),
    ],
)
def test_a_cache_that_will_misbehave_is_named(changed: dict[str, object], level: str, said: str) -> None:
    found = only(doctor.judge_cache(cache_server(**changed)))
    assert found.level == level
    assert said in found.message


@pytest.mark.parametrize(
    ("setting", "expected"), [("0", 0), ("500ms", 0.5), ("60s", 60), ("1min", 60), ("2h", 7200), ("1d", 86400)]
)
def test_durations_read_as_postgres_prints_them(setting: str, expected: float) -> None:
    assert doctor.seconds(setting) == expected


@pytest.mark.parametrize(("setting", "expected"), [("1GB", 1024**3), ("512MB", 512 * 1024**2), ("8kB", 8192), ("0", 0)])
def test_sizes_read_as_postgres_prints_them(setting: str, expected: int) -> None:
    assert doctor.nbytes(setting) == expected
