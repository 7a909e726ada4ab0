"""The dashboard at /dashboard: a real browser, the real server and model, one small load for all tests."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from poise.operator_token import find_token
from tests.e2e.page_support import PageWatch, chromium, wait_until
from tests.e2e.server import PoiseServer, run_poise

pytestmark = pytest.mark.slow

expect.set_options(timeout=60_000)

Visit = Callable[..., Page]
CHARTS = 13


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser, poise_server: PoiseServer) -> Iterator[Visit]:
    """Opens the dashboard. At the end no page may have reported anything: no policy violation, no failed request."""
    opened: list[tuple[Page, PageWatch]] = []

    def open_page(
        *, before: Callable[[Page], None] = lambda _: None, allowed: str = "", as_operator: bool = True, **options: Any
    ) -> Page:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        page = context.new_page()
        watch = PageWatch(page, poise_server.url)
        if allowed:
            watch.allow(allowed)
        opened.append((page, watch))
        before(page)
        page.goto(address() if as_operator else f"{poise_server.url}/dashboard")
        return page

    def address() -> str:
        """As `poise dashboard` prints it."""
        shown = run_poise("dashboard", "--url", poise_server.url)
        assert shown.returncode == 0, shown.stderr
        return shown.stdout.strip()

    yield open_page
    for page, watch in opened:
        page.context.close()
        watch.check()


def post(server: PoiseServer, path: str, body: Any) -> Any:
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    return urllib.request.urlopen(request, timeout=60)


@pytest.fixture
def request_id(poise_server: PoiseServer) -> Iterator[str]:
    """A request that has begun and goes on by itself until somebody ends it."""
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": "Tell me a long story."}],
        "stream": True,
        "background": True,
        "ignore_eos": True,
        "max_tokens": 2000,
    }
    with post(poise_server, "/v1/chat/completions", body) as stream:
        wanted = stream.headers["X-Poise-Response-Id"]
        while b'"content"' not in stream.readline():
            pass
    yield wanted
    with post(poise_server, f"/v1/requests/{wanted}/cancel", {}):
        pass
    poise_server.eventually(poise_server.nothing_runs, "nothing runs any more")


def row_of(page: Page, request_id: str) -> Any:
    return page.locator(f'#rows tr[data-id="{request_id}"]')


def drawn(page: Page, chart: str) -> str | None:
    return page.locator(f'[data-chart="{chart}"]').get_attribute("data-drawn")


def test_charts_move_while_something_runs(visit: Visit, request_id: str) -> None:
    """Each has a name for those who do not see it and a table that says the same; figures and slots are there too."""
    page = visit(color_scheme="light")
    expect(page.locator("#health-text")).to_contain_text("Ready")
    expect(page.locator("#charts figure")).to_have_count(CHARTS)
    expect(page.locator('[data-chart="tokens"] .main-svg').first).to_be_attached()
    before = drawn(page, "tokens")
    wait_until(lambda: drawn(page, "tokens") != before, page, "the next sample is drawn")
    lines = page.locator('[data-chart="tokens"] .scatterlayer path.js-line')
    expect(lines).to_have_count(2)
    # Styled by dashboard.css, not by a style element, which the policy forbids.
    position = "node => getComputedStyle(node).position"
    assert page.locator('[data-chart="tokens"] .main-svg').first.evaluate(position) == "absolute"
    table = page.locator("figure", has=page.locator('[data-chart="tokens"]')).get_by_role("table", include_hidden=True)
    page.locator("figure", has=page.locator('[data-chart="tokens"]')).get_by_text("As a table").click()
    expect(table.get_by_role("row")).to_have_count(3)
    assert (page.locator('[data-chart="tokens"]').get_attribute("aria-label") or "").startswith("Tokens, in tokens/s. Now:")
    expect(page.locator(".slot[data-state=interactive]")).to_have_count(1)
    expect(page.locator("#facts")).to_contain_text("Limited by")
    expect(page.get_by_role("article", name="Interactive")).to_contain_text("Between tokens, p99")


def test_charts_that_are_not_on_the_screen_cost_nothing(visit: Visit) -> None:
    """They are drawn when somebody scrolls to them; and nothing is asked while the page is hidden."""
    page = visit(before=lambda page: page.clock.install(), viewport={"width": 800, "height": 600})
    assert drawn(page, "fairness") is None
    page.locator('[data-chart="fairness"]').scroll_into_view_if_needed()
    wait_until(lambda: drawn(page, "fairness") is not None, page, "a chart that came into view is drawn")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    wait_until(lambda: any("since=" in url and not url.endswith("since=0") for url in asked), page, "it asks for what is new")
    page.evaluate(
        "Object.defineProperty(document, 'hidden', { value: true }); document.dispatchEvent(new Event('visibilitychange'))"
    )
    page.wait_for_load_state("networkidle")
    asked.clear()
    page.clock.run_for(60_000)
    assert asked == []


def test_a_request_is_looked_at_and_acted_on_by_keyboard(visit: Visit, request_id: str, poise_server: PoiseServer) -> None:
    """Its row is reached and opened with keys, its timeline is drawn, and each button does what it says."""
    page = visit()
    row = row_of(page, request_id)
    expect(row).to_contain_text("running")
    page.locator("#rows").evaluate("node => node.closest('.table-scroll').focus()")
    page.keyboard.press("Tab")
    expect(row.locator("button")).to_be_focused()
    page.keyboard.press("Enter")
    view = page.locator("#view")
    expect(view).to_be_visible()
    expect(view).to_be_focused()
    expect(view.locator(".lane .span[data-state=decode]")).to_have_count(1)
    assert "answer" in (view.locator(".lane").get_attribute("aria-label") or "")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Close")).to_be_focused()
    for name, told, state in (
        ("Pause", "Paused.", "paused"),
        ("Resume", "It goes on.", "running"),
        ("Downgrade", "It goes on as background work.", "background"),
    ):
        button = page.get_by_role("button", name=name, exact=True)
        button.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#view-told")).to_have_text(told)
        expect(row).to_contain_text(state)
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.locator("#view-told")).to_contain_text("Cancelled.")
    expect(row).to_contain_text("ended: cancelled")
    expect(page.locator("#view-actions")).to_be_hidden()
    assert poise_server.get(f"/admin/requests/{request_id}")[1]["outcome"] == "cancelled"
    view.get_by_text("All moments").click()
    expect(page.locator("#moments")).to_contain_text("downgrade")
    page.keyboard.press("Escape")
    expect(view).to_be_hidden()
    expect(row.locator("button")).to_be_focused()


def test_what_cannot_be_done_is_said_in_place(visit: Visit, request_id: str) -> None:
    """In the server's own words, beside the buttons."""
    page = visit(allowed="status of 409")
    row_of(page, request_id).click()
    page.get_by_role("button", name="Resume", exact=True).click()
    expect(page.locator("#view-told")).to_contain_text("it is not paused")


