"""A small S3 server of our own: it refuses what R2 refuses, injects faults, and remembers every request.

It runs in a thread of the process of the tests and speaks path-style HTTP or HTTPS on 127.0.0.1: PUT (with
`If-None-Match: *` and Content-MD5), GET, HEAD, DELETE and ListObjectsV2. moto is lenient where R2 is not, so in mode
"r2" this one refuses:

- aws-chunked bodies and checksum trailers (501), which boto3 sends over TLS since 1.36 unless told otherwise;
- more than one write a second to one key (429), keys longer than 1024 bytes, regions other than `auto` and `us-east-1`;
- `Expect: 100-continue` is never answered: a client that waits for it waits in vain; it is recorded besides.

Requests must be signed in both modes, but the signature itself is not verified; the body's digest is.

    with S3Server(tls=True) as s3:
        s3.fail(503, times=2)            # the next two PUTs
        ...
        assert s3.most_puts_in_flight == 1
"""

import asyncio
import base64
import datetime
import hashlib
import ipaddress
import ssl
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Literal, NoReturn, Self
from urllib.parse import unquote
from xml.sax.saxutils import escape

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Mode = Literal["plain", "r2"]

_START_DEADLINE_S = 30.0
_REGIONS = {"auto", "us-east-1"}
_KEY_BYTES = 1024
_WRITE_INTERVAL_S = 1.0

# Questions about a bucket, and what is answered where nobody has put anything.
_ABSENT_CONFIGURATION = {
    "lifecycle": "NoSuchLifecycleConfiguration",
    "object-lock": "ObjectLockConfigurationNotFoundError",
    "versioning": "",
}


@dataclass
class Request:
    """One request as it arrived. `status` is 0 while it is in flight, 599 if its connection was cut on purpose."""

    method: str
    bucket: str
    key: str
    headers: dict[str, str]
    body_bytes: int
    started_s: float
    status: int = 0
    ended_s: float = 0.0


@dataclass
class Fault:
    """What to do to requests that match, until it is used up (`times`) or healed."""

    methods: frozenset[str]
    key_contains: str
    times: int | None
    status: int | None = None
    lose_answer: bool = False
    delay_before_s: float = 0.0
    delay_after_s: float = 0.0

    def take(self, method: str, key: str) -> bool:
        if self.times == 0 or method not in self.methods or self.key_contains not in key:
            return False
        if self.times is not None:
            self.times -= 1
        return True


