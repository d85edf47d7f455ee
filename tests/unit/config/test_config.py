"""Every mistake is reported at once, by the option's full name, with a line to paste, and without a secret."""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from cdc import config
from cdc.archive.format.encryption import generate_key
from cdc.archive.format.key_file import write_identity
from cdc.config import HistoryProjection, RowProjection, Settings, load, load_archive, load_postgres
from cdc.errors import Invalid

GOOD = """
[postgres]
dsn = "postgresql://cdc@localhost/chat"

[archive]
url = "file:///var/lib/waltier"
"""

DSN = {"CDC_POSTGRES__DSN": "postgresql://cdc@localhost/chat"}
URL = {"CDC_ARCHIVE__URL": "s3://bucket/prefix"}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working directory of our own, so that no cdc.toml of the machine is read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cdc.config.sources.DEFAULT_PATHS", (Path("cdc.toml"), tmp_path / "etc" / "cdc.toml"))
    return tmp_path


def write(text: str, name: str = "cdc.toml") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def mistakes(text: str = GOOD, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(Invalid) as raised:
        load(write(text), environ or {})
    return raised.value.explain()


def test_the_smallest_file_is_enough_and_the_rest_are_defaults() -> None:
    settings = load(write(GOOD), {})
    assert settings.postgres.slot == "cdc"
    assert settings.postgres.publication == "cdc"
    assert settings.archive.linger_s == 1
    assert settings.archive.on_gap == "stop"
    assert settings.cache.url is None
    assert [projection.kind for projection in settings.cache.projections] == ["history", "row", "latest"]


def test_without_any_file_the_environment_may_say_everything() -> None:
    settings = load(None, DSN | URL | {"CDC_CACHE__URL": "redis://localhost", "CDC_ARCHIVE__LINGER_S": "0.25"})
    assert settings.archive.url == "s3://bucket/prefix"
    assert settings.archive.linger_s == 0.25
    assert settings.cache.url is not None


def test_the_environment_overrides_the_file() -> None:
    assert load(write(GOOD), {"CDC_POSTGRES__SLOT": "other"}).postgres.slot == "other"


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load(write(GOOD), {"CDC_POSTGRES__SLOT": "", "CDC_CACHE__URL": ""}).postgres.slot == "cdc"


def test_variables_of_other_programs_are_left_alone() -> None:
    assert load(write(GOOD), {"CDC_FAULTS_SECONDS": "3", "CDCX__A": "b", "CDC_POSTGRES__dsn": "no"})


def test_the_file_of_the_working_directory_goes_before_the_file_of_the_machine() -> None:
    write(GOOD.replace("chat", "machine"), "etc/cdc.toml")
    assert "machine" in load(None, {}).postgres.dsn.get_secret_value()
    write(GOOD)
    assert "chat" in load(None, {}).postgres.dsn.get_secret_value()


def test_projections_come_from_the_file_in_its_order() -> None:
    projections = """
[[cache.projections]]
kind = "history"
table = "public.messages"
key = "room:{room_id}:messages"
order_by = "id"

[[cache.projections]]
kind = "row"
table = "public.rooms"
key = "room:{room_id}"
ttl_s = 60
time_column = ""
"""
    first, second = load(write(GOOD + projections), {}).cache.projections
    assert first == HistoryProjection(table="public.messages", key="room:{room_id}:messages", order_by="id")
    assert second == RowProjection(table="public.rooms", key="room:{room_id}", ttl_s=60, time_column=None)


def test_projections_come_from_the_environment_as_json() -> None:
    text = '[{"kind":"row","table":"public.rooms","key":"room:{room_id}"}]'
    (projection,) = load(write(GOOD), {"CDC_CACHE__PROJECTIONS": text}).cache.projections
    assert projection == RowProjection(table="public.rooms", key="room:{room_id}")


def test_no_projections_at_all_can_be_asked_for() -> None:
    assert load(write(GOOD + "[cache]\nprojections = []"), {}).cache.projections == ()


def test_a_command_that_needs_one_section_asks_for_no_other() -> None:
    assert load_archive(None, URL).url == "s3://bucket/prefix"
    assert load_postgres(None, DSN).slot == "cdc"
    with pytest.raises(Invalid, match="1 mistake"):
        load_archive(None, DSN)


def test_every_mistake_is_reported_at_once() -> None:
    text = mistakes('[postgres]\nslot = "Bad-Name"\nslit = 1\n[archive]\nlinger_s = 99\n[cashe]\nurl = "x"')
    assert "6 mistakes (cdc.toml and the environment)" in text
    for name in ("postgres.dsn", "postgres.slot", "postgres.slit", "archive.url", "archive.linger_s", "cashe"):
        assert f"\n  {name}: " in text


BAD = [
    ("", "postgres.dsn: is missing"),
    ("", '[postgres]\n      dsn = "postgresql://'),
    ("", "or: CDC_POSTGRES__DSN='postgresql://"),
    ("", "archive.url: is missing"),
    ("", 'url = "s3://'),
    ("[postgres]\nslot = 'Bad-Name'", "postgres.slot: may hold only lower-case letters"),
    ("[postgres]\nslot = 'Bad-Name'", 'slot = "cdc"\n      or: CDC_POSTGRES__SLOT=cdc'),
    ("[postgres]\nslot = 5", "postgres.slot: should be a valid string, not '5'"),
    ("[postgres]\nslto = 'a'", "postgres.slto: there is no such option; did you mean postgres.slot?"),
    ("[postgres]\nzzz = 'a'", "postgres.zzz: there is no such option; there are dsn, slot, publication"),
    ("[postgres]\ndsn = 'chat'", "postgres.dsn: is neither a postgresql:// address nor key=value pairs"),
    (
        "[postgres]\nstatus_interval_s = 100",
        "postgres.status_interval_s: should be less than or equal to 30, not '100'",
    ),
    ("[postgres]\nallow_insecure = 'perhaps'", "postgres.allow_insecure: should be a valid boolean"),
    ("postgres = 'here'", "postgres: should be a table"),
    (
        "dsn = 'here'",
        'dsn: there is no such option; did you mean postgres.dsn?\n      [postgres]\n      dsn = "postgres',
    ),
    ("[postgress]\nslot = 'a'", "postgress: there is no such option; did you mean [postgres]?"),
    (
        "[elsewhere]\nx = 1",
        "elsewhere: there is no such option; the sections are postgres, archive, cache, http, monitor",
    ),
    ("[archive]\nurl = 'bucket'", "archive.url: is neither s3://bucket/prefix nor file:///directory"),
    ("[archive]\nurl = 's3://'", "archive.url: is neither s3://bucket/prefix nor file:///directory"),
    ("[archive]\nurl = 'file://host/dir'", "archive.url: is neither s3://bucket/prefix nor file:///directory"),
    ("[archive]\nurl = 's3://id:key@bucket/x'", "archive.url: must not hold credentials"),
    ("[archive]\nendpoint_url = 'r2'", "archive.endpoint_url: is not an https:// address, not 'r2'"),
    ("[archive]\nendpoint_url = 'https://id:key@r2.example.net'", "archive.endpoint_url: must not hold credentials"),
    ("[archive]\nurl = 's3://b'\nendpoint_url = 'http://r2.example.net'", "archive.endpoint_url is http:// to another"),
    ("[cache]\nurl = 'redis://redis.example.net'", "cache: cache.url names another machine without TLS"),
    ("[cache]\nurl = 'rediss://redis.example.net?ssl_cert_reqs=none'", "without TLS and a verified certificate"),
    ("[cache]\nurl = 'rediss://redis.example.net?ssl_check_hostname=False'", "without TLS and a verified certificate"),
    ("[archive]\non_gap = 'continue'", "archive.on_gap: should be 'stop' or 'resnapshot', not 'continue'"),
    ("[archive]\nsegment_bytes = 1.5", "archive.segment_bytes: should be a valid integer"),
    ("[cache]\nurl = 'localhost:6379'", "cache.url: is not a redis://, rediss:// or unix:// address"),
    ("[cache]\nprojections = 5", "cache.projections: should be a valid tuple"),
    ("[[cache.projections]]\ntable = 'a.b'", "cache.projections[0]: kind is missing: one of history, row, latest"),
    ("[[cache.projections]]\nkind = 'list'", "cache.projections[0]: kind should be one of history, row, latest"),
    ("[[cache.projections]]\nkind = 'row'", 'cache.projections[0].key: is missing\n      key = "turn:{turn_id}"'),
    (
        "[[cache.projections]]\nkind = 'row'\ntable = 'turns'\nkey = 'turn:{id}'",
        "cache.projections[0].table: needs its schema, as in public.turns, not 'turns'",
    ),
    (
        "[[cache.projections]]\nkind = 'row'\ntable = 'a.b'\nkey = 'turn'",
        "cache.projections[0].key: names no column, as turn:{turn_id} does, not 'turn'",
    ),
    (
        "[[cache.projections]]\nkind = 'row'\ntable = 'a.b'\nkey = 'cdc:{id}'",
        "cache.projections[0].key: starts with cdc:, where the cache's own keys are",
    ),
    (
        "[[cache.projections]]\nkind = 'row'\ntable = 'a.b'\nkey = 'x:{id}'\nttl = 5",
        "cache.projections[0].ttl: there is no such option; did you mean cache.projections[0].ttl_s?",
    ),
    (
        "[[cache.projections]]\nkind = 'row'\ntable = 'a.b'\nkey = 'x:{id}'\n" * 2,
        "cache.projections: two projections write the same key, x:{id}",
    ),
    (
        "[[cache.projections]]\nkind = 'latest'\ntable = 'a.b'\nkey = 'x:{id}'\norder_by = 'id'\ncolumns = []",
        "cache.projections[0].columns: Tuple should have at least 1 item",
    ),
    ("[http]\nlisten = '8080'", "http.listen: is not host:port, not '8080'"),
    ("[http]\nlisten = '0.0.0.0:80'", "http: http.token is needed, because http.listen is not a loopback address"),
    ("[http]\nlisten = '0.0.0.0:80'", "\n      export CDC_HTTP__TOKEN=$(openssl rand -hex 32)"),
    ("[http]\nlisten = '[::]:80'", "http: http.token is needed"),
    (
        "[http]\ntoken = 'short'",
        "http.token: needs at least 16 letters, digits and signs, without spaces\n      [http]",
    ),
    ("[http]\nping_url = 'http://example.net/x'", "http.ping_url: is neither an https:// address nor an http:// one"),
    ("[log]\nlevel = 'loud'", "log.level: should be 'debug', 'info', 'warning' or 'error', not 'loud'"),
    ("[postgres]\nslot = 'a'\nslot = 'b'", "is not TOML\ndetail: "),
    ("[postgres]\nslot = cdc", "(at line 2, column 8)"),
]


@pytest.mark.parametrize(("text", "said"), BAD)
def test_a_bad_configuration_is_explained(text: str, said: str) -> None:
    assert said in mistakes(text)


@pytest.mark.parametrize(
    "text",
    [
        "[cache]\nurl = 'redis://127.0.0.1'",
        "[cache]\nurl = 'redis://:secret@[::1]:6379'",
        "[cache]\nurl = 'unix:///run/redis.sock'",
        "[cache]\nurl = 'rediss://redis.example.net?ssl_ca_certs=/ca.pem'",
        "[cache]\nurl = 'redis://redis'\nallow_insecure = true",
    ],
)
def test_a_cache_that_is_near_or_proved_or_allowed_is_taken(text: str) -> None:
    assert load(write(GOOD + text), {}).cache.url is not None


@pytest.mark.parametrize("more", ["endpoint_url = 'http://127.0.0.1:9000'", "endpoint_url = 'https://r2.example.net'",
                                  "endpoint_url = 'http://s3'\nallow_insecure = true"])  # fmt: skip
def test_an_endpoint_that_is_near_or_over_tls_or_allowed_is_taken(more: str) -> None:
    assert load(write(GOOD + more), {}).archive.endpoint_url is not None


def test_a_mistake_in_the_environment_names_its_variable() -> None:
    text = mistakes(GOOD, {"CDC_ARCHIVE__LINGER_S": "soon", "CDC_POSTGRES__SLOTT": "x"})
    assert "archive.linger_s (from CDC_ARCHIVE__LINGER_S): should be a valid number" in text
    assert "postgres.slott (from CDC_POSTGRES__SLOTT): there is no such option; did you mean postgres.slot?" in text


def test_projections_in_the_environment_that_are_not_json_are_explained() -> None:
    assert "CDC_CACHE__PROJECTIONS is not JSON" in mistakes(GOOD, {"CDC_CACHE__PROJECTIONS": "turns"})


def test_a_file_that_is_asked_for_and_not_there_is_an_error() -> None:
    with pytest.raises(Invalid, match=r"missing\.toml cannot be read"):
        load(Path("missing.toml"), DSN | URL)


def test_without_a_file_the_message_says_so() -> None:
    with pytest.raises(Invalid, match=r"the environment; there is no cdc\.toml here"):
        load(None, {})


SECRETS = [
    "[postgres]\ndsn = 'hunter2'",
    "[postgres]\npassword = 'hunter2'",
    "[postgres]\nslot = 'postgresql://cdc:hunter2@localhost/chat'",
    "[cache]\nurl = 'http://:hunter2@localhost'",
    "[archive]\nurl = 's3://id:hunter2@bucket'",
    "[archive]\nurl = 'hunter2'",
    "[archive]\nendpoint_url = 'id:hunter2@example.net'",
    "[aws]\nsecret = 'hunter2'",
    "[http]\ntoken = 'hunter2'",
    "[http]\nping_url = 'http://example.net/hunter2'",
    "[http]\nping_url = ['hunter2']",
    "[http]\nlisten = '0.0.0.0:80'\nping_url = 'https://example.net/hunter2'",
]


@pytest.mark.parametrize("text", SECRETS)
def test_no_message_holds_a_secret(text: str) -> None:
    assert "hunter2" not in mistakes(text)


def test_printing_the_settings_shows_no_secret() -> None:
    settings = load(write(GOOD), {"CDC_POSTGRES__DSN": "postgresql://cdc:hunter2@localhost/chat"})
    assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json()


@pytest.mark.parametrize("option", list(config.options()), ids=lambda option: option.full_name)
def test_the_line_to_paste_for_each_option_is_itself_valid(option: config.Option) -> None:
    if option.example is None:
        return
    lines: dict[str, str] = {"postgres": f"dsn = {DSN['CDC_POSTGRES__DSN']!r}", "archive": "url = 'file:///a'"}
    if option.name in ("dsn", "url"):
        lines.pop(option.section, None)
    lines[option.section] = f"{lines.get(option.section, '')}\n{option.line}"
    text = "\n".join(f"[{section}]\n{body}" for section, body in lines.items())
    assert load(write(text), {})


def test_every_option_has_a_description() -> None:
    assert [option.full_name for option in config.options() if not option.field.description] == []


def test_the_sample_configuration_is_valid_and_names_every_option() -> None:
    path = Path(__file__).parents[3] / "deploy" / "cdc.toml"
    assert isinstance(load(path, {}), Settings)
    text = path.read_text()
    sections: dict[str, str] = {}
    for line in text.splitlines():
        line = line.lstrip("# ").strip()
        if line.startswith("["):
            current = line.strip("[]").split(".")[0]
        elif " = " in line:
            sections[current] = sections.get(current, "") + "\n" + line
    for option in config.options():
        if option.full_name != "cache.projections":
            assert f"\n{option.name} = " in sections[option.section], option.full_name
    assert "[[cache.projections]]" in text


def test_uncommenting_the_whole_sample_gives_a_valid_configuration() -> None:
    text = (Path(__file__).parents[3] / "deploy" / "cdc.toml").read_text()
    uncommented = re.sub(r"(?m)^#(?=\S)", "", text)
    assert tomllib.loads(uncommented)["cache"]["projections"]
    assert isinstance(load(write(uncommented), {}), Settings)


def as_table(fields: Mapping[str, FieldInfo]) -> str:
    rows = ["| option | default | what it is |", "|---|---|---|"]
    for name, field in sorted(fields.items(), key=lambda item: item[0] != "kind"):
        default = (
            "needed"
            if field.is_required() or name == "kind"
            else "none"
            if field.default is None
            else f"`{as_default(field)}`"
        )
        rows.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(rows) + "\n"


def as_default(field: FieldInfo) -> str:
    return "see below" if isinstance(field.default, tuple) and field.default else json.dumps(field.default)


def documented_tables() -> str:
    sections = [f"## `[{name}]`\n\n{as_table(model.model_fields)}" for name, model in config.SECTIONS.items()]
    kinds = [f'### `kind = "{name}"`\n\n{as_table(model.model_fields)}' for name, model in config.KINDS.items()]
    return "\n".join([*sections, "## `[[cache.projections]]`\n", *kinds])


def test_the_documentation_has_every_option_with_its_default() -> None:
    document = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
    assert document.endswith(documented_tables()), f"docs/configuration.md should end with:\n{documented_tables()}"


def test_an_encrypted_archive_needs_two_recipients_or_one_on_purpose() -> None:
    (box, _), (safe, _) = generate_key(), generate_key()
    one, two = json.dumps([box]), json.dumps([box, safe])
    assert load(write(GOOD), {"CDC_ARCHIVE__RECIPIENTS": two}).archive.recipients == (box, safe)
    said = mistakes(GOOD, {"CDC_ARCHIVE__RECIPIENTS": one})
    assert "archive.recipients names one key" in said
    assert "cdc key generate" in said
    settings = load(write(GOOD), {"CDC_ARCHIVE__RECIPIENTS": one, "CDC_ARCHIVE__SINGLE_RECIPIENT": "true"})
    assert settings.archive.recipients == (box,)
    assert "names one key twice" in mistakes(GOOD, {"CDC_ARCHIVE__RECIPIENTS": json.dumps([box, box])})
    assert "number 2 is not cdcpub_" in mistakes(GOOD, {"CDC_ARCHIVE__RECIPIENTS": json.dumps([box, safe[:-1]])})
    assert "CDC_ARCHIVE__RECIPIENTS is not JSON" in mistakes(GOOD, {"CDC_ARCHIVE__RECIPIENTS": box})


def test_a_wrong_identity_is_never_quoted() -> None:
    _, private = generate_key()
    said = mistakes(GOOD, {"CDC_ARCHIVE__IDENTITY": private[:-1]})
    assert "archive.identity" in said
    assert private[8:40] not in said


def test_the_identity_may_be_the_file_that_key_generate_wrote(tmp_path: Path) -> None:
    write_identity(tmp_path / "identity")
    identity = load(write(GOOD), {"CDC_ARCHIVE__IDENTITY_FILE": str(tmp_path / "identity")}).archive.identity
    assert identity is not None
    assert identity.get_secret_value() in (tmp_path / "identity").read_text()


def test_a_cache_of_an_encrypted_archive_needs_the_identity() -> None:
    (box, private), (safe, _) = generate_key(), generate_key()
    environ = {"CDC_ARCHIVE__RECIPIENTS": json.dumps([box, safe]), "CDC_CACHE__URL": "redis://localhost:6379/0"}
    assert "archive.identity is needed: the cache catches up" in mistakes(GOOD, environ)
    assert load(write(GOOD), environ | {"CDC_ARCHIVE__IDENTITY": f"{private}\n"}).archive.identity is not None


def test_a_mistake_leads_to_the_sample_that_every_installation_has() -> None:
    with pytest.raises(Invalid) as caught:
        load(None)
    assert caught.value.hint.endswith("cdc config sample   # explains every option")
