"""The bucket stores objects: the small interface that the archive needs, and the proof that no object is overwritten.

Keys are relative to the archive's prefix. An object made with `create` is never changed; only hint and proofs are
`replace`d. Implementations: `s3` (S3 and R2), `directory`, `memory` (tests and examples). Every method may raise
Unavailable (try again) or Invalid (mend the configuration).
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from cdc.crash import crash_point
from cdc.errors import CdcError, DataError, Invalid, Unavailable

PROBE_KEY = "probe/conditional-put"

_PROBE_BODY = b"waltier proves here that this key can be created only once\n"
_PROBE_ATTEMPTS = 5


class AlreadyExists(CdcError):
    """The key is taken, and nothing was written. It is no failure yet: the caller compares the bytes."""


class Bucket(Protocol):
    """Objects under keys; listing is in the order of the keys' bytes."""

    @property
    def url(self) -> str:
        """The bucket's address, as messages print it."""
        ...

    @property
    def rewrite_pause_s(self) -> float:
        """The seconds that must pass between two attempts to write one key."""
        ...

    async def create(self, key: str, body: bytes) -> None:
        """Make an object that survives a crash, or raise AlreadyExists. Of many writers at once, one wins."""
        ...

    async def get(self, key: str) -> bytes | None:
        """The object's bytes, or None if there is none."""
        ...

    async def head(self, key: str) -> int | None:
        """The object's size, or None if there is none."""
        ...

    async def replace(self, key: str, body: bytes) -> None:
        """Write the object whether or not it is there."""
        ...

    def list(self, prefix: str, after: str = "") -> AsyncIterator[str]:
        """Yield the keys that start with `prefix` and come after `after`, in order."""
        ...

    async def close(self) -> None: ...


async def read_object(bucket: Bucket, key: str) -> bytes:
    """Read an object that must be there. Raises DataError if it is not, Unavailable or Invalid."""
    return required(bucket, key, await bucket.get(key))


def required(bucket: Bucket, key: str, body: bytes | None) -> bytes:
    """Return `body`, which `get` returned for an object that must be there. Raises DataError if it is None."""
    if body is None:
        raise DataError(
            f"{key} is missing from the archive", detail=f"The archive is {bucket.url}.", hint="cdc archive verify"
        )
    return body


async def prove_conditional_put(bucket: Bucket) -> None:
    """Prove that a key can be created once and not again. Raises Invalid if the bucket overwrites, or Unavailable.

    Some S3 servers accept `If-None-Match: *` and ignore it; with them two writers would destroy each other's segments.
    The probe's key is always the same, so that starts leave no litter and need no right to delete. An object of an
    earlier start proves that creating works, and its refusal now is the proof.
    """
    created = await _probe(bucket)
    if created:
        await asyncio.sleep(bucket.rewrite_pause_s)
    if created and await _probe(bucket):
        raise Invalid(
            f"the bucket {bucket.url} overwrites objects that it was asked only to create",
            detail="A PUT with If-None-Match: * succeeded twice on one key, so nothing protects the archive from a "
            "second writer.",
            hint="use a store with conditional writes: Cloudflare R2, AWS S3, MinIO, or file:///directory",
        )
    if await bucket.get(PROBE_KEY) is None:
        raise Invalid(
            f"the bucket {bucket.url} refuses to create an object that is not there",
            detail=f"A PUT with If-None-Match: * on {PROBE_KEY} was answered as if the key were taken.",
            hint="use a store with conditional writes: Cloudflare R2, AWS S3, MinIO, or file:///directory",
        )


async def _probe(bucket: Bucket) -> bool:
    """Try to create the probe; False if it is there already."""
    for attempt in range(_PROBE_ATTEMPTS):
        try:
            await bucket.create(PROBE_KEY, _PROBE_BODY)
        except AlreadyExists:
            crash_point("bucket_probed")
            return False
        except Unavailable:
            if attempt == _PROBE_ATTEMPTS - 1:
                raise
            await asyncio.sleep(bucket.rewrite_pause_s)
        else:
            crash_point("bucket_probed")
            return True
    raise AssertionError("the loop returns or raises")
