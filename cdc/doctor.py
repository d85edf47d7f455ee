"""`cdc doctor`: looks at server, publication, bucket and cache before something goes wrong, and says what to mend.

`examine()` asks each of the three neighbours once and hands what it learnt to pure functions that judge it. An error is
something that keeps `cdc run` from working or from keeping its promises; a warning is a risk that a person may take.
Nothing is changed, but for the small probe object by which the bucket proves that it does not overwrite.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cdc.archive.bucket import open_bucket, prove_conditional_put
from cdc.archive.tail import Tail, read_tail
from cdc.cache.server import CacheServer, read_cache_server
from cdc.config import ArchiveSettings, CacheSettings, PostgresSettings, Settings
from cdc.errors import CdcError
from cdc.lsn import format_lsn
from cdc.postgres.ddl_sentinel import TRIGGERS, read_ddl_sentinel
from cdc.postgres.publication import Publication, check_publication, read_publication
from cdc.postgres.role import Role, read_role
from cdc.postgres.server import FAILOVER_VERSION, Server, check_server, current_wal_lsn, read_server
from cdc.postgres.session import Connection, connect
from cdc.postgres.slot import Slot, read_slots
from cdc.slots import size

Level = Literal["ok", "warning", "error"]
Subject = Literal["postgres", "publication", "slot", "archive", "cache"]

GIB = 1024**3

# R2 was away for 59 and 67 minutes in 2025; a slot that is allowed less than this is lost on a busy day.
_LEAST_KEEP_BYTES = 10 * GIB

_SHORT_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `hint` is a command or a line to paste."""

    level: Level
    subject: Subject
    message: str
    hint: str = ""


async def examine(settings: Settings) -> list[Finding]:
    """Look at everything; what cannot be reached is itself a finding."""
    rooms = await asyncio.gather(
        _examine_postgres(settings), _examine_archive(settings.archive), _examine_cache(settings.cache)
    )
    return [finding for findings in rooms for finding in findings]


def exit_code(findings: Sequence[Finding]) -> int:
    """1 if anything is wrong; warnings are not."""
    return 1 if any(finding.level == "error" for finding in findings) else 0


def _failure(subject: Subject, error: CdcError) -> Finding:
    return Finding("error", subject, one_line(error), error.hint)


def one_line(error: CdcError) -> str:
    """Message and detail; a detail may hold what a server said in several lines."""
    return f"{error.message} ({' '.join(error.detail.split())})" if error.detail else error.message


# Postgres -------------------------------------------------------------------------------------------------------------


async def _examine_postgres(settings: Settings) -> list[Finding]:
    """In the order in which one thing needs the other: the first that fails hides those that need it."""
    findings: list[Finding] = []
    try:
        async with await connect(settings.postgres) as connection:
            server = await read_server(connection)
            findings.append(Finding("ok", "postgres", f"Postgres {server.server_version}, database {server.database}"))
            slots = await read_slots(connection)
            findings += judge_slots(slots, settings.postgres.slot, await current_wal_lsn(connection))
            if settings.postgres.failover and server.version >= FAILOVER_VERSION:
                synchronized = server.configuration["synchronized_standby_slots"]
                findings += judge_failover(slots, settings.postgres.slot, synchronized)
            findings += judge_configuration(server.configuration, settings.postgres.status_interval_s)
            findings += await _examine_server(connection, server, settings.postgres)
            publication = await read_publication(connection, settings.postgres.publication)
            findings += judge_publication(publication, settings.cache)
            role = await read_role(connection, [table.oid for table in publication.tables])
            findings += judge_role(role, int(server.configuration["max_wal_senders"]))
            findings.append(judge_ddl_sentinel(await read_ddl_sentinel(connection)))
    except CdcError as error:
        findings.append(_failure("postgres", error))
    return findings


async def _examine_server(connection: Connection, server: Server, settings: PostgresSettings) -> list[Finding]:
    try:
        await check_server(connection, server, settings.slot, failover=settings.failover)
    except CdcError as error:
        return [_failure("postgres", error)]
    return [Finding("ok", "postgres", "wal_level is logical, and there is room for the slot")]


def judge_configuration(configuration: Mapping[str, str], status_interval_s: float) -> list[Finding]:
    """What the server's settings mean for a slot that may have to wait."""
    return [
        _judge_wal_sender_timeout(configuration["wal_sender_timeout"], status_interval_s),
        _judge_keep_size(configuration["max_slot_wal_keep_size"]),
        *_judge_idle_timeout(configuration.get("idle_replication_slot_timeout", "0")),
    ]


