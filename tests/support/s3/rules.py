"""What is refused whatever the buckets hold: unsigned requests by every server, and more by R2."""

import hashlib
import time

from aiohttp import web

from tests.support.s3.answer import Refusal

_REGIONS = {"auto", "us-east-1"}
_KEY_BYTES = 1024
_WRITE_INTERVAL_S = 1.0


def check_signed(request: web.Request, body: bytes, access_key: str) -> None:
    if f"Credential={access_key}/" not in request.headers.get("Authorization", ""):
        raise Refusal(403, "AccessDenied", "Access Denied.")
    declared = request.headers.get("x-amz-content-sha256", "")
    if len(declared) == 64 and declared != hashlib.sha256(body).hexdigest():
        raise Refusal(400, "XAmzContentSHA256Mismatch", "The body is not the one that was signed.")


class R2:
    """R2's rules; each time one is broken, a sentence is added to `violations`."""

    def __init__(self, violations: list[str]) -> None:
        self._violations = violations
        self._written_s: dict[tuple[str, str], float] = {}

    def check(self, request: web.Request, bucket: str, key: str) -> None:
        if _has_trailer(request):
            self._violations.append(f"checksum trailer on {request.method} {request.path}")
            raise Refusal(501, "NotImplemented", "STREAMING-UNSIGNED-PAYLOAD-TRAILER not implemented.")
        scope = request.headers["Authorization"].partition("Credential=")[2].split("/")
        if len(scope) < 3 or scope[2] not in _REGIONS:
            self._violations.append(f"region {scope[2] if len(scope) > 2 else None} on {request.method} {request.path}")
            raise Refusal(400, "InvalidRegionName", "The region name is not valid: expected auto.")
        if len(key.encode()) > _KEY_BYTES:
            self._violations.append(f"key of {len(key.encode())} bytes")
            raise Refusal(400, "KeyTooLongError", "Your key is too long.")
        if request.method in ("PUT", "DELETE") and key:
            self._refuse_too_many_writes(bucket, key)

    def _refuse_too_many_writes(self, bucket: str, key: str) -> None:
        now_s = time.monotonic()
        if now_s - self._written_s.get((bucket, key), -_WRITE_INTERVAL_S) < _WRITE_INTERVAL_S:
            self._violations.append(f"two writes within a second to {key}")
            raise Refusal(429, "TooManyRequests", "Reduce your concurrent request rate for the same object.")
        self._written_s[bucket, key] = now_s


def _has_trailer(request: web.Request) -> bool:
    headers = request.headers
    return (
        "aws-chunked" in headers.get("Content-Encoding", "")
        or headers.get("x-amz-content-sha256", "").startswith("STREAMING-")
        or "x-amz-trailer" in headers
        or any(name.lower().startswith("x-amz-checksum-") for name in headers)
        or "x-amz-sdk-checksum-algorithm" in headers
    )
