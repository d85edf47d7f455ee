"""Numbers as the page writes them, and its axes: the modules of the page, called in the browser."""

from typing import Any

import pytest
from playwright.sync_api import Page

from tests.browser.conftest import OpenPage
from tests.browser.scene import Scene

UNKNOWN = "\N{EN DASH}"
NOW = 1_700_000_000_000  # 2023-11-14 22:13:20 UTC


@pytest.fixture
def page(open_page: OpenPage, busy: Scene) -> Page:
    return open_page(busy.address).page


def call(page: Page, module: str, function: str, *arguments: object) -> Any:
    script = "async ([module, name, given]) => (await import(module))[name](...given)"
    return page.evaluate(script, [f"/page/{module}.js", function, list(arguments)])


@pytest.mark.parametrize(
    ("function", "arguments", "written"),
    [
        ("bytes", [0], "0 B"),
        ("bytes", [1023], "1023 B"),
        ("bytes", [1536], "1.5 kB"),
        ("bytes", [128 * 1024 * 1024], "128 MB"),
        ("bytes", [None], UNKNOWN),
        ("duration", [0], "0 s"),
        ("duration", [0.64], "0.6 s"),
        ("duration", [59.6], "1 min"),
        ("duration", [3725], "1 h 2 min"),
        ("duration", [400_000], "4 d 15 h"),
        ("duration", [1e12], "31688 y 32 d"),
        ("ms", [1.234], "1.2 ms"),
        ("ms", [2354], "2.35 s"),
        ("rate", [18.25], "18.3/s"),
        ("rate", [12_345], "12,345/s"),
        ("clock", [NOW], "22:13:20"),
        ("clock", [None], UNKNOWN),
        ("moment", ["2023-11-14T23:00:00.000Z", NOW], "23:00:00"),
        ("moment", ["2023-11-20T23:00:00.000Z", NOW], "2023-11-20 23:00"),
        ("moment", [None, NOW], UNKNOWN),
        ("ago", ["2023-11-14T22:12:20.000Z", NOW], "1 min ago"),
    ],
)
def test_numbers_are_written_as_people_read_them(page: Page, function: str, arguments: list[Any], written: str) -> None:
    assert call(page, "words", function, *arguments) == written


def test_axes_have_round_numbers(page: Page) -> None:
    assert call(page, "scale", "ticks", 47, 4) == [0, 20, 40, 60]
    assert call(page, "scale", "ticks", 1, 4) == [0, 0.5, 1]
    assert call(page, "scale", "ticks", 500 * 1024 * 1024, 4, 1024) == [n * 200 * 1024 * 1024 for n in range(4)]
    assert call(page, "scale", "decades", 1.6, 430) == [1, 10, 100, 1000]
    assert call(page, "scale", "decades", 2, 3) == [1, 10, 100]
    assert call(page, "scale", "timeTicks", 1010, 2810, 7) == [1200, 1500, 1800, 2100, 2400, 2700]


def test_a_line_is_broken_where_nothing_was_measured(page: Page) -> None:
    drawn = call(page, "scale", "path", [[0, 1], [1, 2], None, [3, 4], None])
    assert drawn == {"drawn": "M0 1L1 2M3 4", "lonely": [[3, 4]]}
