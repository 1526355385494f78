"""The pages in Chromium: by mouse, by keyboard, without scripts, and looked at by axe. One browser, one server."""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, expect

from session_lifecycle import SessionDatabase, Touch
from session_lifecycle.testing import TemplateServer
from support.chromium import MISSING, chromium, chromium_path, served
from support.lived_in import SHOWN, live_in, lived_in_host
from support.usage import A
from support.web import D1

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(chromium_path() is None, reason=MISSING),
]

VIEWS = ("timeline", "transcript", "tools", "threads", "usage", "annotations")
PAGES = ["/", "/?range=7d&group_by=agent", "/sessions", "/sessions?search=nothing-at-all", "/live", "/budgets",
         *(f"/session?id={SHOWN}&view={view}" for view in VIEWS)]  # fmt: skip
PAYLOAD = "<script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"


class Site(NamedTuple):
    """The server and the browser of the module."""

    url: str
    browser: Browser
    db: SessionDatabase

    @asynccontextmanager
    async def page(self, **options: Any) -> AsyncGenerator[Page]:
        """A page in a profile of its own. What it complains of in the console fails the test."""
        context = await self.browser.new_context(**{"timezone_id": "UTC", "locale": "en-US", **options})
        context.set_default_timeout(20_000)
        page = await context.new_page()
        complaints: list[str] = []
        page.on("console", lambda said: complaints.append(said.text) if said.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        try:
            yield page
            assert complaints == []
        finally:
            await context.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(session_template_server: TemplateServer) -> AsyncIterator[Site]:
    name = "session_lifecycle_test_browser"
    await session_template_server.clone(name)
    try:
        async with SessionDatabase.connect(session_template_server.url_of(name)) as db:
            await live_in(db, 40)
            await db.lifecycle.record([Touch(session_id="odd", user_id=A, title=PAYLOAD, agent_name=PAYLOAD)])
            host, feed = lived_in_host(db)
            async with served(host) as url, chromium() as browser:
                yield Site(f"{url}/pages", browser, db)
            await feed.close()
    finally:
        await session_template_server.drop(name)


async def test_axe_finds_nothing_on_any_page_and_nothing_is_wider_than_the_window(site: Site) -> None:
    everything = {"resultTypes": ["violations"]}
    async with site.page() as page:
        for path in PAGES:
            await page.set_viewport_size({"width": 1280, "height": 800})
            await page.goto(site.url + path)
            # Only the colours differ between the schemes.
            for scheme, options in (("light", everything), ("dark", everything | {"runOnly": ["color-contrast"]})):
                await page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
                found = await Axe().run(page, options=options)
                assert found.violations_count == 0, (path, scheme, found.generate_report())
            await page.set_viewport_size({"width": 390, "height": 800})
            # Charts follow the window when they hear of it. One that stays wider ends this by its timeout.
            await page.wait_for_function("document.documentElement.scrollWidth <= 390")


async def test_sessions_are_filtered_sorted_and_paged_by_mouse(site: Site) -> None:
    async with site.page() as page:
        await page.goto(f"{site.url}/")
        await page.get_by_role("link", name="Sessions", exact=True).last.click()
        await page.get_by_label("Status").select_option("completed")
        await page.get_by_role("textbox", name="Agent").fill("coder")
        await page.get_by_text("More filters and columns").click()
        await page.get_by_role("checkbox", name="User").check()
        await page.get_by_role("button", name="Apply").click()
        await expect(page).to_have_url(re.compile("status=completed&agent_name=coder"))
        assert "model=" not in page.url  # fields that nobody filled are no part of the address
        assert set(await page.locator("tbody .chip").all_text_contents()) == {"Completed"}
        await page.get_by_role("link", name="Cost").click()
        await expect(page.get_by_role("columnheader", name="Cost")).to_have_attribute("aria-sort", "descending")
        await page.get_by_role("link", name="Cost").click()
        await expect(page.get_by_role("columnheader", name="Cost")).to_have_attribute("aria-sort", "ascending")
        await expect(page.get_by_role("columnheader", name="User")).to_be_visible()
        await page.get_by_role("link", name="status: completed").click()
        await expect(page).not_to_have_url(re.compile("status="))
        await page.goto(f"{site.url}/sessions?limit=25")
        row = page.locator("tbody th a").first
        first = str(await row.get_attribute("href"))
        await page.get_by_role("link", name="Next page").click()
        await expect(row).not_to_have_attribute("href", first)
        await page.get_by_role("link", name="First page").click()
        await expect(row).to_have_attribute("href", first)


async def test_a_session_is_found_and_read_by_keyboard(site: Site) -> None:
    async with site.page() as page:
        await page.goto(f"{site.url}/")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the page")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(re.compile("#page$"))
        await page.keyboard.press("/")
        await page.wait_for_url("**/sessions#search")
        await expect(page.get_by_role("searchbox")).to_be_focused()
        await page.keyboard.type("half-even/")  # the second slash is text
        await page.keyboard.press("Enter")
        await page.wait_for_url("**search=half-even%2F**")
        await expect(page.get_by_role("heading", name="No session matches")).to_be_visible()
        await page.keyboard.press("/")
        await page.keyboard.press("Control+A")
        await page.keyboard.type("half-even")
        await page.keyboard.press("Enter")
        await expect(page.locator("tbody tr")).to_have_count(1)
        await page.get_by_role("link", name="Errors").focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("columnheader", name="Errors")).to_have_attribute("aria-sort", "descending")
        await page.get_by_role("link", name="Mend the nightly build").focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Mend the nightly build")
        await page.get_by_role("link", name="Tool calls").focus()
        await page.keyboard.press("Enter")
        await page.locator(".step summary").first.focus()
        await page.keyboard.press("Enter")
        await expect(page.locator(".step").first.locator("pre").first).to_be_visible()


