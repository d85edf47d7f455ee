"""`.ci/find-python` prints a Python that runs, whatever lies on the path."""

import subprocess
import sys
from pathlib import Path

FIND_PYTHON = Path(__file__).parents[3] / ".ci" / "find-python"


def _find(path: str, home: Path) -> str:
    environment = {"PATH": path, "HOME": str(home), "PYENV_ROOT": str(home / "pyenv")}
    return subprocess.run(
        ["/bin/sh", str(FIND_PYTHON)], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_shims_that_fail_are_passed_over(tmp_path: Path) -> None:
    shims = tmp_path / "shims"
    shims.mkdir()
    for name in ("python3.14", "python3.13", "python3.12", "python3.11", "python3", "python"):
        shim = shims / name
        shim.write_text("#!/bin/sh\necho 'pyenv: version not installed' >&2\nexit 127\n")
        shim.chmod(0o755)
    working = Path(sys.executable).resolve()
    installed = tmp_path / "pyenv" / "versions" / "3.13.0" / "bin" / "python"
    installed.parent.mkdir(parents=True)
    installed.symlink_to(working)
    found = _find(f"{shims}:/usr/bin:/bin", tmp_path)
    assert Path(found).parent != shims
    subprocess.run([found, "-c", "import venv, ensurepip"], check=True)
