"""Compiles the pure rooms with mypyc, and only on request: `make compile`, or an install with CDC_COMPILE=1.

They run as they stand without it, two to four times slower. Everything else about the package is in pyproject.toml.
"""

import os
import sys
from glob import glob

from setuptools import setup

_PURE = ["cdc/lsn.py", "cdc/row.py", "cdc/change.py", "cdc/progress.py", *sorted(glob("cdc/pgoutput/*.py"))]

_wanted = "build_ext" in sys.argv or os.environ.get("CDC_COMPILE") == "1"


def _compiled() -> list[object]:
    from mypyc.build import mypycify

    return list(mypycify([path for path in _PURE if os.path.exists(path)], opt_level="3"))


setup(ext_modules=_compiled() if _wanted else [])