class Refusal(Exception):
    """An answer in S3's XML."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


@dataclass
class Object:
    body: bytes
    etag: str
    modified: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))


class S3Server:
    """Start with `with` or `start()`; every method may be called from any thread."""

    access_key = "AKIAWALTIERTESTS"
    secret_key = "a secret that opens nothing"

    def __init__(self, *, tls: bool = False, mode: Mode = "r2", buckets: tuple[str, ...] = ("archive",)) -> None:
        self.mode = mode
        self.tls = tls
        self.ignore_if_none_match = False
        self.clock_offset_s = 0.0
        self.deny_questions = False
        self.requests: list[Request] = []
        self.violations: list[str] = []
        self.most_puts_in_flight = 0
        self.port = 0
        self._puts_in_flight = 0
        self._buckets: dict[str, dict[str, Object]] = {name: {} for name in buckets}
        self._written_s: dict[tuple[str, str], float] = {}
        # What was put with ?lifecycle, ?versioning, ?object-lock: the XML as it came, by bucket and question.
        self._configurations: dict[tuple[str, str], bytes] = {}
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._directory = TemporaryDirectory(prefix="s3-")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None

    # The face of the server: where it is and how to speak to it.

    @property
    def endpoint_url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> Path:
        return Path(self._directory.name) / "ca.pem"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use this server: credentials, and the authority to trust."""
        variables = {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        if self.tls:
            variables |= {"AWS_CA_BUNDLE": str(self.ca_file), "REQUESTS_CA_BUNDLE": str(self.ca_file)}
        return variables

    # What it holds and what it saw.

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

    def seen(self, method: str, key_contains: str = "", status: int | None = None) -> list[Request]:
        """The requests so far of this method, on matching keys, with this status."""
        with self._lock:
            return [
                request
                for request in self.requests
                if request.method == method
                and key_contains in request.key
                and (status is None or request.status == status)
            ]

    def forget(self) -> None:
        """Forget the requests and violations so far, not the objects."""
        with self._lock:
            self.requests.clear()
            self.violations.clear()
            self.most_puts_in_flight = self._puts_in_flight

    # Faults. Each concerns PUTs unless told otherwise, so many `times`, or without that until `heal`: how long a test
    # takes between two lines is the machine's to say, so none ends by the clock.

    def fail(
        self,
        status: int = 503,
        *,
        times: int | None = None,
        methods: str = "PUT",
        key_contains: str = "",
    ) -> None:
        """Answer with this status and apply nothing."""
        self._inject(methods, key_contains, times, status=status)

    def lose_answer(self, *, times: int | None = 1, methods: str = "PUT", key_contains: str = "") -> None:
        """Answer the request as ever, but cut the connection before a byte of the answer is sent.

        aiohttp's client sends an idempotent request a second time on its own when that happens, at once.
        """
        self._inject(methods, key_contains, times, lose_answer=True)

    def delay(
        self,
        *,
        before_s: float = 0.0,
        after_s: float = 0.0,
        times: int | None = None,
        methods: str = "PUT",
        key_contains: str = "",
    ) -> None:
        """Wait before or after applying, whether or not the client still waits for the answer."""
        self._inject(methods, key_contains, times, delay_before_s=before_s, delay_after_s=after_s)

    def refuse_connections(self) -> None:
        """Close the door and cut everybody off, until `accept_connections`."""
        self._call(self._shut())

    def accept_connections(self) -> None:
        self._call(self._listen())

    def heal(self) -> None:
        """End every fault."""
        with self._lock:
            self._faults.clear()
            self.ignore_if_none_match = False
        if self._site is None:
            self.accept_connections()

    def _inject(self, methods: str, key_contains: str, times: int | None, **what: Any) -> None:
        fault = Fault(frozenset(methods.split()), key_contains, times, **what)
        with self._lock:
            self._faults.append(fault)

    def _take_fault(self, method: str, key: str) -> Fault | None:
        with self._lock:
            self._faults = [fault for fault in self._faults if fault.times != 0]
            return next((fault for fault in self._faults if fault.take(method, key)), None)

    # Life.

    def start(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="s3", daemon=True)
        self._thread.start()
        if not ready.wait(_START_DEADLINE_S) or not self.port:
            raise RuntimeError("the S3 server did not start")
        return self

    def stop(self) -> None:
        if self._loop is not None and self._thread is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, ready: threading.Event) -> None:
        self._loop = loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(self._open())
            loop.call_soon(ready.set)
            loop.run_forever()
            loop.run_until_complete(self._close())
        finally:
            ready.set()
            loop.close()

    async def _open(self) -> None:
        app = web.Application(client_max_size=1 << 31)
        app.router.add_route("*", "/{path:.*}", self._serve, expect_handler=self._on_expect)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await self._runner.setup()
        await self._listen()

    async def _listen(self) -> None:
        if self._site is not None or self._runner is None:
            return
        context = _server_context(Path(self._directory.name)) if self.tls else None
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context, reuse_address=True)
        await site.start()
        self._site = site
        self.port = self._runner.addresses[-1][1]

    async def _shut(self) -> None:
        site, self._site = self._site, None
        if site is not None:
            await site.stop()
        server = None if self._runner is None else self._runner.server
        for connection in [] if server is None else list(server.connections):
            connection.force_close()

    async def _close(self) -> None:
        await self._shut()
        if self._runner is not None:
            await self._runner.cleanup()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        if self._loop is None:
            raise RuntimeError("the S3 server is not running")
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_START_DEADLINE_S)

    # One request.

    async def _on_expect(self, request: web.Request) -> None:
        self.violations.append(f"Expect: 100-continue on {request.method} {request.path}")
        if self.mode == "plain" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        bucket, _, key = unquote(request.raw_path.split("?")[0].lstrip("/")).partition("/")
        record = Request(request.method, bucket, key, dict(request.headers), 0, time.monotonic())
        with self._lock:
            self.requests.append(record)
        writing = request.method == "PUT"
        self._count_put(+1 if writing else 0)
        try:
            body = await _read(request)
            record.body_bytes = len(body)
            answer = await self._answer(request, bucket, key, body)
        except Refusal as refusal:
            answer = _xml_error(refusal)
        finally:
            self._count_put(-1 if writing else 0)
            record.ended_s = time.monotonic()
        record.status = 599 if answer is None else answer.status
        if answer is not None and self.clock_offset_s:
            shown = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self.clock_offset_s)
            answer.headers["Date"] = shown.strftime("%a, %d %b %Y %H:%M:%S GMT")
        if answer is None:
            _cut(request)
        return answer

    def _count_put(self, step: int) -> None:
        with self._lock:
            self._puts_in_flight += step
            self.most_puts_in_flight = max(self.most_puts_in_flight, self._puts_in_flight)

    async def _answer(self, request: web.Request, bucket: str, key: str, body: bytes) -> web.Response | None:
        fault = self._take_fault(request.method, key)
        if fault is None:
            return self._answer_faultlessly(request, bucket, key, body)
        await asyncio.sleep(fault.delay_before_s)
        if fault.status is not None:
            raise Refusal(fault.status, "InjectedFault", "a fault was asked for")
        try:
            answer = self._answer_faultlessly(request, bucket, key, body)
        except Refusal:
            if not fault.lose_answer:
                raise
        await asyncio.sleep(fault.delay_after_s)
        return None if fault.lose_answer else answer

    def _answer_faultlessly(self, request: web.Request, bucket: str, key: str, body: bytes) -> web.Response:
        self._check_signed(request, body)
        if self.mode == "r2":
            self._refuse_as_r2(request, bucket, key)
        return self._apply(request, bucket, key, body)

    def _apply(self, request: web.Request, bucket: str, key: str, body: bytes) -> web.Response:
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
            return _xml(200, "<VersioningConfiguration/>")
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

    def _check_signed(self, request: web.Request, body: bytes) -> None:
        if f"Credential={self.access_key}/" not in request.headers.get("Authorization", ""):
            raise Refusal(403, "AccessDenied", "Access Denied.")
        declared = request.headers.get("x-amz-content-sha256", "")
        if len(declared) == 64 and declared != hashlib.sha256(body).hexdigest():
            raise Refusal(400, "XAmzContentSHA256Mismatch", "The body is not the one that was signed.")

    def _refuse_as_r2(self, request: web.Request, bucket: str, key: str) -> None:
        if _has_trailer(request):
            self.violations.append(f"checksum trailer on {request.method} {request.path}")
            raise Refusal(501, "NotImplemented", "STREAMING-UNSIGNED-PAYLOAD-TRAILER not implemented.")
        scope = request.headers["Authorization"].partition("Credential=")[2].split("/")
        if len(scope) < 3 or scope[2] not in _REGIONS:
            self.violations.append(f"region {scope[2] if len(scope) > 2 else None} on {request.method} {request.path}")
            raise Refusal(400, "InvalidRegionName", "The region name is not valid: expected auto.")
        if len(key.encode()) > _KEY_BYTES:
            self.violations.append(f"key of {len(key.encode())} bytes")
            raise Refusal(400, "KeyTooLongError", "Your key is too long.")
        if request.method in ("PUT", "DELETE") and key:
            self._refuse_too_many_writes(bucket, key)

    def _refuse_too_many_writes(self, bucket: str, key: str) -> None:
        now_s = time.monotonic()
        with self._lock:
            if now_s - self._written_s.get((bucket, key), -_WRITE_INTERVAL_S) < _WRITE_INTERVAL_S:
                self.violations.append(f"two writes within a second to {key}")
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
    return _xml(
        200,
        f"<ListBucketResult><Name>{escape(bucket)}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
        f"<MaxKeys>{limit}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}</ListBucketResult>",
    )


