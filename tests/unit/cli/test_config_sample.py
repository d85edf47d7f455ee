"""`cdc config sample`: what lies in deploy/, without a checkout."""

from pathlib import Path

import pytest

from cdc.cli import main
from cdc.cli.config import Sample

DEPLOY = Path(__file__).parents[3] / "deploy"

# An image is built in a checkout alone.
NO_SAMPLE = {"Dockerfile", "Dockerfile.dockerignore"}


def contents(folder: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name not in NO_SAMPLE)


def test_without_a_name_it_is_the_configuration_byte_for_byte(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["config", "sample"]) == 0
    assert capfdbinary.readouterr().out == (DEPLOY / "cdc.toml").read_bytes()


def test_several_files_are_printed_below_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "sample", "systemd"]) == 0
    printed = capsys.readouterr().out
    assert f"# ==> waltier.service\n{(DEPLOY / 'systemd' / 'waltier.service').read_text()}" in printed
    assert "# ==> cdc-.service.d/waltier.conf\n" in printed


def test_the_samples_together_are_all_of_deploy(tmp_path: Path) -> None:
    for name in Sample:
        if name is not Sample.ALERTS:  # of which the sample prometheus has all
            assert main(["config", "sample", name, "--out", str(tmp_path / name)]) == 0
    assert contents(tmp_path) == contents(DEPLOY)


def test_the_list_names_every_sample(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "sample", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["sample", *Sample]


def test_no_file_is_overwritten_and_then_none_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "waltier.service"
    mine.write_text("mine")
    assert main(["config", "sample", "systemd", "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(
        f"cdc: {mine}: already there, and a sample overwrites nothing\nhint: cdc config sample systemd"
    )
    assert mine.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [mine]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nope"], "cdc: 'nope' is no sample"),
        (["--list", "--out", "q"], "cdc: --list writes nothing, so --out has no use"),
        (["--out", ""], "cdc: --out is empty"),
        (["--out", "file"], "cdc: file is not a directory"),
    ],
)
def test_a_mistake_is_said_plainly_and_nothing_is_written(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no directory")
    assert main(["config", "sample", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith(told)
    assert "\nhint: cdc config sample --" in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_usage_names_the_argument_as_others_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "sample", "--help"]) == 0
    assert "cdc config sample [OPTIONS] [NAME]" in capsys.readouterr().out


def test_where_nothing_can_be_written_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("no directory")
    assert main(["config", "sample", "--out", str(tmp_path / "file" / "below")]) == 2
    assert "cannot be written (" in capsys.readouterr().err
