"""The pages over HTTP: who sees what, whom the host lets in, and what the pages refuse."""

from typing import Any
from urllib.parse import urlencode

import httpx
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse

from session_lifecycle import SessionDatabase, Settings, Touch, Viewer
from session_lifecycle.web.dashboard import dashboard_app
from support.dashboard import CHANGES, LISTS, NOW, Browser, pages_of, record, session_page
from support.web import AGENT, B


async def test_a_page_shows_its_owner_what_it_hides_from_a_stranger(session_database: SessionDatabase) -> None:
    await record(session_database)
    async with Browser(session_database) as own, Browser(session_database, "stranger") as stranger:
        for page in (*LISTS, *pages_of("s")):
            assert "unseeable" in await own.page(page), page
            answer = await stranger.get(page)
            assert answer.status_code == (200 if page in LISTS else 404), page
            assert "unseeable" not in answer.text, page
            if page not in LISTS:
                missing = await own.get(page.replace("id=s", "id=t"))
                assert missing.status_code == 404
                assert answer.text.replace("id=s", "id=t") == missing.text


async def test_a_head_of_a_page_is_answered_as_its_get(session_database: SessionDatabase) -> None:
    app = dashboard_app(session_database, viewer=Viewer.auditor)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://host") as client:
        for page in LISTS:
            assert (await client.head(page)).status_code == 200, page
        assert (await client.head(session_page("missing"))).status_code == 404


async def test_the_page_of_a_run_is_its_owners_alone(session_database: SessionDatabase) -> None:
    await record(session_database)
    page = "/session/run?" + urlencode({"id": "s", "run": "unseeable-r", "start": NOW.isoformat()})
    async with Browser(session_database) as own, Browser(session_database, "stranger") as stranger:
        assert "unseeable" in await own.page(page)
        assert (await stranger.get(page)).status_code == 404
        assert (await own.get(page.replace("unseeable-r", "other"))).status_code == 404


async def test_a_page_asks_the_host_first(session_database: SessionDatabase) -> None:
    async with Browser(session_database, None, writable=True) as nobody:
        for page in (*LISTS, session_page("s"), "/session/run?id=s", "/sessions?order_by=colour"):
            answer = await nobody.get(page)
            assert (answer.status_code, "Who is asking?" in answer.text) == (401, True), page
        for page in (*CHANGES, "/preferences"):
            assert (await nobody.post(page, theme="dark")).status_code == 401
        assert (await nobody.get("/nowhere")).status_code == 404


async def test_a_host_can_send_the_browser_to_its_login(session_database: SessionDatabase) -> None:
    def to_login() -> Any:
        raise HTTPException(303, headers={"Location": "/login"})

    app = dashboard_app(session_database, viewer=to_login)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://host") as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.headers["location"], answer.text) == (303, "/login", "")


async def test_a_host_can_refuse_with_any_status(session_database: SessionDatabase) -> None:
    def refuse() -> Any:
        raise HTTPException(499)

    app = dashboard_app(session_database, viewer=refuse)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://host") as client:
        assert (await client.get("/")).status_code == 499


async def test_a_dependency_of_the_host_is_asked_in_the_host(session_database: SessionDatabase) -> None:
    class NotSignedInError(Exception):
        pass

    def by_state(request: Request, user: str | None = None) -> Viewer:
        if user is None:
            raise NotSignedInError
        users: dict[str, Viewer] = request.app.state.users
        return users[user]

    async def say(request: Request, _error: Exception) -> PlainTextResponse:
        return PlainTextResponse(f"said by {request.app.title}", 401)

    host = FastAPI(title="the host")
    host.state.users = {"b": Viewer(B)}
    host.add_exception_handler(NotSignedInError, say)
    host.mount("/pages", dashboard_app(session_database, viewer=by_state))
    await session_database.lifecycle.record([Touch(session_id="of-ben", user_id=B, at=NOW)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=host), base_url="http://host/pages") as client:
        nobody = await client.get("/sessions")
        ben = await client.get("/sessions", params={"user": "b"})
    assert (nobody.status_code, nobody.text) == (401, "said by the host")
    assert (ben.status_code, "of-ben" in ben.text) == (200, True)


