"""`[archive]`: the bucket, how segments are made, and to which keys they are encrypted."""

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from cdc.config.recipient import PUBLIC, decode_identity, decode_key
from cdc.config.section import MIB, Section, is_loopback


class ArchiveSettings(Section):
    url: str = Field(description="s3://bucket/prefix or file:///directory", examples=["s3://my-bucket/chat"])
    endpoint_url: str | None = Field(
        None,
        description="S3 endpoint, where it is not Amazon's",
        examples=["https://0123456789abcdef.r2.cloudflarestorage.com"],
    )
    region: str = Field("auto", min_length=1, description="region to sign for; R2 wants auto")
    allow_insecure: bool = Field(False, description="allow an http:// endpoint on another machine")
    linger_s: float = Field(1.0, ge=0, le=60, description="how long changes gather before a PUT, under traffic")
    segment_bytes: int = Field(16 * MIB, ge=64 * 1024, le=256 * MIB, description="memory of one segment's changes")
    queue_bytes: int = Field(32 * MIB, ge=MIB, description="memory of changes waiting for the archive")
    put_timeout_s: float = Field(60.0, gt=0, description="how long one PUT may take before it is tried again")
    coverage_interval_s: float = Field(60.0, ge=1, description="least time between coverage segments when idle")
    coverage_wal_bytes: int = Field(16 * MIB, ge=MIB, description="unpublished WAL after which coverage is written")
    on_gap: Literal["stop", "resnapshot"] = Field(
        "stop", description="when changes are lost: stop (exit 78) until `cdc repair`, or resnapshot at once"
    )
    compression_level: int = Field(3, ge=1, le=19, description="zstd level of segments")
    recipients: tuple[str, ...] = Field(
        (),
        description="public keys to which rows are encrypted, two at least; empty: no encryption (docs/encryption.md)",
    )
    single_recipient: bool = Field(False, description="allow one recipient, whose key's loss is the archive's loss")
    identity: SecretStr | None = Field(
        None,
        description="private keys that read encrypted rows, one a line; writing needs none",
        examples=["cdckey_dwdtCnMYpX08FsFyUbJmRQAAAAAAAAAAAAAAAAAAAAAW0iLK"],
    )

    @field_validator("recipients")
    @classmethod
    def _are_public_keys(cls, recipients: tuple[str, ...]) -> tuple[str, ...]:
        for number, text in enumerate(recipients):
            try:
                decode_key(PUBLIC, text)
            except ValueError as error:
                raise ValueError(f"number {number + 1} {error}") from None
        if len(set(recipients)) < len(recipients):
            raise ValueError("names one key twice")
        return recipients

    @field_validator("identity")
    @classmethod
    def _is_made_of_private_keys(cls, identity: SecretStr | None) -> SecretStr | None:
        if identity is not None:
            decode_identity(identity.get_secret_value())
        return identity

    @model_validator(mode="after")
    def _survives_the_loss_of_a_key(self) -> Self:
        if len(self.recipients) == 1 and not self.single_recipient:
            raise ValueError(
                "archive.recipients names one key, and whoever loses it has lost the archive: name a second one, kept "
                "elsewhere\n      cdc key generate --out FILE\n      or: single_recipient = true"
            )
        return self

    @field_validator("url")
    @classmethod
    def _is_a_bucket_or_a_directory(cls, url: str) -> str:
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise ValueError("must not hold credentials: they come from AWS_ACCESS_KEY_ID or the AWS profile")
        if parts.scheme == "s3" and parts.netloc:
            return url
        if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
            return url
        raise ValueError("is neither s3://bucket/prefix nor file:///directory")

    @field_validator("endpoint_url")
    @classmethod
    def _is_a_web_address(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "")
        if "@" in parts.netloc:
            raise ValueError("must not hold credentials: they come from AWS_ACCESS_KEY_ID or the AWS profile")
        if url is None or (parts.scheme in ("http", "https") and parts.hostname):
            return url
        raise ValueError("is not an https:// address")

    @model_validator(mode="after")
    def _is_private_on_its_way(self) -> Self:
        parts = urlsplit(self.endpoint_url or "")
        if self.allow_insecure or parts.scheme != "http" or is_loopback(parts.hostname or ""):
            return self
        raise ValueError(
            "archive.endpoint_url is http:// to another machine: "
            "an attacker on the network could read and change the rows"
            "\n      use https://, or in a network that you trust: allow_insecure = true"
        )
