"""`cdc archive` of an archive that is not there yet."""

from pathlib import Path

import pytest

from cdc.cli import main


@pytest.mark.parametrize("command", ["ls", "verify"])
def test_an_empty_archive_leads_to_the_service_that_begins_it(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cdc.toml").write_text(f'[archive]\nurl = "{tmp_path.as_uri()}/archive"\n')
    assert main(["--config", str(tmp_path / "cdc.toml"), "archive", command]) == 2
    assert capsys.readouterr().err.endswith("hint: cdc run; cdc status\n")