WRONG = (
    ("/sessions?order_by=colour", "order_by"),
    ("/sessions?status=done", "status"),
    ("/sessions?limit=0", "limit"),
    ("/sessions?columns=colour", "columns.0"),
    ("/sessions?cursor=made-up", "cursor"),
    ("/sessions?tags=nothing", "tags"),
    ("/?range=90d", "range"),
    ("/?group_by=colour", "group_by"),
    *((f"/?group_by={dimension}", "group_by") for dimension in ("hour", "day", "week", "month", "session", "run")),
    ("/?since=2999-01-01T00:00Z", "until"),
    ("/?since=9999-12-31T23:59:59.999999Z", "until"),
    ("/?since=0001-01-01T00:00Z", "bucket"),
    ("/session?id=s&view=usage&cursor=%00", "cursor"),
    ("/?tz=Mars/Olympus", "tz"),
    ("/session?id=s&view=colours", "view"),
    ("/session", "id"),
    ("/session/run?id=s&run=r&start=never", "start"),
    ("/budgets?after=" + "x" * 201, "after"),
)


async def test_a_wrong_filter_is_refused_by_a_page_that_names_it(
    session_database: SessionDatabase, browser: Browser
) -> None:
    await record(session_database)
    for path, field in WRONG:
        answer = await browser.get(path)
        assert answer.status_code == 422, path
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert f"<code>{field}</code>" in answer.text, (path, answer.text)
        assert "Expected" in answer.text


async def test_the_first_and_the_last_moment_have_pages(session_database: SessionDatabase, browser: Browser) -> None:
    await record(session_database)
    assert "Window before" in await browser.page("/?since=2026-01-01T00:00Z")
    assert "Window before" not in await browser.page("/?since=0002-01-01T00:00Z&until=0004-01-01T00:00Z")
    last = await browser.get("/session/run?id=s&run=r&start=9999-12-31T23:59:59.999999Z")
    assert (last.status_code, "Nothing here" in last.text) == (404, True)


async def test_all_time_can_be_narrowed(session_database: SessionDatabase, browser: Browser) -> None:
    await record(session_database)
    assert "unseeable" in await browser.page("/?range=all&group_by=agent&model=unseeable")


async def test_a_field_that_nobody_filled_asks_for_nothing(session_database: SessionDatabase, browser: Browser) -> None:
    await record(session_database)
    assert "unseeable" in await browser.page("/sessions?search=&status=&min_cost_usd=&model=&tags=&range=&limit=50")


async def test_without_a_database_every_page_says_so() -> None:
    settings = Settings(retries=0, connect_timeout_seconds=1)
    url = "postgresql://nobody@127.0.0.1:1/none"
    async with SessionDatabase.connect(url, settings=settings) as db, Browser(db) as browser:
        for page in (*LISTS, *pages_of("s")):
            answer = await browser.get(page)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5"), page
            assert "The database does not answer" in answer.text
            assert "127.0.0.1" not in answer.text
            assert "Try again" in answer.text


async def test_a_broken_host_gets_a_page_without_a_trace(session_database: SessionDatabase) -> None:
    async def names(_user_ids: Any) -> Any:
        raise RuntimeError("secret of the host")

    await record(session_database)
    async with Browser(session_database, user_emails=names) as browser:
        answer = await browser.get("/live")
    assert (answer.status_code, "Something went wrong" in answer.text) == (500, True)
    assert "secret of the host" not in answer.text
    assert "Traceback" not in answer.text


async def test_what_an_agent_of_the_viewer_did_is_there(session_database: SessionDatabase, browser: Browser) -> None:
    await session_database.lifecycle.record([Touch(session_id="of-agent", user_id=AGENT, at=NOW)])
    await session_database.lifecycle.record([Touch(session_id="of-ben", user_id=B, at=NOW)])
    page = await browser.page("/sessions")
    assert ("of-agent" in page, "of-ben" in page) == (True, False)