def _judge_wal_sender_timeout(setting: str, status_interval_s: float) -> Finding:
    timeout_s = seconds(setting)
    if timeout_s == 0:
        return Finding(
            "warning",
            "postgres",
            "wal_sender_timeout is 0: a connection that died unnoticed holds the slot for ever",
            "ALTER SYSTEM SET wal_sender_timeout = '60s'; SELECT pg_reload_conf();",
        )
    if timeout_s < _SHORT_TIMEOUT_S:
        return Finding(
            "warning",
            "postgres",
            f"wal_sender_timeout is only {setting}: a stall of the network that long ends the stream",
            "ALTER SYSTEM SET wal_sender_timeout = '60s'; SELECT pg_reload_conf();",
        )
    # As the service does: well inside the timeout, whatever the configuration says.
    interval_s = min(status_interval_s, timeout_s / 4)
    return Finding("ok", "postgres", f"wal_sender_timeout {setting}, a status update every {interval_s:g} s")


def _judge_keep_size(setting: str) -> Finding:
    """Both extremes are a risk: without a limit the disk, with a low one the slot."""
    if setting == "-1":
        return Finding(
            "warning",
            "postgres",
            "max_slot_wal_keep_size is unlimited: a slot that nobody drains fills the disk",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf();  "
            "(less than the disk has free, more than a day's WAL)",
        )
    if nbytes(setting) < _LEAST_KEEP_BYTES:
        return Finding(
            "warning",
            "postgres",
            f"max_slot_wal_keep_size is only {setting}: more WAL than that during an outage of the bucket "
            "invalidates the slot",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf();",
        )
    return Finding("ok", "postgres", f"max_slot_wal_keep_size {setting}")


def _judge_idle_timeout(setting: str) -> list[Finding]:
    if seconds(setting) == 0:
        return []
    return [
        Finding(
            "warning",
            "postgres",
            f"idle_replication_slot_timeout {setting}: a service that is down for longer loses its slot",
            "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
        )
    ]


def judge_slots(slots: Sequence[Slot], name: str, current_lsn: int) -> list[Finding]:
    """Our slot, and the others that nobody drains."""
    findings = [_judge_stranger(slot, current_lsn) for slot in slots if slot.name != name and slot.active_pid is None]
    ours = next((slot for slot in slots if slot.name == name), None)
    if ours is None:
        findings.append(Finding("ok", "slot", f"slot {name} is not there yet; the first `cdc run` makes it"))
    elif ours.lost:
        findings.append(
            Finding(
                "error",
                "slot",
                f"slot {name} is lost ({ours.invalidation_reason or ours.wal_status}): its WAL is gone",
                "cdc repair",
            )
        )
    else:
        held = size(ours.retained_bytes(current_lsn))
        reader = f"read by pid {ours.active_pid}" if ours.active_pid else "not read by anybody now"
        findings.append(Finding("ok", "slot", f"slot {name} is {reader}, and retains {held} of WAL"))
    return findings


def _judge_stranger(slot: Slot, current_lsn: int) -> Finding:
    if slot.lost:
        message = f"slot {slot.name}, not ours, is lost and of no use to anybody"
    else:
        message = f"slot {slot.name}, not ours, is not read and retains {size(slot.retained_bytes(current_lsn))} of WAL"
    return Finding("warning", "slot", message, f"SELECT pg_drop_replication_slot('{slot.name}');  (if nobody needs it)")


def judge_failover(slots: Sequence[Slot], name: str, synchronized_standby_slots: str) -> list[Finding]:
    """What a slot needs in order to survive a failover, as far as the primary can tell."""
    ours = next((slot for slot in slots if slot.name == name), None)
    findings = [] if ours is None else [_judge_our_failover(ours)]
    listed = [name.strip(' "') for name in synchronized_standby_slots.split(",") if name.strip()]
    findings += _judge_standby_slots(listed, slots)
    findings.append(
        Finding(
            "ok",
            "slot",
            "what the standby needs cannot be seen from here",
            "on the standby: sync_replication_slots = on, hot_standby_feedback = on, primary_slot_name, "
            "and dbname in primary_conninfo",
        )
    )
    return findings


