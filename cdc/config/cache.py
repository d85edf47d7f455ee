"""`[cache]`: the address of Redis, and the projections that the cache holds."""

from typing import Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from cdc.config.projection import TURNS_PROJECTIONS, AnyProjection, Projection, nameless
from cdc.config.section import MIB, Section, is_loopback


class CacheSettings(Section):
    url: SecretStr | None = Field(
        None,
        description="redis://, rediss:// or unix:// address; absent: no cache",
        examples=["redis://localhost:6379/0"],
    )
    projections: tuple[Projection, ...] = Field(
        TURNS_PROJECTIONS,
        description="what the cache holds; absent: the three projections of public.turns",
        examples=[[{"kind": "row", "table": "public.turns", "key": "turn:{turn_id}"}]],
    )
    queue_bytes: int = Field(16 * MIB, ge=MIB, description="memory of changes waiting for the cache")
    batch_rows: int = Field(500, ge=1, le=5000, description="rows of one script call")
    batch_bytes: int = Field(MIB, ge=1024, description="bytes of one script call")
    timeout_s: float = Field(5.0, gt=0, description="how long one call may take")
    allow_insecure: bool = Field(
        False, description="allow another machine without rediss:// and a verified certificate"
    )

    @property
    def served(self) -> tuple[AnyProjection, ...]:
        """The projections that the cache holds; none without `cache.url`."""
        return () if self.url is None else self.projections

    @field_validator("url")
    @classmethod
    def _is_a_redis_address(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None or url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            return url
        raise ValueError("is not a redis://, rediss:// or unix:// address")

    @field_validator("projections")
    @classmethod
    def _keys_are_distinct(cls, projections: tuple[AnyProjection, ...]) -> tuple[AnyProjection, ...]:
        shapes = [nameless(projection.key) for projection in projections]
        twice = next((p.key for p, shape in zip(projections, shapes, strict=True) if shapes.count(shape) > 1), None)
        if twice is None:
            return projections
        raise ValueError(f"two projections write the same key, {twice}")

    @model_validator(mode="after")
    def _is_private_on_its_way(self) -> Self:
        parts = urlsplit("" if self.url is None else self.url.get_secret_value())
        unproved = {("ssl_cert_reqs", "none"), ("ssl_cert_reqs", "optional"), ("ssl_check_hostname", "false")}
        proved = parts.scheme == "rediss" and not unproved & set(parse_qsl(parts.query.lower()))
        local = parts.scheme == "unix" or is_loopback(parts.hostname or "localhost")
        if self.url is None or self.allow_insecure or proved or local:
            return self
        raise ValueError(
            "cache.url names another machine without TLS and a verified certificate: others could read the rows"
            "\n      use rediss:// (an authority of your own: ?ssl_ca_certs=/path/ca.pem),"
            "\n      or in a network that you trust: allow_insecure = true"
        )
