"""The HTTP server answers /metrics, /livez, /readyz, /status.json and the page, on 127.0.0.1 unless a token guards it.

It only reads: `Vitals`, the metrics' registry, the last log lines. A request never asks Postgres, the bucket or Redis.
So a neighbour that hangs cannot hang the answer that tells of it.
"""

import asyncio
import errno
from collections.abc import Callable
from types import TracebackType
from typing import Self

import orjson
import structlog
from aiohttp import web

from cdc.config import Settings
from cdc.errors import Invalid
from cdc.finding import Finding
from cdc.health.verdict import Health
from cdc.web.assets import Assets
from cdc.web.exposition import Exposition
from cdc.web.guard import OPEN_PATHS, Guard
from cdc.web.status import Status

log = structlog.get_logger()

# The exposition format's own name (Prometheus, "Text-based format").
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# A service that stands by on the same machine takes the address over after the other one has ended.
RETRY_S = 5.0

# Probers and pages come back within seconds; a client that is silent for longer does not keep its connection.
_IDLE_S = 30.0

# Far more than probers and pages need, far less than the files a process may have open: replication needs some.
CONNECTIONS = 64


class WebServer:
    """Listens while the `async with` lasts. Raises Invalid for an address that this machine does not have."""

    def __init__(
        self, settings: Settings, verdict: Callable[[], Health], status: Status, exposition: Exposition
    ) -> None:
        self._settings = settings.http
        self._verdict = verdict
        self._status = status
        self._exposition = exposition
        self._assets = Assets()
        self._guard = Guard(settings.http, open_paths=OPEN_PATHS | self._assets.paths)
        self._runner = web.AppRunner(
            self._application(), access_log=None, shutdown_timeout=1.0, keepalive_timeout=_IDLE_S
        )
        self._server: asyncio.Server | None = None
        self._waiting: asyncio.Task[None] | None = None

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._guard.check], client_max_size=1024)
        app.on_response_prepare.append(self._guard.dress)
        app.add_routes(
            [
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/status.json", self._status_json),
                *self._assets.routes(),
            ]
        )
        return app

    # the address --------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        try:
            listening = await self._listen()
        except OSError as error:
            await self._runner.cleanup()
            raise Invalid(
                f"cannot listen on http.listen {self._settings.listen}",
                detail=error.strerror or str(error),
                hint='listen = "127.0.0.1:9187"   # in section [http]: an address of this machine',
            ) from None
        if not listening:
            log.warning("http_address_in_use", listen=self._settings.listen, retry_s=RETRY_S)
            self._waiting = asyncio.create_task(self._keep_trying(), name="http")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.wait([self._waiting])
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()

    async def _listen(self) -> bool:
        """Begin to listen; False while another process listens there, perhaps the service that we stand by for."""
        host, _, port = self._settings.listen.rpartition(":")
        try:
            self._server = await asyncio.get_running_loop().create_server(self._welcome, host.strip("[]"), int(port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
        host, port = self._server.sockets[-1].getsockname()[:2]
        log.info("listening", address=f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        return True

    def _welcome(self) -> asyncio.Protocol:
        """Take a new connection. If there are too many, close the oldest: a client that asks and goes is served."""
        server = self._runner.server
        if server is None:
            raise RuntimeError("connected before the runner was set up")
        for oldest in server.connections[: 1 - CONNECTIONS]:
            oldest.force_close()
        return server()

    async def _keep_trying(self) -> None:
        listening = False
        while not listening:
            await asyncio.sleep(RETRY_S)
            try:
                listening = await self._listen()
            except OSError as error:  # the machine lost the address meanwhile, and may get it back
                log.info("http_address_away", listen=self._settings.listen, error=error.strerror)

    # the answers --------------------------------------------------------------------------------------------------

    async def _livez(self, request: web.Request) -> web.Response:
        verdict = self._verdict()
        return self._say(request, verdict.alive, "not alive", verdict.not_alive)

    async def _readyz(self, request: web.Request) -> web.Response:
        verdict = self._verdict()
        return self._say(request, verdict.ready, "not ready", verdict.reasons, verdict.warnings)

    def _say(
        self,
        request: web.Request,
        good: bool,
        otherwise: str,
        reasons: tuple[Finding, ...],
        warnings: tuple[Finding, ...] = (),
    ) -> web.Response:
        """Answer with a line for anyone. An asker who may know gets a line for each reason and warning, too."""
        lines = ["ok" if good else otherwise]
        if self._guard.may_know(request):
            lines += [str(reason) for reason in reasons]
            lines += [f"warning: {warning}" for warning in warnings]
        return web.Response(text="".join(f"{line}\n" for line in lines), status=200 if good else 503)

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._exposition.text(self._verdict()), headers={"Content-Type": _METRICS_TYPE})

    async def _status_json(self, _request: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(self._status.facts(self._verdict())), content_type="application/json")
