"""A bucket in a directory keeps an archive on a disk, on a network file system, or for a demo.

An object is written to a temporary file beside it, synced, and then linked under its name. `os.link` fails if the name
is taken (rename would overwrite), so one of many writers wins. At last the directory is synced, and the parents that
were made for it. All of this runs in threads, because a disk may be slow.
"""

import asyncio
import contextlib
import errno
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeVar

from cdc.archive.bucket.bucket import AlreadyExists
from cdc.errors import Invalid, Unavailable

_Result = TypeVar("_Result")

_TEMPORARY = ".tmp-"
# Errors that a person must mend: rights, a file in a directory's place, a read-only file system or one without links, a
# name that is too long.
_INVALID = {errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR} | {
    errno.EOPNOTSUPP, errno.EPERM, errno.EROFS
}  # fmt: skip


class DirectoryBucket:
    """Stores objects as files under `root`, which is made with the first object."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        return self._root.absolute().as_uri()

    @property
    def rewrite_pause_s(self) -> float:
        return 0.0

    async def create(self, key: str, body: bytes) -> None:
        await self._run(lambda: _create(self._root, self._root / key, body))

    async def get(self, key: str) -> bytes | None:
        return await self._run(lambda: _read(self._root / key))

    async def head(self, key: str) -> int | None:
        return await self._run(lambda: _size(self._root / key))

    async def replace(self, key: str, body: bytes) -> None:
        await self._run(lambda: _replace(self._root, self._root / key, body))

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[str]:
        for key in await self._run(lambda: _keys(self._root, prefix)):
            if key > after:
                yield key

    async def close(self) -> None:
        pass

    async def _run(self, work: Callable[[], _Result]) -> _Result:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise self._explain(error) from error

    def _explain(self, error: OSError) -> Invalid | Unavailable:
        if error.errno in _INVALID:
            return Invalid(
                f"the archive's directory cannot be used: {error.strerror}",
                detail=str(error),
                hint=f"mkdir -p '{self._root}' && chown \"$(id -un)\" '{self._root}'   # or set archive.url",
            )
        return Unavailable(f"the archive's directory does not answer: {error.strerror}", detail=str(error))


def _create(root: Path, path: Path, body: bytes) -> None:
    with _temporary(root, path, body) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise AlreadyExists(f"{path.name} exists") from None
    _sync(path.parent)


def _replace(root: Path, path: Path, body: bytes) -> None:
    with _temporary(root, path, body) as temporary:
        os.replace(temporary, path)
    _sync(path.parent)


@contextlib.contextmanager
def _temporary(root: Path, path: Path, body: bytes) -> Iterator[Path]:
    """Make a synced file with these bytes in the same directory; remove it at the end."""
    _make_directory(root, path.parent)
    temporary = path.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _make_directory(root: Path, directory: Path) -> None:
    """Make the directory and sync each new entry, up to the archive's root."""
    if directory.is_dir():
        return
    if directory != root and root in directory.parents:
        _make_directory(root, directory.parent)
    directory.mkdir(parents=True, exist_ok=True)
    _sync(directory.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _keys(root: Path, prefix: str) -> list[str]:
    base = root / prefix.rpartition("/")[0]
    paths = (path for path in base.rglob("*") if path.is_file() and not path.name.startswith(_TEMPORARY))
    keys = (path.relative_to(root).as_posix() for path in paths)
    return sorted(key for key in keys if key.startswith(prefix))
