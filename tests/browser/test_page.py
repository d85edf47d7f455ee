"""What the page shows of a service that works, in a real browser."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.scene import Scene
from tests.browser.watched import WatchedPage
from tests.support.cdc_process import parse_lsn
from tests.support.http import ask

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>'\"&amp;"


@pytest.fixture
def page(open_page: OpenPage, busy: Scene) -> WatchedPage:
    opened = open_page(busy.address)
    opened.wait_until_drawn()
    return opened


def position(page: Page, name: str) -> int:
    row = page.locator(
        "#positions tbody tr", has=page.get_by_role("rowheader", name=name, exact=True, include_hidden=True)
    )
    return parse_lsn(row.locator("td").first.text_content() or "0/0")


def test_it_loads_without_a_complaint_and_asks_nobody_else(page: WatchedPage) -> None:
    page.expect_verdict("Ready")
    page.page.wait_for_timeout(2500)
    assert page.complaints == []
    assert page.foreign_requests() == []
    assert sum(url.endswith("/status.json") for url in page.requests) >= 2


def test_the_positions_move_under_traffic(page: WatchedPage) -> None:
    names = ["Postgres has written", "Received", "Archived", "Acknowledged", "In Redis"]
    before = {name: position(page.page, name) for name in names}
    assert all(before.values())
    page.wait_until(
        lambda: all(position(page.page, name) > before[name] for name in names),
        "every position moved",
    )
    assert page.page.locator(".pipe.flowing").count() == 8
    expect(page.page.locator("#pipeline svg[role=img]")).to_have_accessible_name(re.compile(r"Received up to \w+/\w+"))


def test_a_chart_is_read_with_the_keyboard_and_as_a_table(page: WatchedPage) -> None:
    chart = page.page.get_by_role("slider", name=re.compile("^Commit to Redis"))
    chart.focus()
    page.page.keyboard.press("Home")
    expect(chart).to_have_attribute("aria-valuetext", re.compile(r"^\d\d:\d\d:\d\d, p50 .*, p99 "))
    expect(page.page.locator("figure .tip:visible")).to_contain_text("p99")
    page.page.keyboard.press("Escape")
    expect(page.page.locator("figure .tip:visible")).to_have_count(0)
    toggle = page.page.get_by_role("button", name="Commit to Redis as a table")
    toggle.click()
    expect(toggle).to_have_attribute("aria-expanded", "true")
    table = page.page.get_by_role("region", name="Commit to Redis, table")
    expect(table.locator("th[scope=col]")).to_have_text(["Time", "p50", "p99"])
    expect(table.locator("tbody tr").first).to_contain_text("ms")


def test_the_charts_show_their_units_and_the_limit(page: WatchedPage) -> None:
    retained = page.page.locator("figure", has=page.page.get_by_role("heading", name="Retained WAL"))
    expect(retained.locator(".note")).to_contain_text("Limit 128 MB")
    changes = page.page.locator("figure", has=page.page.get_by_role("heading", name="Changes"))
    assert all(text.endswith("/s") for text in changes.locator("text[text-anchor=end]").all_text_contents())


def test_a_forecast_is_drawn_to_the_limit_and_says_its_reason(page: WatchedPage) -> None:
    status = page.page.evaluate("fetch('/status.json').then(answer => answer.json())")
    (ours,) = [slot for slot in status["slots"] if slot["ours"]]
    reason = "open transaction of pid 4711 since 02:14 UTC pins 63 MB"
    ours["forecast"] |= {"seconds": 90.0, "rate_bytes_per_s": 700_000, "reason": reason}
    status["history"]["retained_bytes"][-1] = 64 * 1024 * 1024
    page.answer_with(status)
    retained = page.page.locator("figure", has=page.page.get_by_role("heading", name="Retained WAL"))
    expect(retained.locator(".note")).to_contain_text("limit reached in 1 min 30 s")
    expect(retained.locator(".note")).to_contain_text(reason)
    for drawn in ("line.limit", "line.forecast", "path.reached"):
        expect(retained.locator(drawn)).to_have_count(1)
    rises = retained.locator("line.forecast").evaluate("one => one.y1.baseVal.value - one.y2.baseVal.value")
    assert rises > 20


def test_events_are_newest_first_and_filtered_by_level(page: WatchedPage) -> None:
    times = page.page.locator("#events time").evaluate_all("nodes => nodes.map(node => node.getAttribute('datetime'))")
    assert len(times) > 3
    assert times == sorted(times, reverse=True)
    page.page.get_by_label("Errors").check()
    expect(page.page.locator("#events-none")).to_be_visible()
    page.page.get_by_label("All").check()
    expect(page.page.locator("#events")).to_contain_text("streaming")


def test_a_hidden_tab_asks_nothing_and_goes_on_when_it_is_seen(page: WatchedPage) -> None:
    hide = "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
    hide += " document.dispatchEvent(new Event('visibilitychange')); }"
    page.page.evaluate(hide, True)
    page.page.wait_for_timeout(500)  # what was asked is answered
    before = len(page.requests)
    page.page.wait_for_timeout(4500)
    assert len(page.requests) == before
    page.page.evaluate(hide, False)
    page.wait_until(lambda: len(page.requests) > before, "asked again")


# hostile data ---------------------------------------------------------------------------------------------------------


def poisoned(value: Any) -> Any:
    """The same, with markup in every text that is no time and no name of a state."""
    if isinstance(value, dict):
        return {name: poisoned(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [poisoned(inner) for inner in value]
    return HOSTILE if isinstance(value, str) and not re.match(r"\d{4}-\d\d-\d\dT", value) else value


def test_markup_in_any_field_stays_text(open_page: OpenPage, busy: Scene) -> None:
    status = poisoned(json.loads(ask(busy.address, "/status.json").body))
    notice = {"subject": HOSTILE, "message": HOSTILE, "hint": HOSTILE}
    status |= {"reasons": [notice], "warnings": [notice], "mishap": notice | {"kind": "x", "at": status["now"]}}
    status["events"].append({"timestamp": status["now"], "level": HOSTILE, "event": HOSTILE, HOSTILE: f"a\n{HOSTILE}"})
    page = open_page("about:blank")
    page.address = busy.address
    page.answer_with(status)
    page.page.goto(busy.address)
    page.wait_until_drawn()
    for place in ("#reasons", "#warnings", "#slots", "#archive", "#postgres", "#events", "#source"):
        page.expect_text(place, HOSTILE)
    assert page.page.locator("img, script:not([src])").count() == 0
    assert page.complaints == []
    assert page.foreign_requests() == []


def test_the_browser_refuses_markup_from_text_whatever_the_page_does(page: WatchedPage) -> None:
    refused = page.page.evaluate(
        "() => { try { document.body.innerHTML = 'x'; return ''; } catch (e) { return e.name; } }"
    )
    assert refused == "TypeError"
    blocked = page.page.evaluate(
        "() => new Promise(done => { addEventListener('securitypolicyviolation', e => done(e.violatedDirective));"
        " const s = document.createElement('style'); s.textContent = 'p {color: red}'; document.head.append(s); })"
    )
    assert blocked == "style-src-elem"


# the picture of the README --------------------------------------------------------------------------------------------


def test_a_screenshot_for_the_readme_is_small(page: WatchedPage, tmp_path: Path) -> None:
    """From the top to the slots. Written to $CDC_SCREENSHOT if that is set."""
    target = Path(os.environ.get("CDC_SCREENSHOT", tmp_path / "dashboard.png"))
    target.write_bytes(picture(page.page))
    assert 20_000 < target.stat().st_size < 300_000


def picture(page: Page) -> bytes:
    end = page.locator("section", has=page.locator("#slots")).evaluate(
        "one => one.getBoundingClientRect().bottom + scrollY"
    )
    return page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": 1280, "height": end + 16})
