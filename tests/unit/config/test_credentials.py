"""Secrets from variables, files and systemd: one source each, no line break, and never a word of what they hold."""

import os
from pathlib import Path

import pytest

from cdc import config
from cdc.config import load, load_archive, load_postgres
from cdc.config.credentials import aws_credentials_file, find_secret, is_open_to_others
from cdc.errors import Invalid

DSN = "postgresql://cdc:hunter2@localhost/chat"
URL = {"CDC_ARCHIVE__URL": "s3://bucket/prefix"}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working directory of our own, which others may enter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cdc.config.sources.DEFAULT_PATHS", (Path("cdc.toml"),))
    return tmp_path


def write(name: str, text: str | bytes, mode: int = 0o600) -> Path:
    path = Path(name).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def refused(environ: dict[str, str]) -> str:
    with pytest.raises(Invalid) as raised:
        load(None, URL | environ)
    assert "hunter2" not in raised.value.explain()
    return raised.value.explain()


SECRETS = {
    "postgres.dsn": DSN,
    "archive.identity": "cdckey_dwdtCnMYpX08FsFyUbJmRQAAAAAAAAAAAAAAAAAAAAAW0iLK",
    "cache.url": "redis://:hunter2@localhost",
    "http.token": "hunter2-hunter2-hunter2",
    "http.ping_url": "https://example.net/hunter2",
}


def test_every_secret_option_is_looked_for_in_files() -> None:
    assert [option.full_name for option in config.options() if option.secret] == list(SECRETS)


@pytest.mark.parametrize("name", list(SECRETS))
def test_a_secret_may_be_in_a_file_that_a_variable_names(name: str) -> None:
    variable = f"CDC_{name.replace('.', '__').upper()}_FILE"
    environ = URL | {"CDC_POSTGRES__DSN": DSN, variable: str(write("secret", f"{SECRETS[name]}\n"))}
    if name == "postgres.dsn":
        del environ["CDC_POSTGRES__DSN"]
    section, option = name.split(".")
    assert getattr(getattr(load(None, environ), section), option).get_secret_value() == SECRETS[name]


def test_a_secret_may_be_a_credential_of_systemd() -> None:
    for name, text in SECRETS.items():
        write(f"credentials/{name}", f"{text}\r\n", 0o400)
    settings = load(None, URL | {"CREDENTIALS_DIRECTORY": "credentials"})
    assert settings.postgres.dsn.get_secret_value() == DSN
    assert settings.http.token is not None
    assert settings.http.token.get_secret_value() == SECRETS["http.token"]


def test_a_file_or_a_credential_goes_before_cdc_toml() -> None:
    write("cdc.toml", '[postgres]\ndsn = "postgresql://other@localhost/other"')
    file = write("dsn", DSN)
    assert load(None, URL | {"CDC_POSTGRES__DSN_FILE": str(file)}).postgres.dsn.get_secret_value() == DSN
    write("credentials/postgres.dsn", DSN)
    assert load(None, URL | {"CREDENTIALS_DIRECTORY": "credentials"}).postgres.dsn.get_secret_value() == DSN


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        (
            {"CDC_POSTGRES__DSN": DSN, "CDC_POSTGRES__DSN_FILE": "dsn"},
            "postgres.dsn: is given twice, by CDC_POSTGRES__DSN and by CDC_POSTGRES__DSN_FILE\n      keep one of them",
        ),
        (
            {"CDC_POSTGRES__DSN": DSN, "CREDENTIALS_DIRECTORY": "credentials"},
            "postgres.dsn: is given twice, by CDC_POSTGRES__DSN and by credential postgres.dsn",
        ),
        (
            {"CDC_POSTGRES__DSN_FILE": "dsn", "CREDENTIALS_DIRECTORY": "credentials"},
            "postgres.dsn: is given twice, by CDC_POSTGRES__DSN_FILE and by credential postgres.dsn",
        ),
    ],
)
def test_two_sources_at_once_are_both_named(environ: dict[str, str], said: str) -> None:
    write("dsn", DSN)
    write("credentials/postgres.dsn", DSN)
    assert said in refused(environ)


def test_an_empty_variable_counts_as_not_set() -> None:
    environ = {"CDC_POSTGRES__DSN": "", "CDC_POSTGRES__DSN_FILE": str(write("dsn", DSN)), "CREDENTIALS_DIRECTORY": ""}
    assert load(None, URL | environ)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"hunter2\xff", "is not UTF-8 text"),
        (b"hunter2" * 10_000, "is larger than 65536 bytes, and so no secret"),
    ],
)
def test_a_file_that_holds_no_secret_is_named_and_not_quoted(content: bytes, said: str) -> None:
    file = write("dsn", content)
    assert f"postgres.dsn: {file} {said}\n" in refused({"CDC_POSTGRES__DSN_FILE": str(file)})


