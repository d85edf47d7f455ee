"""The command line without any server: help, usage, mistakes, exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

from cdc import __version__, cli
from cdc.errors import DataError, Diverged, Fenced, Invalid, SlotLost, Unavailable

COMMANDS = [
    "demo",
    "init",
    "run",
    "repair",
    "status",
    "doctor",
    "slots",
    "teardown",
    "restore",
    "drill",
    "archive",
    "key",
]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cdc.config.sources.DEFAULT_PATHS", ())
    for name in ("CDC_CONFIG", "CDC_POSTGRES__DSN", "CDC_ARCHIVE__URL", "CDC_ADMIN_DSN"):
        monkeypatch.delenv(name, raising=False)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, "archive ls", "archive cat", "archive verify", "key generate"])
def test_every_command_has_a_help_of_its_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command.split(), "--help"]) == 0
    assert "Usage: cdc" in capsys.readouterr().out


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["bogus"], ["run", "--bogus"], ["archive", "ls", "--from", "x"], ["demo", "1"]])
def test_a_mistake_in_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Usage: cdc" in captured.err


@pytest.mark.parametrize("command", ["run", "status", "doctor", "slots", "archive ls", "archive verify", "teardown"])
def test_a_mistake_in_the_configuration_is_exit_code_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("cdc: the configuration has ")
    assert "\nhint: " in captured.err


@pytest.mark.parametrize("arguments", [["--config", "x.toml", "slots"], ["slots", "--config", "x.toml"]])
def test_config_may_stand_before_or_after_the_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert "the configuration file x.toml cannot be read" in capsys.readouterr().err


def test_the_configuration_file_may_be_named_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CDC_CONFIG", "y.toml")
    assert cli.main(["slots"]) == 2
    assert "y.toml" in capsys.readouterr().err


def test_init_prints_its_sql_without_any_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "--print"]) == 0
    text = capsys.readouterr().out
    assert "CREATE TABLE IF NOT EXISTS public.turns" in text
    assert "CREATE PUBLICATION cdc" in text


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(Unavailable, 1), (DataError, 1), (Invalid, 2), (Fenced, 75), (Diverged, 78), (SlotLost, 78)],
)
def test_an_error_on_purpose_is_printed_in_its_three_parts(
    error: type[Unavailable], exit_code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error("what is wrong", detail="why", hint="paste this")

    monkeypatch.setattr("cdc.config.load_postgres", fail)
    assert cli.main(["slots"]) == exit_code
    assert capsys.readouterr().err == "cdc: what is wrong\ndetail: why\nhint: paste this\n"


def test_an_interrupt_from_the_keyboard_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cdc.config.load_postgres", interrupt)
    assert cli.main(["slots"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("cdc.config.load_postgres", crash)
    with pytest.raises(ZeroDivisionError):
        cli.main(["slots"])


def test_help_imports_no_driver_and_no_configuration() -> None:
    code = (
        "import sys; from cdc.cli import main; main(['--help'])\n"
        "slow = {'psycopg', 'redis', 'aioboto3', 'botocore', 'zstandard', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(', '.join(slow) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
