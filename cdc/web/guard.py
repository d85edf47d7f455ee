"""Guards the HTTP server: decides who may ask, and what a browser may do with the answer.

- **Token**: if one is configured, everything needs it, except the bare verdicts of /livez and /readyz, and the page,
  which shows nothing without it. It is compared in constant time. Each guess costs the guesser a connection, and the
  log tells of denials once a minute.
- **Host**: without a token the address is a loopback one. The only stranger who can reach it is a web page in a
  browser on this machine, whose name was pointed at 127.0.0.1 (DNS rebinding). Its requests carry that name, so only
  our own names are answered. With a token any name will do: the page does not have the token.
- **Headers**: nothing is cached, framed, sniffed or loaded from elsewhere.
"""

import hmac
import time
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from cdc.config import HttpSettings

log = structlog.get_logger()

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    # No text becomes markup, not even by mistake: browsers that know this rule refuse `innerHTML = "…"`.
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

# Verdicts without details, for probes that cannot carry a token.
OPEN_PATHS = frozenset({"/livez", "/readyz"})

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_DENIALS_LOGGED_S = 60.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Guard:
    """Lets requests in or refuses them, and puts the headers on every answer."""

    def __init__(self, settings: HttpSettings, open_paths: frozenset[str] = OPEN_PATHS) -> None:
        self._token = None if settings.token is None else settings.token.get_secret_value().encode()
        self._names = _LOCAL_NAMES | {settings.listen.rpartition(":")[0].lower()}
        self._listen = settings.listen
        self._open_paths = open_paths
        self._denied = 0
        self._logged_at = -_DENIALS_LOGGED_S

    def may_know(self, request: web.Request) -> bool:
        """True if the request carries the token, or if none is configured: then the asker may know details."""
        if self._token is None:
            return True
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        # Bytes that are not UTF-8 arrive as surrogates; they go back to what they were, and differ.
        matches = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token)
        return matches and scheme.lower() == "bearer"

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Hand the request on, or refuse it: with 421 for a foreign Host, with 401 without the token."""
        if self._token is None and not self._is_ours(request.headers.get("Host")):
            raise web.HTTPMisdirectedRequest(text=f"this is {self._listen}; ask for it by that name, or by localhost\n")
        if request.path in self._open_paths or self.may_know(request):
            return await handler(request)
        self._note_denial(request)
        raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"}, text="http.token is needed\n")

    async def dress(self, _request: web.Request, response: web.StreamResponse) -> None:
        """Set the headers of every answer, also of a refusal."""
        response.headers.update(HEADERS)
        response.headers["Server"] = "waltier"

    def _is_ours(self, host: str | None) -> bool:
        """True for our own names, and without a Host: HTTP/1.0 allows that, and no browser sends it."""
        if host is None:
            return True
        name, _, port = host.rpartition(":")
        return (name if name and port.isdecimal() else host).lower() in self._names

    def _note_denial(self, request: web.Request) -> None:
        self._denied += 1
        if time.monotonic() - self._logged_at < _DENIALS_LOGGED_S:
            return
        log.warning("http_denied", requests=self._denied, path=request.path[:80], peer=request.remote)
        self._denied, self._logged_at = 0, time.monotonic()
