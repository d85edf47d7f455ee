"""Compiles the pure rooms with mypyc, and only on request: `make compile`, or an install with CDC_COMPILE=1.

They run as they stand without it, some two times slower. A plain install needs no C compiler. Everything else about the
package is in pyproject.toml.
"""

import os
import sys
from glob import glob
from typing import TYPE_CHECKING

from setuptools import setup

if TYPE_CHECKING:
    from setuptools import Extension

_PURE = [
    "cdc/lsn.py",
    "cdc/row.py",
    "cdc/change.py",
    "cdc/pipeline/progress.py",
    *sorted(glob("cdc/pgoutput/*.py")),
    "cdc/pipeline/queue.py",
    "cdc/archive/format/cut.py",
    "cdc/archive/format/lines.py",
    "cdc/cache/order.py",
    "cdc/cache/plan.py",
    "cdc/cache/projection.py",
]


def _extensions() -> "list[Extension]":
    if "build_ext" not in sys.argv and os.environ.get("CDC_COMPILE") != "1":
        return []
    try:
        from mypyc.build import mypycify
    except ImportError:
        raise SystemExit(
            "compiling needs mypyc: pip install 'mypy[mypyc]' setuptools, then pip install --no-build-isolation ."
        ) from None
    return list(mypycify(_PURE, opt_level="3"))


setup(ext_modules=_extensions())
