"""What the buckets hold, and what S3 answers about it."""

import base64
import datetime
import hashlib
import threading
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from aiohttp import web

from tests.support.s3.answer import Refusal, answer_xml

# Questions about a bucket, and what is answered where nobody has put anything.
_ABSENT_CONFIGURATION = {
    "lifecycle": "NoSuchLifecycleConfiguration",
    "object-lock": "ObjectLockConfigurationNotFoundError",
    "versioning": "",
}


@dataclass
class Object:
    body: bytes
    etag: str
    modified: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))


class Store:
    """The objects and configurations of some buckets; every method may be called from any thread.

    `ignore_if_none_match` and `deny_questions` are faults: conditions that are not looked at, as some servers do, and a
    key that may not ask for configurations.
    """

    def __init__(self, buckets: tuple[str, ...]) -> None:
        self.ignore_if_none_match = False
        self.deny_questions = False
        self._lock = threading.RLock()
        self._buckets: dict[str, dict[str, Object]] = {name: {} for name in buckets}
        # What was put with ?lifecycle, ?versioning, ?object-lock: the XML as it came, by bucket and question.
        self._configurations: dict[tuple[str, str], bytes] = {}

    def objects(self, bucket: str = "archive") -> dict[str, bytes]:
        """A copy of everything in the bucket, by key."""
        with self._lock:
            return {key: stored.body for key, stored in sorted(self._buckets[bucket].items())}

    def put_object(self, key: str, body: bytes, bucket: str = "archive") -> None:
        """Put an object behind everybody's back."""
        with self._lock:
            self._buckets[bucket][key] = _object(body)

    def configure(self, question: str, xml: str, bucket: str = "archive") -> None:
        """Answer `?lifecycle`, `?versioning` or `?object-lock` with this XML, as if somebody had put it."""
        with self._lock:
            self._configurations[bucket, question] = xml.encode()

    def configuration(self, question: str, bucket: str = "archive") -> str:
        """What stands there now; empty if nothing does."""
        with self._lock:
            return self._configurations.get((bucket, question), b"").decode()

    def delete_object(self, key: str, bucket: str = "archive") -> None:
        with self._lock:
            del self._buckets[bucket][key]

    def apply(self, request: web.Request, bucket: str, key: str, body: bytes) -> web.Response:
        """Carry the request out. Raises Refusal."""
        with self._lock:
            if bucket not in self._buckets:
                raise Refusal(404, "NoSuchBucket", "The specified bucket does not exist.")
            objects = self._buckets[bucket]
            question = next((name for name in _ABSENT_CONFIGURATION if name in request.query), None)
            if not key and question is not None:
                return self._configuration(request.method, bucket, question, body)
            match request.method:
                case "PUT" if key and not request.query_string.replace("x-id=PutObject", ""):
                    return self._put(request, objects, key, body)
                case "GET" if not key:
                    return _list(request, bucket, objects)
                case "HEAD" if not key:
                    return web.Response()
                case "GET" | "HEAD":
                    return _get(objects, key, head=request.method == "HEAD")
                case "DELETE" if key:
                    objects.pop(key, None)
                    return web.Response(status=204)
                case _:
                    raise Refusal(501, "NotImplemented", f"{request.method} {request.path_qs} is not implemented here.")

    def _configuration(self, method: str, bucket: str, question: str, body: bytes) -> web.Response:
        if self.deny_questions:
            raise Refusal(403, "AccessDenied", "Access Denied.")
        if method == "PUT":
            self._configurations[bucket, question] = body
        elif method == "DELETE":
            self._configurations.pop((bucket, question), None)
        elif (bucket, question) in self._configurations:
            return web.Response(body=self._configurations[bucket, question], content_type="application/xml")
        elif question == "versioning":
            return answer_xml(200, "<VersioningConfiguration/>")
        else:
            raise Refusal(404, _ABSENT_CONFIGURATION[question], "There is no such configuration.")
        return web.Response()

    def _put(self, request: web.Request, objects: dict[str, Object], key: str, body: bytes) -> web.Response:
        digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        if request.headers.get("Content-MD5", digest) != digest:
            raise Refusal(400, "BadDigest", "The Content-MD5 you specified did not match what we received.")
        if request.headers.get("If-None-Match") == "*" and key in objects and not self.ignore_if_none_match:
            raise Refusal(412, "PreconditionFailed", "At least one of the preconditions you specified did not hold.")
        objects[key] = stored = _object(body)
        return web.Response(headers={"ETag": stored.etag})


def _object(body: bytes) -> Object:
    return Object(body, f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"')


def _get(objects: dict[str, Object], key: str, *, head: bool) -> web.Response:
    if key not in objects:
        raise Refusal(404, "NoSuchKey", "The specified key does not exist.")
    stored = objects[key]
    headers = {"ETag": stored.etag, "Last-Modified": stored.modified.strftime("%a, %d %b %Y %H:%M:%S GMT")}
    if head:
        return web.Response(headers=headers | {"Content-Length": str(len(stored.body))})
    return web.Response(body=stored.body, headers=headers)


def _list(request: web.Request, bucket: str, objects: dict[str, Object]) -> web.Response:
    query = request.query
    prefix, limit = query.get("prefix", ""), min(int(query.get("max-keys", "1000")), 1000)
    after = query.get("continuation-token") or query.get("start-after") or ""
    keys = sorted(key for key in objects if key.startswith(prefix) and key > after)
    page, more = keys[:limit], len(keys) > limit
    contents = "".join(
        f"<Contents><Key>{escape(key)}</Key><Size>{len(objects[key].body)}</Size><ETag>{escape(objects[key].etag)}</ETag>"
        f"<LastModified>{objects[key].modified:%Y-%m-%dT%H:%M:%S.000Z}</LastModified></Contents>"
        for key in page
    )
    token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
    return answer_xml(
        200,
        f"<ListBucketResult><Name>{escape(bucket)}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
        f"<MaxKeys>{limit}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}</ListBucketResult>",
    )
