"""Judges the role of `postgres.dsn`, which needs enough rights and no more, and the optional DDL sentinel (pure)."""

from collections.abc import Mapping

from cdc.finding import Finding, mended_by_sql
from cdc.postgres.ddl_sentinel import DDL_TRIGGERS
from cdc.postgres.role import Role

_SENTINEL = "cdc init --ddl-sentinel"


def judge_role(role: Role, max_wal_senders: int) -> list[Finding]:
    """Judge the role's rights, and the server's room for its WAL senders."""
    findings = [_judge_rights(role)]
    if role.unreadable:
        message = f"role {role.name} may not read {', '.join(role.unreadable)}, so no snapshot can be taken"
        schemas = ", ".join(role.closed_schemas)
        usage = f"GRANT USAGE ON SCHEMA {schemas} TO {role.name}; " if schemas else ""
        mend = f"{usage}GRANT SELECT ON {', '.join(role.unreadable)} TO {role.name};"
        findings.append(mended_by_sql("error", "postgres", message, mend))
    if role.guarded:
        tables = ", ".join(role.guarded)
        message = f"row-level security hides rows of {tables} from role {role.name}, so no snapshot can be taken"
        mend = f"ALTER ROLE {role.name} BYPASSRLS;"
        findings.append(mended_by_sql("error", "postgres", message, mend, "the stream shows it those rows anyway"))
    if role.wal_senders + 2 > max_wal_senders:
        message = (
            f"{role.wal_senders} of {max_wal_senders} WAL senders are in use; `cdc run` needs one, warming another"
        )
        mend = f"ALTER SYSTEM SET max_wal_senders = {max_wal_senders + 10};"
        findings.append(mended_by_sql("warning", "postgres", message, mend, "then restart Postgres"))
    return findings


def _judge_rights(role: Role) -> Finding:
    if role.superuser:
        return Finding(
            "postgres",
            f"role {role.name} is a superuser; replication and SELECT are all that is needed",
            "cdc init  (and put the role that it makes into postgres.dsn)",
        )
    if not role.replication:
        message, mend = f"role {role.name} may not replicate", f"ALTER ROLE {role.name} REPLICATION;"
        return mended_by_sql("error", "postgres", message, mend)
    return Finding("postgres", f"role {role.name} may replicate and is no superuser", level="ok")


def judge_ddl_sentinel(triggers: Mapping[str, bool]) -> Finding:
    """Judge the DDL sentinel. It is optional, so every state is ok; the hint says how to change it."""
    if not triggers:
        message = "no DDL sentinel: the archive has the shape of each table, and no word of what changed it"
        return Finding("postgres", message, _SENTINEL, level="ok")
    if len(triggers) < len(DDL_TRIGGERS):
        return Finding(
            "postgres", f"half of the DDL sentinel is there, only {', '.join(triggers)}", _SENTINEL, level="ok"
        )
    disabled = [name for name, enabled in triggers.items() if not enabled]
    if disabled:
        hint = " ".join(f"ALTER EVENT TRIGGER {name} ENABLE ALWAYS;" for name in disabled)
        return Finding("postgres", f"the DDL sentinel is disabled: {', '.join(disabled)}", hint, level="ok")
    return Finding("postgres", "the DDL sentinel records schema changes in the archive", level="ok")
