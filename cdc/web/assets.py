"""Serves the status page's files, which are read once at start. The page draws `/status.json` and holds no data itself.

There is no build step, no framework, and nothing from elsewhere: the browser runs the files in `page/` as they are.
Anyone may load them, because without the token the page shows only the form that asks for one.
"""

from importlib.resources import files

from aiohttp import web

_PAGE = "index.html"
_FOLDER = "/page/"
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


class Assets:
    """Serves every file of `cdc/web/page` under its address. The page itself is at `/`."""

    def __init__(self) -> None:
        found = sorted(entry.name for entry in (files("cdc.web") / "page").iterdir())
        self._answers = {_address(name): _answer(name) for name in found if name.rpartition(".")[2] in _TYPES}

    @property
    def paths(self) -> frozenset[str]:
        return frozenset(self._answers)

    def routes(self) -> list[web.RouteDef]:
        return [web.get(path, self._serve) for path in self._answers]

    async def _serve(self, request: web.Request) -> web.Response:
        content_type, body = self._answers[request.path]
        return web.Response(body=body, content_type=content_type, charset="utf-8")


def _address(name: str) -> str:
    return "/" if name == _PAGE else _FOLDER + name


def _answer(name: str) -> tuple[str, bytes]:
    return _TYPES[name.rpartition(".")[2]], (files("cdc.web") / "page" / name).read_bytes()
