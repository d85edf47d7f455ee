"""What is installed from a wheel has everything that a checkout has."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
READ = "from cdc.postgres.install import read_sql; print(*(file.name for file in read_sql(ddl_sentinel=True)))"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout, unpacked. Built from a copy, because setuptools builds where the sources are."""
    copy = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("cdc", "sql"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    readme = ROOT / "README.md"
    (copy / "README.md").write_text(readme.read_text() if readme.exists() else "waltier\n")
    wheels = tmp_path_factory.mktemp("wheels")
    subprocess.run([sys.executable, "-c", BUILD, str(wheels)], cwd=copy, check=True, capture_output=True)
    target = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(next(wheels.glob("waltier-*.whl"))) as wheel:
        wheel.extractall(target)
    return target


def test_a_wheel_holds_the_operators_sql(installed: Path) -> None:
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin"}
    printed = subprocess.run(
        [sys.executable, "-c", READ], env=environment, cwd=installed, check=True, capture_output=True, text=True
    )
    assert printed.stdout.split() == sorted(path.name for path in (ROOT / "sql").glob("*.sql"))
    assert (installed / "cdc" / "sql" / "01_turns.sql").read_text() == (ROOT / "sql" / "01_turns.sql").read_text()


def test_a_wheel_holds_every_module_and_data_file_of_the_checkout(installed: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "cdc"], cwd=ROOT, check=True, capture_output=True, text=True)
    expected = [name for name in tracked.stdout.split() if name != "cdc/sql"]
    assert [name for name in expected if not (installed / name).is_file()] == []


def test_a_wheel_says_under_which_licence_it_is_and_holds_its_text(installed: Path) -> None:
    (about,) = installed.glob("waltier-*.dist-info")
    assert "License-Expression: Apache-2.0\n" in (about / "METADATA").read_text()
    assert (about / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
