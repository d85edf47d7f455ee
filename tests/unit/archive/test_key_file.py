"""`cdc key generate`: the private key is in one file, for its owner's eyes, and nowhere else."""

from pathlib import Path

import pytest

from cdc.archive.format.encryption import Keys, Recipients
from cdc.cli import main
from cdc.config.recipient import PRIVATE


def test_the_private_key_goes_into_a_file_that_only_its_owner_reads(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "identity"
    assert main(["key", "generate", "--out", str(file)]) == 0
    said = capfd.readouterr()
    assert file.stat().st_mode & 0o777 == 0o600
    assert PRIVATE not in said.out + said.err
    public = said.out.strip()
    assert public in file.read_text()
    assert Recipients([public])._keys.keys() == Keys.parse(file.read_text())._keys.keys()


def test_a_key_is_never_overwritten(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "identity"
    file.write_text("older")
    assert main(["key", "generate", "--out", str(file)]) == 2
    assert "exists; a private key is never overwritten" in capfd.readouterr().err
    assert file.read_text() == "older"


def test_a_directory_that_is_not_there_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "generate", "--out", str(tmp_path / "away" / "identity")]) == 2
    assert "cannot be written" in capfd.readouterr().err
