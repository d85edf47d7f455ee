"""Judges the slots, our slot's readiness for a failover, and transactions that hold all slots back (pure)."""

from collections.abc import Sequence

from cdc.finding import Finding, mended_by_sql
from cdc.monitor.slots import judge_slot
from cdc.postgres.observation import OpenTransaction
from cdc.postgres.slot import Slot
from cdc.words import duration, size

# A new slot waits for an open transaction, and no slot moves past it. A nightly batch may be open for longer than this,
# a transaction of a chat may not.
LONG_S = 900.0


def judge_slots(slots: Sequence[Slot], name: str, wal_lsn: int, now: float) -> list[Finding]:
    """Judge all slots. `name` is our slot's, `wal_lsn` and `now` are the server's position and clock (Unix time)."""
    ours = next((slot for slot in slots if slot.name == name), None)
    judged = [
        found for slot in slots for found in judge_slot(slot, name, wal_lsn=wal_lsn, now=now) if found.level != "info"
    ]
    if any(found.level == "error" for found in judged):
        return judged
    return [*judged, _describe_ours(ours, name, wal_lsn)]


def _describe_ours(ours: Slot | None, name: str, wal_lsn: int) -> Finding:
    if ours is None:
        return Finding("slot", f"slot {name} is not there yet; the first `cdc run` makes it", level="ok")
    held = size(ours.retained_bytes(wal_lsn))
    reader = f"read by pid {ours.active_pid}" if ours.active_pid else "not read by anybody now"
    return Finding("slot", f"slot {name} is {reader}, and retains {held} of WAL", level="ok")


def judge_failover(slots: Sequence[Slot], name: str, synchronized_standby_slots: str) -> list[Finding]:
    """Judge whether our slot would survive a failover, as far as the primary can tell."""
    ours = next((slot for slot in slots if slot.name == name), None)
    findings = [] if ours is None else [_judge_our_failover(ours)]
    listed = [name.strip(' "') for name in synchronized_standby_slots.split(",") if name.strip()]
    findings += _judge_standby_slots(listed, slots)
    findings.append(
        Finding(
            "slot",
            "what the standby needs cannot be seen from here",
            "on the standby: sync_replication_slots = on, hot_standby_feedback = on, primary_slot_name, "
            "and dbname in primary_conninfo",
            level="info",
        )
    )
    return findings


def _judge_our_failover(slot: Slot) -> Finding:
    if slot.failover:
        return Finding("slot", f"slot {slot.name} is one that standbys may synchronise", level="ok")
    return Finding(
        "slot",
        f"slot {slot.name} is not a failover slot yet: a failover loses it",
        "start `cdc run` again: it alters the slot when it begins",
    )


def _judge_standby_slots(listed: Sequence[str], slots: Sequence[Slot]) -> list[Finding]:
    """Judge the listed standby slots.

    Postgres sends us no change that a listed standby lacks, and waits without end for a standby that is not there.
    """
    if not listed:
        return [
            Finding(
                "slot",
                "synchronized_standby_slots is empty: after a failover the archive may be ahead of the new primary",
                "ALTER SYSTEM SET synchronized_standby_slots = 'STANDBY_SLOT'; SELECT pg_reload_conf();  "
                "(the physical slot that the standby names in primary_slot_name)",
            )
        ]
    read = {slot.name for slot in slots if slot.plugin is None and slot.active_pid is not None}
    take_out = "ALTER SYSTEM SET synchronized_standby_slots = ''; SELECT pg_reload_conf();"
    return [
        Finding("slot", f"changes wait for standby slot {name}", level="ok")
        if name in read
        else Finding(
            "slot",
            f"synchronized_standby_slots names {name}, which no standby reads: nothing is streamed until one does",
            f"start the standby; or take it out: {take_out}",
            level="error",
            sql=take_out,
            optional=True,
        )
        for name in listed
    ]


def judge_transactions(transactions: Sequence[OpenTransaction], now: float) -> list[Finding]:
    """Judge long transactions that have written, or hold a snapshot. `now` is the server's clock (Unix time)."""
    return [
        _judge_long(one, now - one.since)
        for one in transactions
        if one.since is not None and now - one.since > LONG_S and (one.xid_age is not None or one.xmin_age is not None)
    ]


def _judge_long(one: OpenTransaction, age_s: float) -> Finding:
    consequence = "no slot moves past it" if one.xid_age is not None else "a new slot waits for it"
    if one.gid is not None:
        quoted = one.gid.replace("'", "''")
        message = f"prepared transaction {quoted!r} of database {one.database} is {duration(age_s)} old: {consequence}"
        mend, remark = (
            f"ROLLBACK PREPARED '{quoted}';",
            f"in database {one.database}; or COMMIT PREPARED: ask its owner",
        )
        return mended_by_sql("warning", "postgres", message, mend, remark, optional=True)
    who = f"pid {one.pid}" + (f" of role {one.role}" if one.role else "")
    message = f"a transaction of {who} has been open for {duration(age_s)} ({one.state}): {consequence}"
    mend = f"SELECT pg_terminate_backend({one.pid});"
    return mended_by_sql("warning", "postgres", message, mend, optional=True)