def test_a_narrow_dark_screen_needs_no_sideways_scrolling(visit: Visit, request_id: str) -> None:
    """Tables scroll by themselves; the page does not. Charts follow the scheme, also when it changes."""
    page = visit(viewport={"width": 360, "height": 740}, reduced_motion="reduce", color_scheme="dark")
    page.locator('[data-chart="ttft"]').scroll_into_view_if_needed()
    expect(page.locator('[data-chart="ttft"] .main-svg').first).to_be_attached()
    point = page.locator('[data-chart="ttft"] .legendpoints path').first
    light, dark = "rgb(34, 105, 95)", "rgb(131, 204, 188)"
    expect(point).to_have_css("fill", dark)
    page.emulate_media(color_scheme="light")
    expect(point).to_have_css("fill", light)
    row_of(page, request_id).click()
    expect(page.locator("#view")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_the_code_in_the_address_opens_the_page_once(visit: Visit) -> None:
    """It is gone from the address; what it was given for is in this tab only, and outlives a reload."""
    page = visit(allowed="status of 401")
    expect(page.locator("#requests-body")).to_be_visible()
    assert page.evaluate("location.hash") == ""
    assert page.evaluate("Object.keys(localStorage).length + document.cookie.length") == 0
    page.reload()
    expect(page.locator("#requests-body")).to_be_visible()
    page.get_by_role("button", name="Forget the admin key").click()
    expect(page.get_by_label("Admin key")).to_be_visible()
    page.goto(page.url + "#code=used-or-invented")
    page.reload()
    expect(page.get_by_label("Admin key")).to_be_visible()
    assert page.evaluate("location.hash") == ""


def test_a_wanted_admin_key_is_asked_for_and_kept_for_the_tab_only(visit: Visit, poise_server: PoiseServer) -> None:
    """The figures are there without it; requests are not."""
    key = find_token(poise_server.url)
    page = visit(as_operator=False, allowed="status of 401")
    expect(page.get_by_label("Admin key")).to_be_visible()
    expect(page.get_by_role("code")).to_have_text("poise dashboard")
    expect(page.locator("#requests-body")).to_be_hidden()
    expect(page.locator("#cards")).to_contain_text("First token")
    for given in ("wrong", key):
        page.get_by_label("Admin key").fill(given)
        page.keyboard.press("Enter")
        if given == "wrong":
            expect(page.locator("#requests-problem")).to_have_text("This is not an admin key of the server.")
    expect(page.locator("#requests-body")).to_be_visible()
    assert key not in page.evaluate("JSON.stringify(localStorage) + document.cookie + document.body.innerHTML")
    page.reload()
    expect(page.locator("#requests-body")).to_be_visible()
    page.get_by_role("button", name="Forget the admin key").click()
    expect(page.get_by_label("Admin key")).to_be_visible()


def test_without_plotly_the_page_says_so_and_shows_tables(visit: Visit) -> None:
    """One line with the command, and every chart as its table."""
    page = visit(
        before=lambda page: page.route("**/page/plotly.min.js", lambda route: route.fulfill(status=404)), allowed="plotly.min.js"
    )
    expect(page.locator("#charts-problem")).to_contain_text("pip install plotly")
    expect(page.locator("figure table").first).to_be_visible()
    expect(page.locator("figure table").first.get_by_role("row")).to_have_count(3)
