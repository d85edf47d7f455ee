"""Opens the bucket that the configuration names."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.bucket.directory import DirectoryBucket
from cdc.archive.bucket.unlocked import UnlockedBucket
from cdc.archive.format.encryption import Keys
from cdc.config import ArchiveSettings


def open_bucket(settings: ArchiveSettings) -> Bucket:
    """Make the bucket that `archive.url` names, with the keys of `archive.identity`. No request is made yet."""
    bucket = _open(settings)
    if settings.identity is None:
        return bucket
    return UnlockedBucket(bucket, Keys.parse(settings.identity.get_secret_value()))


def _open(settings: ArchiveSettings) -> Bucket:
    parts = urlsplit(settings.url)
    if parts.scheme == "file":
        return DirectoryBucket(Path(unquote(parts.path)))
    from cdc.archive.bucket.s3 import S3Bucket  # takes half a second to import, so only where it is needed

    return S3Bucket(
        parts.netloc,
        parts.path.strip("/"),
        endpoint_url=settings.endpoint_url,
        region=settings.region,
        put_timeout_s=settings.put_timeout_s,
    )
