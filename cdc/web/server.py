"""The HTTP server: /metrics, /livez, /readyz and /status.json, on 127.0.0.1 unless a token guards it.

Everything here only reads: `Vitals`, the metrics' registry, the last log lines. A request never asks Postgres, the
bucket or Redis, so that a neighbour that hangs cannot hang the answer that says so.
"""

import asyncio
import errno
import hmac
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import orjson
import structlog
from aiohttp import web
from prometheus_client import generate_latest

from cdc import health, metrics
from cdc.config import Settings
from cdc.errors import Invalid
from cdc.vitals import Vitals
from cdc.web.status import Status

log = structlog.get_logger()

# The exposition format's own name (Prometheus, "Text-based format").
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# A service that stands by on the same machine takes the address over when the other one is gone.
RETRY_S = 5.0

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class WebServer:
    """Listens while the `async with` lasts. Raises Invalid for an address that this machine does not have."""

    def __init__(self, settings: Settings, vitals: Vitals) -> None:
        self._settings = settings.http
        self._vitals = vitals
        self._status = Status(settings, vitals)
        token = settings.http.token
        self._token = None if token is None else token.get_secret_value().encode()
        self._runner: web.AppRunner | None = None
        self._waiting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/status.json", self._status_json),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        if not await self._listen():
            log.warning("http_address_in_use", listen=self._settings.listen, retry_s=RETRY_S)
            self._waiting = asyncio.create_task(self._keep_trying(), name="http")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _listen(self) -> bool:
        """False while another process listens there, as the service that we stand by for may do."""
        runner = self._runner
        if runner is None:
            return False
        host, _, port = self._settings.listen.rpartition(":")
        try:
            await web.TCPSite(runner, host.strip("[]"), int(port)).start()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            await runner.cleanup()
            raise Invalid(
                f"http.listen {self._settings.listen} cannot be had",
                detail=error.strerror or str(error),
                hint='listen = "127.0.0.1:9187"   # in section [http]: an address of this machine',
            ) from None
        host, port = runner.addresses[-1][:2]
        log.info("listening", address=f"http://{host}:{port}")
        return True

    async def _keep_trying(self) -> None:
        listening = False
        while not listening:
            await asyncio.sleep(RETRY_S)
            listening = await self._listen()

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if self._token is None or request.path in ("/livez", "/readyz"):
            return await handler(request)
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
        if hmac.compare_digest(given, self._token):
            return await handler(request)
        raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"}, text="http.token is needed\n")

    async def _livez(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        verdict = self._judge()
        text = "".join(f"{reason.subject}: {reason.message}\n" for reason in verdict.reasons) or "ok\n"
        return web.Response(text=text, status=200 if verdict.ready else 503)

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.REGISTRY), headers={"Content-Type": _METRICS_TYPE})

    async def _status_json(self, _request: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(self._status.facts(self._judge())), content_type="application/json")

    def _judge(self) -> health.Health:
        return health.judge(self._vitals, time.time(), archive_lag_s=self._settings.archive_lag_s)
