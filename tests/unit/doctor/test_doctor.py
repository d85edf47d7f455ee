"""What the doctor says of facts: pure judgement, no server."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from cdc.archive.format.encryption import generate_key
from cdc.cache.server import CacheServer
from cdc.change import Column
from cdc.config import ArchiveSettings, CacheSettings
from cdc.doctor import exit_code, script
from cdc.doctor.cache import judge_cache
from cdc.doctor.publication import judge_publication
from cdc.doctor.role import judge_role
from cdc.doctor.secrets import judge_encryption, judge_files
from cdc.doctor.server import judge_version
from cdc.doctor.settings import judge_configuration, judge_headroom
from cdc.doctor.slots import judge_failover, judge_slots
from cdc.doctor.units import GIB, nbytes, seconds
from cdc.finding import Finding
from cdc.monitor.forecast import Disk
from cdc.postgres.publication import Publication, PublishedTable
from cdc.postgres.role import Role
from cdc.postgres.slot import Slot

NOW = 1_800_000_000.0
DISK = Disk(free_bytes=500 * GIB, total_bytes=1000 * GIB)
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
        "name": "cdc_replicator", "superuser": False, "replication": True, "unreadable": (), "guarded": (),
        "closed_schemas": (), "wal_senders": 0
    }  # fmt: skip
    return Role(**(facts | changed))  # type: ignore[arg-type]


def troubles(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level in ("warning", "error")]


def only(findings: list[Finding]) -> Finding:
    (found,) = troubles(findings)
    return found


def test_a_sane_server_has_no_troubles() -> None:
    assert troubles(judge_configuration(configuration(), 2.0, DISK)) == []
    assert troubles(judge_slots([slot()], "cdc", 5000, NOW)) == []
    assert troubles(judge_publication(publication(table()), CacheSettings())) == []
    assert troubles(judge_role(role(), 10)) == []
    assert troubles(judge_cache(cache_server())) == []


def test_only_an_error_makes_the_exit_code_1() -> None:
    assert exit_code([Finding("slot", "x", level="ok"), Finding("slot", "x")]) == 0
    assert exit_code([Finding("slot", "x", level="error")]) == 1


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
    found = only(judge_configuration(configuration(**{setting: value}), 2.0, DISK))
    assert found.level == level
    assert setting in found.message
    assert said in found.message
    assert found.hint


@pytest.mark.parametrize("free_bytes", [2 * GIB, 15 * GIB, 40 * GIB, 500 * GIB])
@pytest.mark.parametrize("value", ["-1", "1MB", "4TB"])
def test_the_limit_that_is_proposed_is_one_that_is_no_trouble(value: str, free_bytes: int) -> None:
    disk = Disk(free_bytes, 2 * free_bytes)
    found = only(judge_configuration(configuration(max_slot_wal_keep_size=value), 2.0, disk))
    proposed = found.sql.split("'")[1]
    assert troubles(judge_configuration(configuration(max_slot_wal_keep_size=proposed), 2.0, disk)) == []


def test_a_limit_beyond_the_disk_is_named_and_what_slots_hold_already_is_room() -> None:
    disk = Disk(30 * GIB, 100 * GIB)
    assert "more than the disk" in only(judge_configuration(configuration(), 2.0, disk)).message
    assert troubles(judge_configuration(configuration(), 2.0, disk, 25 * GIB)) == []


def test_a_disk_that_cannot_be_seen_is_said_to_be_so() -> None:
    (found,) = [one for one in judge_configuration(configuration(), 2.0, None) if one.level == "info"]
    assert "disk_path" in found.hint


@pytest.mark.parametrize(
    ("used", "ours_is_there", "well"), [(8, False, True), (9, False, False), (9, True, True), (10, True, False)]
)
def test_a_repair_needs_a_slot_beside_ours(used: int, ours_is_there: bool, well: bool) -> None:
    assert (troubles(judge_headroom(used, 10, ours_is_there=ours_is_there)) == []) == well


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("14.17", ["loses changes", "run out of memory"]),
        ("15.13 (Debian 15.13-1)", ["run out of memory"]),
        ("16.10", []),
        ("17.6", ["invalidate a slot without need"]),
        ("17.7", []),
        ("18.0", []),
        ("19devel", []),
    ],
)
def test_minor_versions_with_known_faults_of_decoding_are_named(version: str, said: list[str]) -> None:
    found = judge_version(version)
    assert len(found) == len(said)
    assert all(words in one.message for words, one in zip(said, found, strict=True))


def test_the_script_has_what_mends_in_order_and_marks_what_a_person_must_want() -> None:
    written = script(
        [
            Finding("postgres", "well", level="ok"),
            Finding("postgres", "a limit", "", sql="ALTER SYSTEM SET a = 1;"),
            Finding("postgres", "the same limit", "", sql="ALTER SYSTEM SET a = 1;"),
            Finding("postgres", "too old", "install a newer one", level="error"),
            Finding("postgres", "not to be mended", "read this", level="info"),
            Finding("slot", "not ours", "", sql="SELECT drop();", optional=True),
            Finding("cache", "evicts", "", command="redis-cli x"),
        ]
    )
    lines = written.splitlines()
    assert lines.count("ALTER SYSTEM SET a = 1;") == 1
    assert "#? SELECT drop();" in lines
    assert "# by hand: install a newer one" in lines
    assert "well" not in written
    assert "read this" not in written
    kept = [line for line in lines if line and not line.startswith("#")]
    assert kept[0] == "set -eu"
    assert kept.index("ALTER SYSTEM SET a = 1;") < kept.index("redis-cli x")
    assert "pg_reload_conf" in kept[-1]


def test_a_name_with_a_newline_does_not_end_the_sql() -> None:
    """A table's name comes from the database, and must not become a command of the operator's shell."""
    written = script([Finding("publication", "x\ntouch /tmp/y", "", sql='ALTER TABLE "\nSQL\nrm -rf" x;')])
    lines = written.splitlines()
    (begin,) = [number for number, line in enumerate(lines) if "<<'SQL_'" in line]
    assert lines[begin + 1 : begin + 5] == ['ALTER TABLE "', "SQL", 'rm -rf" x;', "SQL_"]
    assert "touch /tmp/y" not in lines


def test_there_is_no_script_where_nothing_is_to_be_mended() -> None:
    assert script([Finding("slot", "x", level="ok")]) == "# cdc doctor --fix: there is nothing to mend\n"


def test_a_server_older_than_the_idle_timeout_is_judged_without_it() -> None:
    older = {name: value for name, value in SANE.items() if name != "idle_replication_slot_timeout"}
    assert troubles(judge_configuration(older, 2.0, DISK)) == []


def test_a_slot_that_is_not_there_yet_is_no_trouble() -> None:
    assert troubles(judge_slots([], "cdc", 5000, NOW)) == []


def test_a_lost_slot_is_an_error_though_its_positions_are_null() -> None:
    lost = slot(wal_status="lost", restart_lsn=None, confirmed_flush_lsn=None, active_pid=None)
    assert only(judge_slots([lost], "cdc", 5000, NOW)).level == "error"


def test_a_strangers_slot_that_nobody_reads_is_a_warning_with_what_it_retains() -> None:
    stranger = slot("old", active_pid=None, restart_lsn=0)
    found = only(judge_slots([slot(), stranger], "cdc", 3 * 1024**3, NOW))
    assert found.level == "warning"
    assert "3.0 GB" in found.message
    assert "pg_drop_replication_slot('old')" in found.hint


def test_a_failover_slot_that_waits_for_its_standby_is_no_trouble_and_the_standbys_settings_are_named() -> None:
    standby = slot("standby", plugin=None)
    findings = judge_failover([slot(failover=True), standby], "cdc", "standby")
    assert troubles(findings) == []
    assert "hot_standby_feedback" in findings[-1].hint
    assert findings[-1].level == "info"


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
    found = only(judge_failover([ours, standby], "cdc", listed))
    assert found.level == level
    assert said in found.message
    assert found.hint


def test_a_table_without_an_identity_is_an_error() -> None:
    bare = table(replica_identity="n", identity_columns=())
    assert only(judge_publication(publication(bare), CacheSettings())).level == "error"


def test_projections_are_judged_only_with_a_cache() -> None:
    assert troubles(judge_publication(publication(table()), CacheSettings())) == []
    cached = CacheSettings(url="redis://localhost")
    found = troubles(judge_publication(publication(table()), cached))
    assert len(found) == len(cached.projections)
    assert all("public.turns" in one.message for one in found)


def test_a_row_filter_and_a_published_root_are_warnings() -> None:
    filtered = only(judge_publication(publication(table(row_filter="id > 5")), CacheSettings()))
    assert (filtered.level, "row filter" in filtered.message) == ("warning", True)
    partitioned = publication(table(is_partitioned=True), via_partition_root=True)
    assert "TRUNCATE" in only(judge_publication(partitioned, CacheSettings())).message


@pytest.mark.parametrize(
    ("changed", "level", "hint"),
    [
        ({"superuser": True}, "warning", "cdc init"),
        ({"replication": False}, "error", "ALTER ROLE cdc_replicator REPLICATION;"),
        ({"unreadable": ("public.notes",)}, "error", "GRANT SELECT ON public.notes TO cdc_replicator;"),
        ({"guarded": ("public.notes",)}, "error", "ALTER ROLE cdc_replicator BYPASSRLS;"),
        ({"wal_senders": 9}, "warning", "ALTER SYSTEM SET max_wal_senders = 20;"),
    ],
)
def test_a_role_with_too_few_or_too_many_rights_is_named(changed: dict[str, object], level: str, hint: str) -> None:
    found = only(judge_role(role(**changed), 10))
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
    found = only(judge_cache(cache_server(**changed)))
    assert found.level == level
    assert said in found.message


@pytest.mark.parametrize(
    ("setting", "expected"), [("0", 0), ("500ms", 0.5), ("60s", 60), ("1min", 60), ("2h", 7200), ("1d", 86400)]
)
def test_durations_read_as_postgres_prints_them(setting: str, expected: float) -> None:
    assert seconds(setting) == expected


@pytest.mark.parametrize(("setting", "expected"), [("1GB", 1024**3), ("512MB", 512 * 1024**2), ("8kB", 8192), ("0", 0)])
def test_sizes_read_as_postgres_prints_them(setting: str, expected: int) -> None:
    assert nbytes(setting) == expected


# secrets -------------------------------------------------------------------------------------------------------------


def test_a_file_with_a_secret_that_others_may_read_is_mended_by_a_command() -> None:
    (found,) = judge_files([Path("/etc/waltier/the key")])
    assert (found.level, found.command) == ("warning", "chmod o-rwx '/etc/waltier/the key'")
    assert judge_files([]) == []


@pytest.mark.parametrize(
    ("identity", "level", "said"),
    [
        (None, "ok", "none of which is here"),
        ("one of two", "ok", "archive.identity is one of them"),
        ("old and new", "ok", "archive.identity is one of them"),
        ("another", "error", "the cache cannot catch up"),
    ],
)
def test_an_identity_of_other_keys_than_the_recipients_is_an_error(identity: str | None, level: str, said: str) -> None:
    (one, ours), (two, _), (_, others) = generate_key(), generate_key(), generate_key()
    identities = {"one of two": ours, "old and new": f"{others}  # until May\n{ours}\n", "another": others}
    url = "file:///var/lib/archive"
    settings = ArchiveSettings(url=url, recipients=(one, two), identity=identities.get(identity or ""))
    (found,) = judge_encryption(settings)
    assert (found.level, said in found.message) == (level, True)
    assert judge_encryption(ArchiveSettings(url=url)) == []