async def test_charts_are_drawn_and_say_what_is_under_the_mouse(site: Site) -> None:
    async with site.page() as page:
        await page.goto(f"{site.url}/?range=7d")
        await expect(page.locator(".chart canvas")).to_have_count(5)
        spend = page.locator(".chart").first
        await spend.locator(".u-over").hover()
        await expect(spend.locator(".plot-tip")).to_contain_text("This window: $")
        await spend.get_by_text("Show spend as a table").click()
        assert await spend.locator("tbody tr").count() in {7, 8}
        await page.get_by_role("button", name="Dark").click()
        await expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        await expect(page.locator(".chart canvas")).to_have_count(5)
        assert await page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 16, 20)"


async def test_times_are_in_the_zone_of_the_browser(site: Site) -> None:
    async with site.page(timezone_id="Asia/Tokyo", locale="de-DE") as page:
        await page.goto(f"{site.url}/sessions")
        await expect(page.locator("footer")).to_contain_text("Asia/Tokyo")
        assert "," in str(await page.locator("tbody td:last-child").first.text_content())
    async with site.page(timezone_id="Asia/Tokyo") as page:
        await page.goto(f"{site.url}/sessions?tz=UTC")
        await expect(page.locator("footer")).to_contain_text("UTC")


async def test_pages_work_without_scripts(site: Site) -> None:
    async with site.page(java_script_enabled=False) as page:
        for path in PAGES:
            answer = await page.goto(site.url + path)
            assert answer is not None
            assert answer.status == 200, path
        await page.goto(f"{site.url}/")
        assert not await page.locator(".plot").first.is_visible()
        await page.get_by_text("Show spend as a table").click()
        await expect(page.get_by_role("columnheader", name="This window")).to_be_visible()
        await page.goto(f"{site.url}/sessions")
        await page.get_by_label("Status").select_option("failed")
        await page.get_by_role("button", name="Apply").click()
        await expect(page).to_have_url(re.compile("status=failed"))
        assert set(await page.locator("tbody .chip").all_text_contents()) == {"Failed"}
        await page.get_by_role("button", name="Dark").click()
        await expect(page.locator("html")).to_have_attribute("data-theme", "dark")


async def test_text_of_a_session_runs_nothing(site: Site) -> None:
    async with site.page() as page:
        for path in ("/", "/?group_by=agent", "/sessions", "/live", "/session?id=odd"):
            await page.goto(site.url + path)
            assert await page.evaluate("window.broken") is None, path
        await expect(page.get_by_role("heading", level=1)).to_have_text(PAYLOAD)


async def test_a_session_is_ended_and_opened_again_by_mouse(site: Site) -> None:
    await site.db.lifecycle.record([Touch(session_id="to end", user_id=A)])
    async with site.page() as page:
        await page.goto(f"{site.url}/session?id=to+end")
        await page.get_by_text("End", exact=True).click()
        await page.get_by_label("It ended as").select_option("failed")
        await page.get_by_label("Why").fill("out of time")
        await page.get_by_role("button", name="End the session").click()
        await expect(page.get_by_role("status")).to_have_text("The session is ended.")
        await expect(page.locator(".hint")).to_contain_text("out of time")
        await page.get_by_role("button", name="Reopen").click()
        await expect(page.get_by_role("status")).to_have_text("The session runs again.")
    found = await site.db.lifecycle.get_session_row("to end", A)
    assert found is not None
    assert found.effective_status == "running"


async def test_a_session_written_meanwhile_is_there_without_a_reload(site: Site) -> None:
    async with site.page() as page:
        await page.goto(f"{site.url}/live")
        await expect(page.locator("[data-live]")).to_have_class("pulse on")
        await page.evaluate("window.isTheSamePage = true")
        title = f"Written at {datetime.now(UTC)}"
        await site.db.lifecycle.record(
            [Touch(session_id="meanwhile", user_id=A, title=title), Touch(session_id="x", user_id=A, dataset_id=D1)]
        )
        in_list = page.locator("[data-live-lists]").get_by_role("link", name=title)
        await expect(in_list).to_be_visible(timeout=2_000)
        await expect(page.locator("[data-live-tail]").get_by_role("link", name=title)).to_be_visible()
        await site.db.lifecycle.end_session("meanwhile", A, "completed")
        await expect(in_list).to_have_count(0)
        assert await page.evaluate("window.isTheSamePage") is True


async def test_without_a_stream_the_live_page_loads_its_lists_again(site: Site) -> None:
    async with site.page() as page:
        await page.clock.install()
        await page.goto(f"{site.url}/live")
        await site.db.lifecycle.record([Touch(session_id="polled", user_id=A, title="Polled")])
        await page.clock.fast_forward(11_000)
        await expect(page.locator("[data-live-lists]").get_by_role("link", name="Polled")).to_be_visible()
