"""Each import contract of pyproject.toml can be red: what it forbids is planted in a copy of `cdc/`."""

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]

Contract = Mapping[str, Any]


def modules_of(layer: str) -> list[str]:
    return [name.strip() for name in layer.split("|")]


def outsider(allowed: list[str]) -> str:
    """A module that is in none of these rooms."""
    rooms = sorted(path.name for path in (ROOT / "cdc").iterdir() if (path / "__init__.py").exists())
    return next(f"cdc.{room}" for room in rooms if not any(f"{name}.".startswith(f"cdc.{room}.") for name in allowed))


def imports_that_break(contract: Contract) -> Iterator[tuple[str, str]]:
    """Pairs of a module and what it must not import, which together break the contract."""
    match contract["type"]:
        case "layers":
            [container, *_] = contract.get("containers", [""])
            top, bottom = (modules_of(contract["layers"][at])[0].strip("()") for at in (0, -1))
            yield f"{container}.{bottom}".strip("."), f"{container}.{top}".strip(".")
        case "protected":
            yield outsider(contract["allowed_importers"]), contract["protected_modules"][0]
        case "forbidden":
            yield contract["source_modules"][0], contract["forbidden_modules"][0]
        case "independence":
            yield contract["modules"][0], contract["modules"][1]
        case "acyclic_siblings":
            [ancestor, *_] = contract["ancestors"]
            place = ROOT.joinpath(*ancestor.split("."))
            first, second, *_ = sorted(path.stem for path in place.iterdir() if is_module(path))
            yield f"{ancestor}.{first}", f"{ancestor}.{second}"
            yield f"{ancestor}.{second}", f"{ancestor}.{first}"
        case other:
            pytest.fail(f"how is a contract of type {other} broken?")


def is_module(path: Path) -> bool:
    return (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").exists()


def plant(copy: Path, module: str, imported: str) -> None:
    file = copy.joinpath(*module.split("."))
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    file.write_text(f"{file.read_text()}\nimport {imported}\n")


def lint_imports(directory: Path) -> subprocess.CompletedProcess[str]:
    program = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(program, cwd=directory, capture_output=True, text=True, check=False, env={"COLUMNS": "200"})


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package without its data, and the contracts."""
    shutil.copytree(ROOT / "cdc", tmp_path / "cdc", ignore=shutil.ignore_patterns("sql", "page", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize("contract", CONTRACTS, ids=[contract["name"] for contract in CONTRACTS])
def test_what_a_contract_forbids_breaks_it(copy: Path, contract: Contract) -> None:
    for module, imported in imports_that_break(contract):
        plant(copy, module, imported)
    done = lint_imports(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{contract['name']} BROKEN" in done.stdout, done.stdout


def test_nothing_is_broken_where_nothing_is_planted(copy: Path) -> None:
    done = lint_imports(copy)
    assert done.returncode == 0, done.stdout + done.stderr