def _judge_our_failover(slot: Slot) -> Finding:
    if slot.failover:
        return Finding("ok", "slot", f"slot {slot.name} is one that standbys may synchronise")
    return Finding(
        "warning",
        "slot",
        f"slot {slot.name} is not a failover slot yet: a failover loses it",
        "start `cdc run` again: it alters the slot when it begins",
    )


def _judge_standby_slots(listed: Sequence[str], slots: Sequence[Slot]) -> list[Finding]:
    """Postgres sends us no change that a listed standby lacks, and waits for ever for one that is not there."""
    if not listed:
        return [
            Finding(
                "warning",
                "slot",
                "synchronized_standby_slots is empty: after a failover the archive may be ahead of the new primary",
                "ALTER SYSTEM SET synchronized_standby_slots = 'STANDBY_SLOT'; SELECT pg_reload_conf();  "
                "(the physical slot that the standby names in primary_slot_name)",
            )
        ]
    read = {slot.name for slot in slots if slot.plugin is None and slot.active_pid is not None}
    return [
        Finding("ok", "slot", f"changes wait for standby slot {name}")
        if name in read
        else Finding(
            "error",
            "slot",
            f"synchronized_standby_slots names {name}, which no standby reads: nothing is streamed until one does",
            "start the standby; or take it out: ALTER SYSTEM SET synchronized_standby_slots = ''; "
            "SELECT pg_reload_conf();",
        )
        for name in listed
    ]


def judge_publication(publication: Publication, cache: CacheSettings) -> list[Finding]:
    """What is published, and whether archive and cache can live from it."""
    projections = cache.projections if cache.url else ()
    try:
        check_publication(publication, projections)
    except CdcError as error:
        return [_failure("publication", error)]
    tables = ", ".join(table.qualified_name for table in publication.tables)
    return [
        Finding("ok", "publication", f"publication {publication.name}: {tables}"),
        *_judge_what_is_left_out(publication),
    ]


def _judge_what_is_left_out(publication: Publication) -> list[Finding]:
    findings = [
        Finding(
            "warning",
            "publication",
            f"{table.qualified_name} has a row filter: rows outside it are in neither archive nor cache",
            f"ALTER PUBLICATION {publication.name} SET TABLE ...;  (if that is not meant)",
        )
        for table in publication.tables
        if table.row_filter
    ]
    if publication.via_partition_root and any(table.is_partitioned for table in publication.tables):
        findings.append(
            Finding(
                "warning",
                "publication",
                "publish_via_partition_root: Postgres does not publish TRUNCATE of a single partition",
                f"ALTER PUBLICATION {publication.name} SET (publish_via_partition_root = false);  "
                "(or DELETE instead of TRUNCATE)",
            )
        )
    return findings


def judge_role(role: Role, max_wal_senders: int) -> list[Finding]:
    """Enough rights, and not more."""
    findings = [_judge_rights(role)]
    if role.unreadable:
        findings.append(
            Finding(
                "error",
                "postgres",
                f"role {role.name} may not read {', '.join(role.unreadable)}, so no snapshot can be taken",
                f"GRANT SELECT ON {', '.join(role.unreadable)} TO {role.name};",
            )
        )
    if role.wal_senders + 2 > max_wal_senders:
        findings.append(
            Finding(
                "warning",
                "postgres",
                f"{role.wal_senders} of {max_wal_senders} WAL senders are in use; `cdc run` needs one, warming another",
                f"ALTER SYSTEM SET max_wal_senders = {max_wal_senders + 10};  (then restart Postgres)",
            )
        )
    return findings


def judge_ddl_sentinel(triggers: Mapping[str, bool]) -> Finding:
    """It is optional, so that each state is as good as another; a hint says how to change it."""
    if not triggers:
        message = "no DDL sentinel: the archive has the shape of each table, and no word of what changed it"
        return Finding("ok", "postgres", message, "cdc init --ddl-sentinel")
    if len(triggers) < len(TRIGGERS):
        message = f"half of the DDL sentinel is there, only {', '.join(triggers)}"
        return Finding("ok", "postgres", message, "cdc init --ddl-sentinel")
    disabled = [name for name, enabled in triggers.items() if not enabled]
    if disabled:
        hint = " ".join(f"ALTER EVENT TRIGGER {name} ENABLE ALWAYS;" for name in disabled)
        return Finding("ok", "postgres", f"the DDL sentinel is disabled: {', '.join(disabled)}", hint)
    return Finding("ok", "postgres", "the DDL sentinel records schema changes in the archive")


