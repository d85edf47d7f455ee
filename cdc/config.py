"""Configuration: `cdc.toml`, overridden by the environment (`CDC_POSTGRES__DSN`), every mistake reported at once.

`load()` gives a complete, validated `Settings` or raises `Invalid` that names every mistake with a line to paste.
Commands that need one neighbour only ask for its section alone: `load_postgres()`, `load_archive()`. A secret may also
be in a file or in a systemd credential (cdc/credentials.py). S3 credentials are not here: they come from the usual AWS
chain. Times are seconds (`_s`), sizes bytes (`_bytes`).

No value of a secret, of an unknown option, or with an `@` in it is ever printed.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import parse_qsl, urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from cdc.credentials import find_secret, is_open_to_others
from cdc.errors import Invalid
from cdc.recipient import PUBLIC, decode_identity, decode_key

MIB = 1024 * 1024

# Looked at in this order when `--config` is absent; finding none is fine, the environment may say everything.
DEFAULT_PATHS = (Path("cdc.toml"), Path("/etc/waltier/cdc.toml"))

_ENVIRONMENT_NAME = re.compile(r"CDC_([A-Z0-9]+)__([A-Z0-9_]+)")
_SLOT_NAME = re.compile(r"[a-z0-9_]{1,63}")
# Options that a variable gives as JSON.
_LISTS = ("projections", "recipients")
_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
_PASSWORD = re.compile(r"password\s*=|://[^/@]*:[^/@]+@", re.IGNORECASE)


def placeholders(template: str) -> tuple[str, ...]:
    """The columns that a key template names: `session:{session_hash}:turns` gives `("session_hash",)`."""
    return tuple(_PLACEHOLDER.findall(template))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PostgresSettings(_Section):
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


class ArchiveSettings(_Section):
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
        if self.allow_insecure or parts.scheme != "http" or _is_loopback(parts.hostname or ""):
            return self
        raise ValueError(
            "archive.endpoint_url is http:// to another machine: anybody on the way could read and change the rows"
            "\n      use https://, or in a network that you trust: allow_insecure = true"
        )


class _Projection(_Section):
    table: str = Field(description="the table, with its schema", examples=["public.turns"])
    key: str = Field(description="template of the Redis key; {column} stands for a value", examples=["turn:{turn_id}"])
    time_column: str | None = Field(
        "created_at", description='when the row was made, for warming only what still lives; "" warms every row'
    )

    @field_validator("table")
    @classmethod
    def _has_a_schema(cls, table: str) -> str:
        if table.count(".") == 1:
            return table
        raise ValueError("needs its schema, as in public.turns")

    @field_validator("key")
    @classmethod
    def _names_columns(cls, key: str) -> str:
        if key.startswith("cdc:"):
            raise ValueError("starts with cdc:, where the cache's own keys are")
        if placeholders(key):
            return key
        raise ValueError("names no column, as turn:{turn_id} does")

    @field_validator("time_column")
    @classmethod
    def _empty_is_none(cls, column: str | None) -> str | None:
        return column or None


class HistoryProjection(_Projection):
    """A sorted set of the newest rows that share a key: score = `order_by`, member = the row as JSON."""

    kind: Literal["history"] = Field("history", description="a sorted set of the newest rows that share a key")
    order_by: str = Field(
        min_length=1, description="the column that orders the rows, a number or a time", examples=["id"]
    )
    limit: int = Field(200, ge=1, le=10_000, description="how many rows are kept")
    ttl_s: int = Field(7 * 86_400, ge=1, description="life of the key, from the commit of its newest row")


class RowProjection(_Projection):
    """A string: the row as JSON."""

    kind: Literal["row"] = Field("row", description="a string: the row as JSON")
    ttl_s: int = Field(7 * 86_400, ge=1, description="life of the key, from the commit of its row")


class LatestProjection(_Projection):
    """A string: chosen columns of the newest row that shares a key, as JSON. `order_by` is always among them."""

    kind: Literal["latest"] = Field("latest", description="a string: columns of the newest row that shares a key")
    order_by: str = Field(min_length=1, description="the column that says which row is newest", examples=["id"])
    columns: tuple[str, ...] = Field(
        min_length=1, description="the columns in the value; order_by is always among them", examples=[["id", "state"]]
    )
    ttl_s: int = Field(45 * 60, ge=1, description="life of the key, from the commit of its newest row")


AnyProjection = HistoryProjection | RowProjection | LatestProjection
Projection = Annotated[AnyProjection, Field(discriminator="kind")]

TURNS_PROJECTIONS: tuple[AnyProjection, ...] = (
    HistoryProjection(table="public.turns", key="session:{session_hash}:turns", order_by="id"),
    RowProjection(table="public.turns", key="turn:{turn_id}"),
    LatestProjection(
        table="public.turns",
        key="session:{session_hash}:state",
        order_by="id",
        columns=("id", "turn_id", "role", "state", "confidence", "metadata", "created_at"),
    ),
)


class CacheSettings(_Section):
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

    @field_validator("url")
    @classmethod
    def _is_a_redis_address(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None or url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            return url
        raise ValueError("is not a redis://, rediss:// or unix:// address")

    @field_validator("projections")
    @classmethod
    def _keys_are_distinct(cls, projections: tuple[AnyProjection, ...]) -> tuple[AnyProjection, ...]:
        shapes = [_PLACEHOLDER.sub("{}", projection.key) for projection in projections]
        twice = next((p.key for p, shape in zip(projections, shapes, strict=True) if shapes.count(shape) > 1), None)
        if twice is None:
            return projections
        raise ValueError(f"two projections write the same key, {twice}")

    @model_validator(mode="after")
    def _is_private_on_its_way(self) -> Self:
        parts = urlsplit("" if self.url is None else self.url.get_secret_value())
        unproved = {("ssl_cert_reqs", "none"), ("ssl_cert_reqs", "optional"), ("ssl_check_hostname", "false")}
        proved = parts.scheme == "rediss" and not unproved & set(parse_qsl(parts.query.lower()))
        local = parts.scheme == "unix" or _is_loopback(parts.hostname or "localhost")
        if self.url is None or self.allow_insecure or proved or local:
            return self
        raise ValueError(
            "cache.url names another machine without TLS and a verified certificate: others could read the rows"
            "\n      use rediss:// (an authority of your own: ?ssl_ca_certs=/path/ca.pem),"
            "\n      or in a network that you trust: allow_insecure = true"
        )


class HttpSettings(_Section):
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
        local = parts.scheme == "http" and _is_loopback(parts.hostname or "")
        if url is None or local or (parts.scheme == "https" and parts.hostname):
            return url
        raise ValueError("is neither an https:// address nor an http:// one of this machine")

    @model_validator(mode="after")
    def _is_guarded(self) -> Self:
        if self.token is None and not _is_loopback(self.listen.rpartition(":")[0].strip("[]")):
            raise ValueError(
                "http.token is needed, because http.listen is not a loopback address"
                "\n      export CDC_HTTP__TOKEN=$(openssl rand -hex 32)"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class MonitorSettings(_Section):
    interval_s: float = Field(10.0, ge=0.1, le=3600, description="time between looks at the server's slots")
    warn_s: float = Field(
        21_600.0, ge=0, description="a forecast nearer than this is a warning: a slot at its limit, or a full disk"
    )
    barrier_interval_s: float = Field(
        60.0,
        ge=0,
        le=3600,
        description="time between barriers, messages in the WAL by which the recovery point is measured; 0: none",
    )
    disk_path: str | None = Field(
        None,
        description="directory on the disk of the server's WAL; absent: the data directory, if it is on this machine",
        examples=["/var/lib/postgresql"],
    )

    @field_validator("disk_path")
    @classmethod
    def _is_absolute(cls, path: str | None) -> str | None:
        if path is None or path.startswith("/"):
            return path
        raise ValueError("is not an absolute path")


class LogSettings(_Section):
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")


class Settings(_Section):
    """The whole configuration. See `deploy/cdc.toml` for every option explained."""

    postgres: PostgresSettings
    archive: ArchiveSettings
    cache: CacheSettings = CacheSettings()
    http: HttpSettings = HttpSettings()
    monitor: MonitorSettings = MonitorSettings()
    log: LogSettings = LogSettings()

    _exposed: tuple[Path, ...] = PrivateAttr(())

    @property
    def exposed_files(self) -> tuple[Path, ...]:
        """Files with secrets of ours that any user of this machine may read."""
        return self._exposed

    @model_validator(mode="after")
    def _can_catch_up(self) -> Self:
        if self.archive.recipients and self.cache.url is not None and self.archive.identity is None:
            raise ValueError("archive.identity is needed: the cache catches up from the encrypted archive")
        return self


_SectionT = TypeVar("_SectionT", bound=_Section)
SECTIONS: dict[str, type[_Section]] = {
    "postgres": PostgresSettings,
    "archive": ArchiveSettings,
    "cache": CacheSettings,
    "http": HttpSettings,
    "monitor": MonitorSettings,
    "log": LogSettings,
}
KINDS: dict[str, type[_Section]] = {"history": HistoryProjection, "row": RowProjection, "latest": LatestProjection}


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read everything, or raise Invalid with every mistake."""
    found = _read(path, environ, tuple(SECTIONS))
    settings = _validate(Settings, {name: {} for name in SECTIONS} | found.values, (), found)
    settings._exposed = tuple(file for file in found.secret_files if is_open_to_others(file))
    return settings


