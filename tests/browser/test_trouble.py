"""What the page says when something is wrong, in a real browser before real services with real faults."""

import re
from collections.abc import Iterator

import psycopg
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage
from tests.browser.scene import Scene, scene
from tests.browser.watched import PATIENCE_MS
from tests.support.cdc_process import wait_until
from tests.support.http import ask

TOKEN = "canary-token-of-the-page-0123"


@pytest.fixture(scope="module")
def fragile() -> Iterator[Scene]:
    """A service with traffic, and servers that a test may break and must mend."""
    with scene() as made, made.writing():
        yield made


@pytest.fixture(scope="module")
def locked() -> Iterator[Scene]:
    with scene(token=TOKEN) as made:
        yield made


def test_the_bucket_away_is_not_ready_with_a_hint_and_mends_itself(open_page: OpenPage, fragile: Scene) -> None:
    page = open_page(fragile.address)
    page.expect_verdict("Ready")
    fragile.s3.fail(503, methods="PUT GET HEAD")
    page.expect_verdict("Not ready")
    page.expect_text("#reasons", "the oldest change that is not archived is")
    page.expect_text("#archive-state", "Behind")
    expect(page.page.locator(".box.bad")).to_contain_text("R2, S3")
    assert page.page.locator(".pipe.stopped").count() == 3
    page.expect_text("#events", "put_failed")
    page.page.get_by_role("button", name="Copy: cdc doctor").click()
    expect(page.page.get_by_role("button", name="Copy: cdc doctor")).to_have_text("Copied")
    assert page.page.evaluate("navigator.clipboard.readText()") == "cdc doctor"
    fragile.s3.heal()
    page.expect_verdict("Ready")
    expect(page.page.locator("#reasons")).to_be_hidden()
    assert page.complaints == []


def test_a_strangers_slot_is_marked_and_its_remedy_can_be_pasted(open_page: OpenPage, fragile: Scene) -> None:
    page = open_page(fragile.address)
    page.expect_verdict("Ready")
    with psycopg.connect(fragile.dsn, autocommit=True) as admin:
        admin.execute("SELECT pg_create_physical_replication_slot('left_behind', true)")
        row = page.page.get_by_role("row", name=re.compile("left_behind"))
        expect(row).to_contain_text("not ours", timeout=PATIENCE_MS)
        expect(row).to_contain_text("nobody drains it")
        page.expect_verdict("Ready, 1 warning")
        remedy = page.page.locator("#warnings code").text_content()
        assert remedy == "SELECT pg_drop_replication_slot('left_behind');"
        admin.execute(remedy.encode())
        expect(row).to_have_count(0, timeout=PATIENCE_MS)
        expect(page.page.locator("#warnings")).to_be_hidden(timeout=PATIENCE_MS)


def test_the_oldest_open_transaction_is_named_as_long_as_it_is_open(open_page: OpenPage, fragile: Scene) -> None:
    page = open_page(fragile.address)
    with psycopg.connect(fragile.dsn) as idle:
        idle.execute("CREATE TABLE never_committed ()")
        page.expect_text("#postgres", f"pid {idle.info.backend_pid}, idle in transaction")
        idle.rollback()
    page.wait_until(
        lambda: "idle in transaction" not in (page.page.locator("#postgres").text_content() or ""),
        "it is forgotten",
    )


def test_a_service_that_does_not_answer_is_said_to_be_gone_and_seen_again_when_it_is_back(
    open_page: OpenPage, fragile: Scene
) -> None:
    page = open_page(fragile.address)
    page.expect_verdict("Ready")
    fragile.service.kill()
    page.expect_verdict("No answer")
    page.expect_text("#verdict-phase", "Last seen")
    page.wait_until(
        lambda: re.search(r"Last seen [5-9]", page.page.locator("#verdict-phase").text_content() or "") is not None,
        "the seconds go on",
    )
    page.expect_text("#freshness", "next try in")
    assert page.page.title() == "NO ANSWER · waltier"
    before = len(page.requests)
    page.page.wait_for_timeout(6000)
    assert len(page.requests) - before <= 2, "asked less and less often"
    before = len(page.requests)
    page.page.get_by_role("button", name="Try now").click()
    assert len(page.requests) == before + 1
    fragile.service.start()
    wait_until(lambda: _answers(fragile), "it answers")
    page.page.evaluate("document.querySelector('#retry').click()")  # it may have seen it by itself already
    page.expect_verdict("Ready")
    expect(page.page.get_by_role("button", name="Try now")).to_be_hidden()


def _answers(made: Scene) -> bool:
    try:
        return ask(made.address, "/readyz").status == 200
    except OSError:
        return False


def test_without_the_token_there_is_a_form_and_nothing_else(open_page: OpenPage, locked: Scene) -> None:
    page = open_page(locked.address)
    field = page.page.get_by_label("Token")
    expect(field).to_be_focused()
    expect(page.page.locator("#board")).to_be_hidden()
    asked = len(page.requests)
    page.page.wait_for_timeout(3000)
    assert len(page.requests) == asked, "a page without a token asks once"
    assert page.faint_texts() == []
    assert page.nameless() == []
    for wrong in ("not the token at all", TOKEN + "x"):
        field.fill(wrong)
        page.page.keyboard.press("Enter")
        expect(page.page.get_by_role("alert")).to_have_text(re.compile("token", re.IGNORECASE))
        expect(field).to_have_value("")
    field.fill(TOKEN)
    page.page.keyboard.press("Enter")
    page.expect_verdict("Ready")
    assert [url for url in page.requests if TOKEN in url] == []


def test_the_token_lasts_as_long_as_the_tab_and_can_be_forgotten(open_page: OpenPage, locked: Scene) -> None:
    page = open_page(locked.address)
    page.page.get_by_label("Token").fill(TOKEN)
    page.page.keyboard.press("Enter")
    page.expect_verdict("Ready")
    page.page.reload()
    page.expect_verdict("Ready")
    assert page.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    page.page.get_by_role("button", name="Forget the token").click()
    expect(page.page.get_by_label("Token")).to_be_focused()
    expect(page.page.locator("#board")).to_be_hidden()
    another = open_page(locked.address)
    expect(another.page.get_by_label("Token")).to_be_visible()


def test_a_hostile_path_that_was_refused_is_text_among_the_events(open_page: OpenPage, locked: Scene) -> None:
    assert ask(locked.address, "/%3Cimg%20src=x%20onerror=alert(1)%3E").status == 401
    page = open_page(locked.address)
    page.page.get_by_label("Token").fill(TOKEN)
    page.page.keyboard.press("Enter")
    page.expect_text("#events", "http_denied")
    assert page.page.locator("#events img").count() == 0
    assert [complaint for complaint in page.complaints if "401" not in complaint] == []
