"""The addresses of the pages: where links lead, what an address keeps, and pages of lists."""

import re
from html import unescape
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx
import pytest
from fastapi import FastAPI

from session_lifecycle import SessionDatabase, Touch
from session_lifecycle.web.dashboard import dashboard_app
from support.dashboard import LISTS, NOW, ODD_ID, ROOT, VIEWS, Browser, Links, record
from support.lived_in import live_in, viewer_a
from support.usage import A


async def test_every_link_of_every_page_leads_to_a_page(session_database: SessionDatabase) -> None:
    await live_in(session_database, 8)
    await record(session_database, "odd", ODD_ID)
    async with Browser(session_database, writable=True) as browser:
        # One address of each shape is opened: each way to sort and filter 160 sessions would show nothing more.
        waiting, shapes = [f"{ROOT}/", f"{ROOT}/session?{urlencode({'id': ODD_ID})}"], dict[Any, str]()
        while waiting:
            link = waiting.pop().split("#")[0]
            given = dict(parse_qsl(urlsplit(link).query))
            shape = (urlsplit(link).path, frozenset(given), given.get("view"))
            if not link or shape in shapes:
                continue
            shapes[shape] = link
            answer = await browser.get(link)
            assert answer.status_code == 200, link
            if answer.headers["content-type"].startswith("text/html") and len(given) <= 3:
                waiting += Links.of(answer.text).links
    seen = set(shapes.values())
    reached = {urlsplit(link).path.removeprefix(ROOT) for link in seen}
    assert reached >= {*LISTS, "/session", "/session/run", "/static/dashboard.css", "/static/dashboard.js"}
    assert {dict(parse_qsl(urlsplit(link).query)).get("view") for link in seen} >= set(VIEWS)


async def test_an_id_of_any_text_has_a_page(session_database: SessionDatabase, browser: Browser) -> None:
    for session_id in (ODD_ID, "..", ".", "/", "stats", "ü  x", "%2F", "a" * 512):
        await session_database.lifecycle.record([Touch(session_id=session_id, user_id=A, at=NOW)])
    links = [link for link in Links.of(await browser.page("/sessions")).links if "/session?" in link]
    assert len(links) == 8
    for link in links:
        assert unescape(dict(parse_qsl(urlsplit(link).query))["id"])[:20] in unescape(await browser.page(link))


async def test_an_address_keeps_everything_that_a_page_shows(
    session_database: SessionDatabase, browser: Browser
) -> None:
    await live_in(session_database, 60)
    asked = {"status": "completed", "agent_name": "coder", "range": "all", "order_by": "cost_usd", "limit": "2",
             "tags": "customer:acme", "min_cost_usd": "0.0001", "tz": "Europe/Zurich"}  # fmt: skip
    asked_columns = [("columns", "agent"), ("columns", "cost")]
    page = await browser.page("/sessions?" + urlencode([*asked.items(), *asked_columns]))
    links = Links.of(page)
    assert {(name, value) for name, value in links.fields if value} >= {
        (name, value) for name, value in asked.items() if name not in {"status", "limit"}
    }
    assert 'value="completed" selected' in page
    kept = [*((name, value) for name, value in asked.items() if name != "order_by"), *asked_columns]
    sorted_by = [parse_qsl(urlsplit(link).query) for link in links.links if "order_by=" in link]
    turned = [one for one in sorted_by if ("descending", "false") in one]
    assert len(turned) == 1  # the column that the list is sorted by
    assert set(kept) | {("order_by", "cost_usd")} <= set(turned[0])
    [following] = [link for link in links.links if "cursor=" in link]
    assert set(parse_qsl(urlsplit(following).query)) >= {*asked.items(), *asked_columns}
    assert re.findall(r'<th scope="col"[^>]*aria-sort="(\w+)"', page) == ["descending"]
    # A filter is taken out by its own link, and nothing else with it.
    [without] = [one for one in links.links if "status=" not in one and "agent_name=coder" in one and "tags=" in one
                 and "range=all" in one and "limit=2" in one and "cursor" not in one and "order_by=cost_usd" in one
                 and "descending" not in one]  # fmt: skip
    assert set(parse_qsl(urlsplit(without).query)) == {*asked.items(), *asked_columns} - {("status", "completed")}


async def test_pages_of_a_list_have_every_session_once(session_database: SessionDatabase, browser: Browser) -> None:
    await live_in(session_database, 30)
    link, found = f"{ROOT}/sessions?limit=10&range=all", list[str]()
    while link:
        links = Links.of(await browser.page(link)).links
        found += [unescape(one) for one in links if "/session?" in one]
        link = next((one for one in links if "cursor=" in one and "order_by" not in one), "")
    assert len(found) == len(set(found)) == 37
    first = await browser.page("/sessions", limit=10)
    assert "First page" not in first
    assert "10 of" in first


async def test_pages_keep_their_place_behind_a_proxy(session_database: SessionDatabase) -> None:
    host = FastAPI()
    host.mount("/pages", dashboard_app(session_database, viewer=viewer_a, feed=object(), api_path="/api/v2"))
    transport = httpx.ASGITransport(app=host, root_path="/behind")
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        page = (await client.get("/behind/pages/live")).text
    assert 'data-events="/behind/api/v2/events"' in page
    links = Links.of(page).links
    assert all(link.startswith(("/behind/pages/", "#")) for link in links), links


@pytest.mark.parametrize("mount", ["/日本 x", "/{tenant}", "/a+b;c"])
async def test_pages_work_below_any_path(session_database: SessionDatabase, mount: str) -> None:
    host = FastAPI()
    host.mount(mount, dashboard_app(session_database, viewer=viewer_a, writable=True))
    root = mount.replace("{tenant}", "é ü")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=host), base_url="http://host") as client:
        page = await client.get(f"{root}/sessions")
        assert page.status_code == 200
        # A browser sends its cookies to the path that it asks for.
        sent = urlsplit(str(page.url)).path.removesuffix("/sessions").replace(";", "%3B")
        assert f"Path={sent};" in page.headers["set-cookie"]
        links = [one for one in Links.of(page.text).links if not one.startswith("#")]
        assert links
        for link in links:
            assert link.isascii()
            assert (await client.get(link)).status_code == 200, link
        changed = await client.post(f"{root}/preferences", data={"theme": "dark"})
        assert (await client.get(changed.headers["location"])).status_code == 200