def test_files_that_cannot_be_read_are_reported_at_once_with_all_other_mistakes() -> None:
    text = refused(
        {
            "CDC_POSTGRES__DSN_FILE": "missing/dsn",
            "CDC_HTTP__TOKEN_FILE": "missing/token",
            "CDC_HTTP__LISTEN": "0.0.0.0:80",
            "CDC_ARCHIVE__LINGER_S": "soon",
        }
    )
    assert "3 mistakes" in text
    assert "postgres.dsn: missing/dsn cannot be read: No such file or directory\n      ls -l missing/dsn" in text
    assert "http.token: missing/token cannot be read" in text


def test_a_wrong_secret_is_said_to_come_from_its_file_and_not_shown() -> None:
    assert "postgres.dsn (from CDC_POSTGRES__DSN_FILE): is neither a postgresql:// address" in refused(
        {"CDC_POSTGRES__DSN_FILE": str(write("dsn", "hunter2"))}
    )
    assert "http.token (from credential http.token): needs at least 16" in refused(
        {"CDC_POSTGRES__DSN": DSN, "CREDENTIALS_DIRECTORY": str(write("c/http.token", "hunter2").parent)}
    )


def test_only_secrets_are_looked_for_in_files() -> None:
    assert "postgres.slot_file (from CDC_POSTGRES__SLOT_FILE): there is no such option; did you mean" in refused(
        {"CDC_POSTGRES__DSN": DSN, "CDC_POSTGRES__SLOT_FILE": "slot"}
    )


def test_a_command_reads_no_secret_that_it_does_not_need() -> None:
    environ = {"CDC_POSTGRES__DSN": DSN, "CDC_HTTP__TOKEN_FILE": "missing"}
    assert load_postgres(None, environ).dsn.get_secret_value() == DSN
    assert load_archive(None, URL | {"CDC_POSTGRES__DSN_FILE": "missing"}).url == "s3://bucket/prefix"


def test_a_secret_is_in_no_repr() -> None:
    assert "hunter2" not in repr(find_secret("postgres.dsn", "A", {"A": "hunter2"}))


# Who else may read it.


@pytest.fixture
def open_directory() -> Path:
    """tmp_path is below a directory that only we may enter, which closes what is in it."""
    path = Path("/tmp") / f"waltier-open-{os.getpid()}"
    path.mkdir(mode=0o755)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(("mode", "is_open"), [(0o600, False), (0o640, False), (0o644, True), (0o604, True)])
def test_a_file_that_any_user_may_read_is_open(open_directory: Path, mode: int, is_open: bool) -> None:
    try:
        file = write(str(open_directory / "dsn"), DSN, mode)
        assert is_open_to_others(file) is is_open
        settings = load(None, URL | {"CDC_POSTGRES__DSN_FILE": str(file)})
        assert settings.exposed_files == ((file,) if is_open else ())
        open_directory.chmod(0o700)
        assert not is_open_to_others(file)
    finally:
        (open_directory / "dsn").unlink(missing_ok=True)
        open_directory.rmdir()


@pytest.mark.parametrize(
    ("dsn", "counts"),
    [
        (DSN, True),
        ("host=localhost password=hunter2", True),
        ("postgresql://cdc@localhost/chat", False),
        ("host=localhost user=cdc", False),
    ],
)
def test_cdc_toml_counts_where_it_holds_a_password(monkeypatch: pytest.MonkeyPatch, dsn: str, counts: bool) -> None:
    monkeypatch.setattr("cdc.config.loading.is_open_to_others", lambda _file: True)
    write("cdc.toml", f'[postgres]\ndsn = "{dsn}"\n', 0o644)
    assert load(None, URL).exposed_files == ((Path("cdc.toml"),) if counts else ())


# S3.


def test_the_credential_aws_is_the_shared_credentials_file() -> None:
    file = write("credentials/aws", "[default]\n", 0o400)
    assert aws_credentials_file({"CREDENTIALS_DIRECTORY": str(file.parent)}) == file
    assert aws_credentials_file({"CREDENTIALS_DIRECTORY": "."}) is None
    assert aws_credentials_file({}) is None


@pytest.mark.parametrize("other", ["AWS_ACCESS_KEY_ID", "AWS_SHARED_CREDENTIALS_FILE"])
def test_a_second_source_of_s3_credentials_is_named(other: str) -> None:
    write("credentials/aws", "[default]\n")
    with pytest.raises(Invalid, match=f"twice, by {other} and by credential aws") as raised:
        aws_credentials_file({"CREDENTIALS_DIRECTORY": "credentials", other: "hunter2"})
    assert "hunter2" not in raised.value.explain()
