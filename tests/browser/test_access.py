"""On a phone, in the dark, by keyboard, by ear: asked of the page as the browser has drawn it.

Each question is also asked of a page that was damaged on purpose, to show that it can be answered with no.
"""

import re
from itertools import pairwise
from typing import Literal

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage
from tests.browser.scene import Scene
from tests.browser.watched import WatchedPage

PHONE = {"width": 360, "height": 740}
NOTICE = {
    "subject": "slot",
    "message": "slot a_name_without_a_place_to_break_it_anywhere_0123456789_0123456789, not ours, is read by nobody",
    "hint": "SELECT pg_drop_replication_slot('a_name_without_a_place_to_break_it_anywhere');  (if nobody needs it)",
}


def opened(open_page: OpenPage, busy: Scene, **how: object) -> WatchedPage:
    page = open_page(busy.address, **how)
    page.wait_until_drawn()
    return page


def in_trouble(page: WatchedPage) -> None:
    """All states at once: reasons, warnings, each colour of notice and event."""
    status = page.page.evaluate("fetch('/status.json').then(answer => answer.json())")
    status |= {
        "ready": False,
        "reasons": [NOTICE | {"subject": "archive"}],
        "warnings": [NOTICE, NOTICE | {"hint": ""}],
    }
    status["cache"]["state"] = "warming"
    status["slots"].append(status["slots"][0] | {"slot": "x" * 63, "ours": False, "lost": True, "reader": None})
    for level in ("warning", "error"):
        status["events"].append({"timestamp": status["now"], "level": level, "event": "tried", "error": "y" * 90})
    page.answer_with(status)
    page.expect_verdict("Not ready, 2 warnings")


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_nothing_is_wider_than_the_window(open_page: OpenPage, busy: Scene, width: int) -> None:
    page = opened(open_page, busy, width=width)
    assert page.overhang_px() == 0
    in_trouble(page)
    page.page.get_by_role("button", name="Changes as a table").click()
    page.page.get_by_text("Positions as a table").click()
    assert page.overhang_px() == 0
    page.page.evaluate("document.querySelector('.pipeline').style.width = '2000px'")
    assert page.overhang_px() > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_every_text_and_shape_stands_out_from_its_ground(
    open_page: OpenPage, busy: Scene, scheme: Literal["light", "dark"], width: int
) -> None:
    page = opened(open_page, busy, width=width, scheme=scheme)
    assert page.texts_looked_at() > 100
    assert page.faint_texts() == []
    in_trouble(page)
    assert page.faint_texts() == []
    page.page.evaluate("document.documentElement.style.setProperty('--muted', '#888')")
    assert page.faint_texts() != []


def test_dark_is_dark_and_light_is_light(open_page: OpenPage, busy: Scene) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    assert opened(open_page, busy, scheme="dark").page.evaluate(ground) == "rgb(15, 19, 24)"
    assert opened(open_page, busy, scheme="light").page.evaluate(ground) == "rgb(244, 245, 247)"


def test_tab_leads_through_all_there_is_in_the_order_of_the_page(open_page: OpenPage, busy: Scene) -> None:
    page = opened(open_page, busy)
    in_trouble(page)
    stops = page.walk()
    names = [stop.name for stop in stops]
    expected = [
        *("To the verdict", "Copy: SELECT pg_drop", "Copy: SELECT pg_drop", "Positions as a table"),
        *("Changes as a table", "Changes:", "Commit to Redis as a table", "Commit to Redis:"),
        *("Commit to archive as a table", "Commit to archive:", "Retained WAL as a table", "Retained WAL:"),
        *("All", "Recent events", "/status.json", "/metrics", "/readyz"),
    ]
    assert len(names) == len(expected), names
    assert all(name.startswith(start) for name, start in zip(names, expected, strict=True)), names
    assert [stop.name for stop in stops if not stop.visible] == []
    page.page.evaluate("document.querySelector('a[href=\"/metrics\"]').style.outline = 'none'")
    assert [stop.name for stop in page.walk() if not stop.visible] == ["/metrics"]


def test_focus_and_open_tables_survive_the_next_answer(open_page: OpenPage, busy: Scene) -> None:
    page = opened(open_page, busy)
    in_trouble(page)
    page.page.locator("#reasons button").focus()
    page.page.wait_for_timeout(2500)
    assert page.page.evaluate("document.activeElement.closest('#reasons') !== null")


def test_everything_that_is_used_or_looked_at_has_a_name(open_page: OpenPage, busy: Scene) -> None:
    page = opened(open_page, busy)
    in_trouble(page)
    assert page.nameless() == []
    page.page.evaluate("document.querySelector('#pipeline svg').removeAttribute('aria-label')")
    page.page.evaluate(
        "document.querySelector('#retry').hidden = false, document.querySelector('#retry').textContent = ''"
    )
    assert sorted(page.nameless()) == ["button", "image"]


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_has_landmarks_headings_and_tables_that_remain_tables_on_a_phone(
    open_page: OpenPage, busy: Scene, width: int
) -> None:
    page = opened(open_page, busy, width=width).page
    for landmark in (page.get_by_role("banner"), page.get_by_role("main"), page.get_by_role("contentinfo")):
        expect(landmark).to_have_count(1)
    levels = page.locator("h1:visible, h2:visible, h3:visible").evaluate_all("all => all.map(one => +one.tagName[1])")
    assert levels[0] == 1
    assert all(deeper - level <= 1 for level, deeper in pairwise(levels)), levels
    slots = page.get_by_role("table", name="Every replication slot")
    expect(slots.get_by_role("columnheader", include_hidden=True)).to_have_count(6)
    expect(slots.get_by_role("rowheader").first).to_contain_text("cdc")


def test_only_a_change_of_the_verdict_is_said_aloud(open_page: OpenPage, busy: Scene) -> None:
    page = opened(open_page, busy)
    expect(page.page.locator("[aria-live]")).to_have_count(1)
    page.page.evaluate(
        "window.said = []; new MutationObserver(() => said.push(document.querySelector('[aria-live]').textContent))"
        ".observe(document.querySelector('[aria-live]'), {childList: true, characterData: true, subtree: true})"
    )
    in_trouble(page)
    page.page.wait_for_timeout(4500)
    said = page.page.evaluate("said")
    assert len(said) == 1
    assert said[0].startswith("Not ready. archive: slot a_name")


def test_nothing_moves_for_those_who_asked_for_that(open_page: OpenPage, busy: Scene) -> None:
    page = opened(open_page, busy)
    running = "document.getAnimations().filter(one => one.playState === 'running').length"
    expect(page.page.locator(".pipe.flowing").first).to_have_class(re.compile("flowing"))
    assert page.page.evaluate(running) > 0
    page.page.emulate_media(reduced_motion="reduce")
    assert page.page.evaluate(running) == 0
