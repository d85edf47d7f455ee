"""Examines Postgres. Each question needs the answers before it, so the first one that fails ends the examination."""

from cdc.config import PostgresSettings, Settings
from cdc.doctor.clock import compare, judge_clock
from cdc.doctor.publication import judge_publication, judge_schema
from cdc.doctor.role import judge_ddl_sentinel, judge_role
from cdc.doctor.server import judge_encoding, judge_pooler, judge_version
from cdc.doctor.settings import judge_configuration, judge_headroom, judge_spill
from cdc.doctor.slots import judge_failover, judge_slots, judge_transactions
from cdc.errors import CdcError
from cdc.finding import Finding, failure
from cdc.monitor.disk import find_disk
from cdc.postgres.ddl_sentinel import read_ddl_sentinel
from cdc.postgres.observation import Observation, observe
from cdc.postgres.pooler import detect_pooler, read_time
from cdc.postgres.publication import read_publication
from cdc.postgres.role import read_role
from cdc.postgres.schema import read_schema
from cdc.postgres.server import FAILOVER_VERSION, Server, check_server, read_server
from cdc.postgres.session import Connection, connect

# PgBouncer refuses a session's settings at its start, before anything can be asked.
_POOLER_REFUSES = "unsupported startup parameter"


async def examine_postgres(settings: Settings) -> list[Finding]:
    """Examine everything that one session can see. A CdcError becomes a finding."""
    findings: list[Finding] = []
    try:
        async with await connect(settings.postgres) as connection:
            server = await read_server(connection)
            findings.append(
                Finding("postgres", f"Postgres {server.server_version}, database {server.database}", level="ok")
            )
            findings += judge_version(server.server_version)
            findings += judge_pooler(await detect_pooler(connection))
            findings += judge_encoding(server.encoding)
            findings += judge_clock("postgres", "Postgres", await compare(lambda: read_time(connection)))
            findings += _judge_observation(settings, server, await observe(connection))
            findings += await _examine_server(connection, server, settings.postgres)
            findings += await _examine_publication(connection, server, settings)
    except CdcError as error:
        findings.append(_explain(error))
    return findings


def _explain(error: CdcError) -> Finding:
    if _POOLER_REFUSES not in error.detail:
        return failure("postgres", error)
    message = f"a pooler stands between us and Postgres ({error.detail})"
    return Finding("postgres", message, "put Postgres's own address and port into postgres.dsn", level="error")


def _judge_observation(settings: Settings, server: Server, seen: Observation) -> list[Finding]:
    slots = [watched.slot for watched in seen.slots]
    name, configuration = settings.postgres.slot, server.configuration
    ours = next((watched for watched in seen.slots if watched.slot.name == name), None)
    retained = max((slot.retained_bytes(seen.wal_lsn) for slot in slots if slot.restart_lsn is not None), default=0)
    findings = judge_slots(slots, name, seen.wal_lsn, seen.at)
    if settings.postgres.failover and server.version >= FAILOVER_VERSION:
        findings += judge_failover(slots, name, configuration["synchronized_standby_slots"])
    disk = find_disk(seen, settings.monitor.disk_path)
    findings += judge_configuration(configuration, settings.postgres.status_interval_s, disk, retained)
    findings += judge_headroom(len(slots), int(configuration["max_replication_slots"]), ours_is_there=ours is not None)
    findings += judge_spill(ours, configuration["logical_decoding_work_mem"])
    return [*findings, *judge_transactions(seen.transactions, seen.at)]


async def _examine_server(connection: Connection, server: Server, settings: PostgresSettings) -> list[Finding]:
    try:
        await check_server(connection, server, settings.slot, failover=settings.failover)
    except CdcError as error:
        return [failure("postgres", error)]
    return [Finding("postgres", "wal_level is logical, and there is room for the slot", level="ok")]


async def _examine_publication(connection: Connection, server: Server, settings: Settings) -> list[Finding]:
    publication = await read_publication(connection, settings.postgres.publication)
    schema = await read_schema(connection, publication)
    role = await read_role(connection, [table.oid for table in publication.tables])
    return [
        *judge_publication(publication, settings.cache),
        *judge_schema(schema, publication, settings.cache, server.version),
        *judge_role(role, int(server.configuration["max_wal_senders"])),
        judge_ddl_sentinel(await read_ddl_sentinel(connection)),
    ]
