"""A page whose console, errors and requests are written down, and what is asked of every page.

The questions are asked of the page as it is drawn, not of its sources: computed colours, the accessibility tree of the
browser, the width that it really takes.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import ConsoleMessage, Page, Request, Route, expect

PATIENCE_MS = 20_000

# Every text that is drawn, and every state's shape, with its colour and what lies under it: [text, ratio, needed].
_CONTRASTS = """() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ratio = (a, b) => {
    const [x, y] = [luminance(a), luminance(b)].sort((m, n) => n - m);
    return (x + 0.05) / (y + 0.05);
  };
  const opaque = (color) => { const c = channels(color); return c.length < 4 || c[3] > 0.99 ? c : null; };
  const ground = (element) => {
    if (element.ownerSVGElement) {
      const box = element.closest(".box")?.querySelector("rect");
      if (box && box !== element) return opaque(getComputedStyle(box).fill);
      return ground(element.ownerSVGElement);
    }
    for (let node = element; node; node = node.parentElement) {
      const color = opaque(getComputedStyle(node).backgroundColor);
      if (color) return color;
    }
    return [255, 255, 255];
  };
  const seen = (element) => {
    const box = element.getBoundingClientRect();
    return box.width > 1 && box.height > 1 && !element.closest(".unseen");
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.textContent.trim() || !seen(element) || element.closest("script, style, noscript")) continue;
    const style = getComputedStyle(element);
    const ink = channels(element.ownerSVGElement ? style.fill : style.color);
    found.push([node.textContent.trim(), ratio(ink, ground(element)), 4.5]);
  }
  for (const icon of document.querySelectorAll("svg.icon")) {
    const ink = channels(getComputedStyle(icon).color);
    if (seen(icon)) found.push([`shape ${icon.getAttribute("class")}`, ratio(ink, ground(icon)), 3]);
  }
  return found;
}"""

_INTERACTIVE = frozenset({"button", "link", "textbox", "radio", "slider", "checkbox", "combobox", "DisclosureTriangle"})
_NAMED = _INTERACTIVE | {"region", "image", "table"}


@dataclass(frozen=True, slots=True)
class Stop:
    """Where Tab leads: what it is called, and whether one can see that it is there."""

    name: str
    visible: bool


class WatchedPage:
    """Opened at the service's address."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._note_console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        page.on("request", self._note_request)
        page.goto(address)

    def _note_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _note_request(self, request: Request) -> None:
        self.requests.append(request.url)

    # waiting

    def expect_text(self, selector: str, text: str) -> None:
        expect(self.page.locator(selector)).to_contain_text(text, timeout=PATIENCE_MS)

    def expect_verdict(self, text: str) -> None:
        self.expect_text("#verdict-word", text)

    def wait_until_drawn(self) -> None:
        """An answer is there, with the slots and some history."""
        expect(self.page.locator("#slots tbody tr").first).to_be_visible(timeout=PATIENCE_MS)
        drawn = self.page.locator(".chart path.line-0").first
        expect(drawn).to_have_attribute("d", re.compile("^M.*L"), timeout=PATIENCE_MS)

    def wait_until(self, true: Callable[[], bool], what: str) -> None:
        """Poll, and let the browser's events in meanwhile."""
        for _ in range(PATIENCE_MS // 200):
            if true():
                return
            self.page.wait_for_timeout(200)
        pytest.fail(f"still not: {what}")

    # what is asked of every page

    def foreign_requests(self) -> list[str]:
        return [url for url in self.requests if not url.startswith(self.address + "/")]

    def faint_texts(self) -> list[str]:
        """Texts with less contrast than 4.5 : 1 (WCAG 1.4.3), shapes with less than 3 : 1 (1.4.11)."""
        found: list[tuple[str, float, float]] = self.page.evaluate(_CONTRASTS)
        return [f"{text}: {ratio:.2f}" for text, ratio, needed in found if ratio < needed]

    def texts_looked_at(self) -> int:
        return len(self.page.evaluate(_CONTRASTS))

    def overhang_px(self) -> int:
        """How much wider than the window the page is."""
        width = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return int(width)

    def nameless(self) -> list[str]:
        """What a screen reader would have no name for, by the browser's own accessibility tree."""
        session = self.page.context.new_cdp_session(self.page)
        nodes: list[dict[str, Any]] = session.send("Accessibility.getFullAXTree")["nodes"]
        session.detach()
        return [
            role
            for node in nodes
            if not node["ignored"] and (role := node["role"]["value"]) in _NAMED
            if not node.get("name", {}).get("value", "").strip()
        ]

    def walk(self, most: int = 60) -> list[Stop]:
        """Press Tab from the top until it leaves the page or comes round."""
        self.page.evaluate("document.activeElement?.blur(), scrollTo(0, 0)")
        stops: list[Stop] = []
        for _ in range(most):
            self.page.keyboard.press("Tab")
            name, visible = self.page.evaluate(_FOCUSED)
            if not name or (stops and name == stops[0].name):
                return stops
            stops.append(Stop(name, visible))
        return stops

    def answer_with(self, status: dict[str, Any]) -> None:
        """From now on this is what /status.json says."""

        def fulfil(route: Route) -> None:
            route.fulfill(json=status)

        self.page.route("**/status.json", fulfil)


_FOCUSED = """() => {
  const focused = document.activeElement;
  if (!focused || focused === document.body) return ["", false];
  const shown = focused.type === "radio" ? focused.nextElementSibling : focused;
  const box = shown.getBoundingClientRect();
  const { outlineStyle, outlineWidth } = getComputedStyle(shown);
  const outlined = outlineStyle !== "none" && parseFloat(outlineWidth) >= 2;
  const labelled = document.getElementById(focused.getAttribute("aria-labelledby"));
  const name = focused.getAttribute("aria-label") || labelled?.textContent || focused.labels?.[0]?.textContent
    || focused.textContent;
  return [name.trim(), outlined && box.bottom > 0 && box.top < innerHeight && box.width > 0];
}"""
