"""`[postgres]`: the database, and the slot we read."""

import re

from pydantic import Field, SecretStr, field_validator

from cdc.config.section import Section

_SLOT_NAME = re.compile(r"[a-z0-9_]{1,63}")


class PostgresSettings(Section):
    dsn: SecretStr = Field(
        description="connection string of the role that replicates",
        examples=["postgresql://cdc_replicator@db.example.net/chat?sslmode=verify-full"],
    )
    slot: str = Field("cdc", description="name of the logical replication slot")
    publication: str = Field("cdc", min_length=1, max_length=63, description="name of the publication")
    allow_insecure: bool = Field(False, description="allow a remote host without sslmode=verify-full")
    status_interval_s: float = Field(2.0, gt=0, le=30, description="time between status updates to the server")
    silence_s: float = Field(
        60.0, gt=0, description="how long the server may be silent before another connection asks it about ours"
    )
    slot_deadline_s: float = Field(60.0, gt=0, description="how long creating a slot may wait for open transactions")
    failover: bool = Field(
        False,
        description="make the slot one that standbys synchronise (Postgres 17 or newer); false leaves it as it is",
    )

    @field_validator("dsn")
    @classmethod
    def _is_a_connection_string(cls, dsn: SecretStr) -> SecretStr:
        text = dsn.get_secret_value()
        if text.startswith(("postgresql://", "postgres://")) or "=" in text:
            return dsn
        raise ValueError("is neither a postgresql:// address nor key=value pairs")

    @field_validator("slot")
    @classmethod
    def _is_a_slot_name(cls, slot: str) -> str:
        if _SLOT_NAME.fullmatch(slot):
            return slot
        raise ValueError("may hold only lower-case letters, digits and underscores, 63 at most")