def _judge_rights(role: Role) -> Finding:
    if role.superuser:
        return Finding(
            "warning",
            "postgres",
            f"role {role.name} is a superuser; replication and SELECT are all that is needed",
            "cdc init  (and put the role that it makes into postgres.dsn)",
        )
    if not role.replication:
        return Finding(
            "error", "postgres", f"role {role.name} may not replicate", f"ALTER ROLE {role.name} REPLICATION;"
        )
    return Finding("ok", "postgres", f"role {role.name} may replicate and is no superuser")


# The archive ----------------------------------------------------------------------------------------------------------


async def _examine_archive(settings: ArchiveSettings) -> list[Finding]:
    try:
        bucket = open_bucket(settings)
        try:
            await prove_conditional_put(bucket)
            tail = await read_tail(bucket)
        finally:
            await bucket.close()
    except CdcError as error:
        return [_failure("archive", error)]
    return judge_archive(settings, tail)


def judge_archive(settings: ArchiveSettings, tail: Tail | None) -> list[Finding]:
    """The bucket has proved itself; what is in it?"""
    findings = [Finding("ok", "archive", f"{settings.url} creates objects once and does not overwrite them")]
    if tail is None:
        findings.append(Finding("ok", "archive", "the archive is empty; the first `cdc run` begins it"))
    else:
        findings.append(
            Finding("ok", "archive", f"segment {tail.seq} is the last, covered up to {format_lsn(tail.covered_upto)}")
        )
    return findings


# The cache ------------------------------------------------------------------------------------------------------------


async def _examine_cache(settings: CacheSettings) -> list[Finding]:
    if settings.url is None:
        return [Finding("ok", "cache", "no cache is configured")]
    try:
        return judge_cache(await read_cache_server(settings))
    except CdcError as error:
        return [_failure("cache", error)]


def judge_cache(server: CacheServer) -> list[Finding]:
    """Redis may lose everything and nothing is lost; but it should not lose the checkpoint alone."""
    version = ".".join(map(str, server.version))
    findings = [Finding("ok", "cache", f"{server.software} {version} answers")]
    if server.version < (6, 2):
        findings.append(Finding("error", "cache", f"Redis {version} is too old", "use Redis 6.2 or newer, or Valkey"))
    if server.cluster:
        findings.append(
            Finding(
                "error",
                "cache",
                "this Redis is a cluster: the checkpoint and the keys must change together",
                "put one server, or one primary with replicas, into cache.url",
            )
        )
    if server.role == "slave":
        findings.append(
            Finding("error", "cache", "this Redis is a replica and takes no writes", "put the primary into cache.url")
        )
    if server.maxmemory_policy.startswith("allkeys"):
        findings.append(
            Finding(
                "warning",
                "cache",
                f"maxmemory-policy {server.maxmemory_policy} may evict the checkpoint, and then all is warmed again",
                "redis-cli CONFIG SET maxmemory-policy volatile-lru",
            )
        )
    if server.maxmemory_bytes and server.maxmemory_policy == "noeviction":
        findings.append(
            Finding(
                "warning",
                "cache",
                "maxmemory-policy noeviction: a full Redis refuses every change",
                "redis-cli CONFIG SET maxmemory-policy volatile-lru",
            )
        )
    kept = "persistence is on" if server.append_only else "no append-only file: what a restart loses is warmed again"
    findings.append(Finding("ok", "cache", kept))
    return findings


# Postgres's units -----------------------------------------------------------------------------------------------------

_UNITS_S = {"": 1e-3, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_UNITS_BYTES = {"": 1024**2, "B": 1, "kB": 1024, "MB": 1024**2, "GB": GIB, "TB": 1024**4}


def seconds(setting: str) -> float:
    """A duration as `current_setting` prints it: `1min`, `500ms`, `0`."""
    digits = setting.rstrip("abcdefghijklmnopqrstuvwxyz")
    return float(digits) * _UNITS_S[setting.removeprefix(digits)]


def nbytes(setting: str) -> int:
    """A size as `current_setting` prints it: `10GB`, `512MB`."""
    digits = setting.rstrip("BkMGT")
    return int(digits) * _UNITS_BYTES[setting.removeprefix(digits)]
