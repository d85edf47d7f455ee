"""A real browser (Debian's Chromium) before a real service on real servers. All of it is marked `wide`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browser.scene import Scene, scene
from tests.browser.watched import WatchedPage

CHROMIUM = "/usr/bin/chromium"
# Root has no sandbox in a container, and a test's browser calls nobody.
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)

OpenPage = Callable[..., WatchedPage]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.wide)


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[OpenPage]:
    """Opens a page in a context of its own, which ends with the test."""
    with ExitStack() as opened:

        def open_page(
            address: str, *, width: int = 1280, height: int = 900, scheme: Literal["light", "dark"] = "light"
        ) -> WatchedPage:
            context = chromium.new_context(
                viewport={"width": width, "height": height},
                color_scheme=scheme,
                permissions=["clipboard-read", "clipboard-write"],
            )
            opened.callback(context.close)
            return WatchedPage(context.new_page(), address)

        yield open_page


@pytest.fixture(scope="package")
def busy() -> Iterator[Scene]:
    """A service with traffic. Tests leave it as they found it."""
    with scene() as made, made.writing():
        yield made
