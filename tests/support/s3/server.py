"""The server: HTTP, faults, and the requests it saw."""

import asyncio
import datetime
import ssl
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Literal, NoReturn, Self
from urllib.parse import unquote

from aiohttp import web

from tests.support.certificates import write_certificates
from tests.support.s3.answer import Refusal, answer_refusal
from tests.support.s3.rules import R2, check_signed
from tests.support.s3.store import Store

Mode = Literal["plain", "r2"]

_START_DEADLINE_S = 30.0
# An aborted connection closes in the next turn of the loop; one in the middle of its TLS handshake needs a few.
_CLOSING_TURNS = 10


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


class S3Server(Store):
    """Start with `with` or `start()`; every method may be called from any thread."""

    access_key = "AKIAWALTIERTESTS"
    secret_key = "a secret that opens nothing"

    def __init__(self, *, tls: bool = False, mode: Mode = "r2", buckets: tuple[str, ...] = ("archive",)) -> None:
        super().__init__(buckets)
        self.mode = mode
        self.tls = tls
        self.clock_offset_s = 0.0
        self.requests: list[Request] = []
        self.violations: list[str] = []
        self.most_puts_in_flight = 0
        self.port = 0
        self._puts_in_flight = 0
        self._r2 = R2(self.violations)
        self._faults: list[Fault] = []
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

    # What it saw.

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
            transport = connection.transport
            connection.force_close()
            if transport is not None:
                transport.abort()  # TLS would wait for the client's own close

    async def _close(self) -> None:
        await self._shut()
        if self._runner is not None:
            await self._runner.cleanup()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(_CLOSING_TURNS):  # else a transport is collected that is not closed, which fails the test
            await asyncio.sleep(0.001)

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
            answer = answer_refusal(refusal)
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
        check_signed(request, body, self.access_key)
        if self.mode == "r2":
            self._r2.check(request, bucket, key)
        return self.apply(request, bucket, key, body)


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
        write_certificates(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem")
    return context