def _xml(status: int, text: str) -> web.Response:
    body = f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()
    return web.Response(status=status, body=body, content_type="application/xml")


def _xml_error(refusal: Refusal) -> web.Response:
    return _xml(
        refusal.status,
        f"<Error><Code>{refusal.code}</Code><Message>{escape(refusal.message)}</Message></Error>",
    )


async def _read(request: web.Request) -> bytes:
    try:
        return await request.read()
    except ConnectionError:
        raise asyncio.CancelledError from None  # as aiohttp says that a client has gone


def _cut(request: web.Request) -> NoReturn:
    """Abort the connection, so that the client sees it reset and no answer."""
    if request.transport is not None:
        request.transport.abort()
    raise asyncio.CancelledError  # what aiohttp itself raises in a handler whose client has gone


def _server_context(directory: Path) -> ssl.SSLContext:
    """A certificate for 127.0.0.1 from an authority made on the spot."""
    if not (directory / "server.pem").exists():
        _write_certificates(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem")
    return context


def _write_certificates(directory: Path) -> None:
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "waltier tests' authority")])
    server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    authority = (
        _certificate(authority_name, authority_name, authority_key, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    names = [x509.IPAddress(ipaddress.IPv4Address("127.0.0.1")), x509.DNSName("localhost")]
    server = (
        _certificate(server_name, authority_name, server_key, authority_key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    (directory / "ca.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    key_pem = server_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / "server.pem").write_bytes(key_pem + server.public_bytes(serialization.Encoding.PEM))


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, issuer_key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
