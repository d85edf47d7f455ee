"""`[http]`: metrics, health, the status page, and the ping."""

import re
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from cdc.config.section import Section, is_loopback


class HttpSettings(Section):
    listen: str = Field(
        "127.0.0.1:9187", description="address of metrics, health and the status page; port 0: any free"
    )
    token: SecretStr | None = Field(
        None,
        description="bearer token that requests must carry; needed unless the address is a loopback one",
        examples=["paste-here-what-openssl-rand-hex-32-prints"],
    )
    archive_lag_s: float = Field(60.0, gt=0, description="age of the oldest change not archived at which not ready")
    ping_url: SecretStr | None = Field(
        None,
        description="address to GET again and again while ready, so that silence means trouble",
        examples=["https://hc-ping.com/your-check"],
    )
    ping_interval_s: float = Field(60.0, gt=0, le=86_400, description="time between those calls")

    @field_validator("listen")
    @classmethod
    def _is_host_and_port(cls, listen: str) -> str:
        host, _, port = listen.rpartition(":")
        if host and port.isdecimal() and int(port) < 65536:
            return listen
        raise ValueError("is not host:port")

    @field_validator("token")
    @classmethod
    def _is_hard_to_guess(cls, token: SecretStr | None) -> SecretStr | None:
        if token is None or re.fullmatch(r"[!-~]{16,}", token.get_secret_value()):
            return token
        raise ValueError("needs at least 16 letters, digits and signs, without spaces")

    @field_validator("ping_url")
    @classmethod
    def _is_private_on_its_way(cls, url: SecretStr | None) -> SecretStr | None:
        parts = urlsplit("" if url is None else url.get_secret_value())
        local = parts.scheme == "http" and is_loopback(parts.hostname or "")
        if url is None or local or (parts.scheme == "https" and parts.hostname):
            return url
        raise ValueError("is neither an https:// address nor an http:// one of this machine")

    @model_validator(mode="after")
    def _is_guarded(self) -> Self:
        if self.token is None and not is_loopback(self.listen.rpartition(":")[0].strip("[]")):
            raise ValueError(
                "http.token is needed, because http.listen is not a loopback address"
                "\n      export CDC_HTTP__TOKEN=$(openssl rand -hex 32)"
            )
        return self
