"""A copy of the package with its pure rooms compiled by mypyc, as `make compile` does it, beside the checkout."""

import shutil
import subprocess
import sys
from pathlib import Path

_CHECKOUT = Path(__file__).parents[2]
_PATIENCE_S = 900


def compile_copy(directory: Path) -> Path:
    """The root of the compiled copy. Raises RuntimeError with the compiler's last word if it cannot be made."""
    root = directory / "compiled"
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(_CHECKOUT / "cdc", root / "cdc", ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        if (_CHECKOUT / name).exists():
            shutil.copy(_CHECKOUT / name, root / name)
    shutil.copytree(_CHECKOUT / "sql", root / "sql")
    built = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=root,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_PATIENCE_S,
        text=True,
    )
    if built.returncode != 0 or not list(root.glob("cdc/row.*.so")):
        raise RuntimeError((built.stdout.strip().splitlines() or ["nothing was compiled"])[-1])
    return root