def load_postgres(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> PostgresSettings:
    """Read `[postgres]` alone, for commands that need nothing else."""
    return _load_section(PostgresSettings, "postgres", path, environ)


def load_monitor(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> MonitorSettings:
    """Read `[monitor]` alone, for commands that need little else."""
    return _load_section(MonitorSettings, "monitor", path, environ)


def load_archive(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> ArchiveSettings:
    """Read `[archive]` alone, for commands that need nothing else."""
    return _load_section(ArchiveSettings, "archive", path, environ)


def _load_section(section: type[_SectionT], name: str, path: Path | None, environ: Mapping[str, str]) -> _SectionT:
    found = _read(path, environ, (name,))
    return _validate(section, found.values.get(name, {}), (name,), found)


@dataclass(frozen=True, slots=True)
class Option:
    """One option by its full name, `postgres.slot`. `example` is a value to paste: the default, or one made up."""

    section: str
    name: str
    field: FieldInfo

    @property
    def full_name(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def variable(self) -> str:
        return f"CDC_{self.section}__{self.name}".upper()

    @property
    def secret(self) -> bool:
        """Whether it must never be printed, and may be in a file of its own."""
        return "SecretStr" in str(self.field.annotation)

    @property
    def example(self) -> Any:
        return self.field.examples[0] if self.field.examples else self.field.default

    @property
    def line(self) -> str:
        """A line of cdc.toml that sets the option."""
        return f"{self.name} = {_as_toml(self.example)}"


def options() -> Iterator[Option]:
    """Every option of every section, in the order of the documentation."""
    for section, model in SECTIONS.items():
        for name, field in model.model_fields.items():
            yield Option(section, name, field)


@dataclass(frozen=True, slots=True)
class _Found:
    """What the file and the environment say together, who said it, and which secrets could not be had."""

    values: dict[str, Any]
    file: Path | None
    said_by: dict[tuple[str, ...], str]
    complaints: dict[tuple[str, ...], str]
    secret_files: list[Path]

    @property
    def sources(self) -> str:
        return f"{self.file} and the environment" if self.file else "the environment; there is no cdc.toml here"

    def put(self, section: str, option: str, value: Any, source: str) -> None:
        """The environment's word goes before the file's."""
        self.said_by[section, option] = source
        table = self.values.setdefault(section, {})
        if isinstance(table, dict):
            table[option] = value


def _read(path: Path | None, environ: Mapping[str, str], sections: Sequence[str]) -> _Found:
    """What is said of everything, and the secrets of `sections`: a command reads no file that it does not need."""
    file = path or next((candidate for candidate in DEFAULT_PATHS if candidate.is_file()), None)
    found = _Found(_read_file(file) if file else {}, file, {}, {}, [])
    secrets = [option for option in options() if option.secret]
    if file and any(_holds_secret(found.values, option) for option in secrets):
        found.secret_files.append(file)
    names_of_files = {f"{option.variable}_FILE" for option in secrets}
    for name, text in environ.items():
        match = _ENVIRONMENT_NAME.fullmatch(name)
        # An empty variable is one that a compose file passed through unset.
        if match and text and name not in names_of_files:
            section, option = match[1].lower(), match[2].lower()
            found.put(section, option, _parse_variable(name, text) if option in _LISTS else text, name)
    for secret in secrets:
        if secret.section in sections:
            _read_secret(found, secret, environ)
    return found


def _holds_secret(values: Mapping[str, Any], option: Option) -> bool:
    """Whether cdc.toml gives this secret away; an address without a password does not."""
    table = values.get(option.section)
    text = table.get(option.name) if isinstance(table, dict) else None
    return isinstance(text, str) and (option.name not in ("dsn", "url") or bool(_PASSWORD.search(text)))


def _read_secret(found: _Found, option: Option, environ: Mapping[str, str]) -> None:
    try:
        secret = find_secret(option.full_name, option.variable, environ)
    except Invalid as error:
        found.complaints[option.section, option.name] = (
            f"{option.full_name}: {error.message}" + f"\n      {error.hint}" * bool(error.hint)
        )
        return
    if secret is None:
        return
    found.put(option.section, option.name, secret.text, secret.source)
    if secret.file is not None:
        found.secret_files.append(secret.file)


def _parse_variable(name: str, text: str) -> Any:
    example: Any = next((option.example for option in options() if option.variable == name), [])
    try:
        return json.loads(text)
    except ValueError as error:
        raise Invalid(
            f"{name} is not JSON",
            detail=str(error),
            hint=f"{name}='{json.dumps(example)}'",
        ) from error


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Invalid(
            f"the configuration file {path} cannot be read",
            detail=error.strerror or str(error),
            hint=f"ls -l {path}",
        ) from error
    except ValueError as error:
        # Both TOMLDecodeError, which names line and column, and UnicodeDecodeError.
        raise Invalid(
            f"the configuration file {path} is not TOML",
            detail=str(error),
            hint='texts are quoted, as in: slot = "cdc"',
        ) from error


def _validate(model: type[_SectionT], values: Any, prefix: tuple[str, ...], found: _Found) -> _SectionT:
    errors: list[ErrorDetails] = []
    try:
        settings = model.model_validate(values)
        if not found.complaints:
            return settings
    except ValidationError as failure:
        errors = failure.errors(include_url=False)
    mistakes = [*found.complaints.values()]
    mistakes += [_explain(error, prefix, found) for error in errors if not _follows(error, prefix, found)]
    raise Invalid(
        f"the configuration has {len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''} ({found.sources})",
        detail="\n  " + "\n  ".join(mistakes),
        hint="cdc --config FILE names another file; deploy/cdc.toml explains every option",
    )


def _follows(error: ErrorDetails, prefix: tuple[str, ...], found: _Found) -> bool:
    """Whether it says only that a secret is missing which could not be had, or that its section lacks it."""
    location = (prefix + tuple(str(part) for part in error["loc"]))[:2]
    return any(at[: len(location)] == location for at in found.complaints)


def _explain(error: ErrorDetails, prefix: tuple[str, ...], found: _Found) -> str:
    """One mistake: the option's full name, what is wrong, and a line to paste."""
    location = prefix + tuple(str(part) for part in error["loc"])
    if not location:  # what two sections say together
        return str(error["ctx"]["error"])
    name, siblings = _resolve(location)
    source = found.said_by.get(location[:2])
    said_by = f" (from {source})" if source else ""
    if error["type"] == "extra_forbidden":
        return f"{name}{said_by}: there is no such option{_did_you_mean(location, siblings)}"
    return f"{name}{said_by}: {_what_is_wrong(error, location)}{_paste(location, siblings)}"


def _resolve(location: Sequence[str]) -> tuple[str, Mapping[str, FieldInfo]]:
    """The option's full name, and the fields among which its last part is looked up."""
    if len(location) > 2 and location[1] == "projections":
        # cache, projections, 0, history, key: the tag of the union is no part of the name.
        kind = location[3] if len(location) > 3 and location[3] in KINDS else "row"
        rest = [part for part in location[3:] if part not in KINDS]
        return ".".join([f"cache.projections[{location[2]}]", *rest]), KINDS[kind].model_fields
    section = SECTIONS.get(location[0])
    return ".".join(location), section.model_fields if section and len(location) > 1 else {}


def _did_you_mean(location: Sequence[str], siblings: Mapping[str, FieldInfo]) -> str:
    wrong = location[-1]
    if len(location) == 1:
        elsewhere = next((option for option in options() if option.name == wrong), None)
        if elsewhere:
            return f"; did you mean {elsewhere.full_name}?\n      [{elsewhere.section}]\n      {elsewhere.line}"
        near = difflib.get_close_matches(wrong, SECTIONS, 1)
        return f"; did you mean [{near[0]}]?" if near else f"; the sections are {', '.join(SECTIONS)}"
    near = difflib.get_close_matches(wrong, siblings, 1, 0.5)
    if not near:
        return f"; there are {', '.join(siblings)}" if siblings else f"; the sections are {', '.join(SECTIONS)}"
    right = ".".join([_resolve(location)[0].rpartition(".")[0], near[0]])
    return f"; did you mean {right}?{_paste([*location[:-1], near[0]], siblings)}"


def _what_is_wrong(error: ErrorDetails, location: Sequence[str]) -> str:
    match error["type"]:
        case "missing":
            return "is missing"
        case "union_tag_not_found":
            return "kind is missing: one of history, row, latest"
        case "union_tag_invalid":
            return "kind should be one of history, row, latest"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "should be a table"
        case "value_error":
            reason = str(error["ctx"]["error"])
        case _:
            reason = error["msg"].replace("Input should be", "should be")
    return reason + _as_given(error["input"], location)


def _as_given(value: Any, location: Sequence[str]) -> str:
    # A bucket's url is no secret, but people put credentials into it.
    secret = location[-1] == "url" or any(option.secret and location[-1] == option.name for option in options())
    if secret or "@" in str(value) or not isinstance(value, str | int | float):
        return ""
    return f", not {str(value)[:80]!r}"


def _paste(location: Sequence[str], siblings: Mapping[str, FieldInfo]) -> str:
    field = siblings.get(location[-1])
    if field is None:
        return ""
    option = Option(location[0], location[-1], field)
    if len(location) > 2:
        return f"\n      {option.line}"
    return f"\n      [{option.section}]\n      {option.line}\n      or: {option.variable}={_as_shell(option.example)}"


def _as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_as_toml(item)}" for name, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_as_toml(item) for item in value) + "]"
    return json.dumps(value)


def _as_shell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"'{text}'" if re.search(r"[^\w@%+=:,./-]", text) else text
