"""The forms of the pages: who may change what, and forms of other sites."""

from html import unescape
from typing import Any
from urllib.parse import urlencode

import httpx

from session_lifecycle import SessionDatabase, Touch
from session_lifecycle.web.dashboard import dashboard_app
from support.dashboard import CHANGES, NOW, Browser, record, session_page
from support.usage import A
from support.web import D1, viewer


def change(path: str, session_id: str = "s") -> str:
    return f"{path}?{urlencode({'id': session_id, 'owner': str(A)})}"


async def state(db: SessionDatabase) -> Any:
    found = await db.lifecycle.get_session_row("s", A)
    return found, await db.lifecycle.list_annotations("s", A)


async def test_pages_without_permission_to_write_have_no_forms(session_database: SessionDatabase) -> None:
    await record(session_database)
    async with Browser(session_database) as browser:
        page = await browser.page(session_page("s"))
        assert "/session/end" not in page
        for path in CHANGES:
            assert (await browser.post(change(path))).status_code in {404, 405}
    async with Browser(session_database, "b", writable=True) as shared:
        page = await shared.page(session_page("s"))
        assert "/session/end" not in page


async def test_a_form_changes_a_session_of_its_owner(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record([Touch(session_id="s", user_id=A, at=NOW, tags={"old": "tag"})])
    async with Browser(session_database, writable=True) as browser:
        assert "/session/reopen" not in await browser.page(session_page("s"))
        for path, fields in CHANGES.items():
            page = await browser.page(session_page("s"))
            assert page.count(f'value="{browser.token}"') == 3
            assert unescape(page).count(path) == 1
            answer = await browser.post(change(path), fields, token=browser.token)
            assert answer.status_code == 303, answer.text
            assert 'class="done"' in await browser.page(answer.headers["location"])
            row, _ = await state(session_database)
            if path == "/session/end":
                assert (row.record.status, row.record.end_reason) == ("failed", "enough")
        row, [one] = await state(session_database)
    assert row.record.status == "running"
    assert (one.name, one.score, one.label, one.annotator, one.comment) == ("quality", 0.5, "good", "ann", "yes")
    assert (row.record.title, row.record.tags) == ("Other", {"customer": "acme", "branch": "main"})


FORGED: tuple[tuple[dict[str, str], str], ...] = (
    ({"Origin": "http://host"}, "wrong"),
    ({"Origin": "http://host"}, ""),
    ({"Origin": "http://evil.example"}, "right"),
    ({"Origin": "null"}, "right"),
    ({}, "right"),
    ({"Origin": "http://host", "Sec-Fetch-Site": "cross-site"}, "right"),
    ({"Origin": "http://host", "Sec-Fetch-Site": "same-site"}, "right"),
    ({"Sec-Fetch-Site": "none"}, "right"),
)


async def test_a_form_of_another_site_changes_nothing(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record([Touch(session_id="s", user_id=A, at=NOW)])
    before = await state(session_database)
    async with Browser(session_database, writable=True) as browser:
        await browser.page(session_page("s"))
        for path, fields in CHANGES.items():
            for headers, token in FORGED:
                given = browser.token if token == "right" else token
                answer = await browser.post(change(path), fields, headers=headers, token=given)
                assert answer.status_code == 403, (path, headers)
                assert "not from a page that this browser has open" in unescape(answer.text)
    assert await state(session_database) == before


async def test_a_form_without_a_cookie_changes_nothing(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record([Touch(session_id="s", user_id=A, at=NOW)])
    async with Browser(session_database, writable=True) as browser:
        for path, fields in CHANGES.items():
            assert (await browser.post(change(path), fields, token="")).status_code == 403


async def test_whoever_only_reads_a_session_may_not_change_it(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record([Touch(session_id="s", user_id=A, dataset_id=D1, at=NOW)])
    before = await state(session_database)
    for user, status in (("b", 403), ("stranger", 404)):
        async with Browser(session_database, user, writable=True) as browser:
            await browser.get("/sessions")
            for path, fields in CHANGES.items():
                answer = await browser.post(change(path), fields, token=browser.token)
                assert answer.status_code == status, path
    assert await state(session_database) == before


WRONG_FIELDS: tuple[tuple[str, dict[str, str], str], ...] = (
    ("/session/end", {"status": "waiting"}, "status"),
    ("/session/end", {}, "status"),
    ("/session/annotate", {"name": "quality", "score": "high"}, "score"),
    ("/session/annotate", {"name": "quality", "score": "nan"}, "score"),
    ("/session/annotate", {"score": "1"}, "name"),
    ("/session/edit", {"tags": "no colon"}, "tags"),
    ("/session/end", {"status": "failed", "reason": "a\0b"}, "reason"),
)


async def test_a_form_with_a_wrong_field_is_refused(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record([Touch(session_id="s", user_id=A, at=NOW)])
    before = await state(session_database)
    async with Browser(session_database, writable=True) as browser:
        await browser.get("/sessions")
        for path, fields, field in WRONG_FIELDS:
            answer = await browser.post(change(path), fields, token=browser.token)
            assert (answer.status_code, f"<code>{field}</code>" in answer.text) == (422, True), (path, fields)
    assert await state(session_database) == before


async def test_a_form_is_bounded(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record([Touch(session_id="s", user_id=A, at=NOW)])
    async with Browser(session_database, writable=True) as browser:
        await browser.get("/sessions")
        large = await browser.post(change("/session/edit"), token=browser.token, title="x" * 70_000)
        assert large.status_code == 413
        json = {"Origin": "http://host", "Content-Type": "application/json"}
        assert (await browser.post(change("/session/end"), headers=json, token=browser.token)).status_code == 415


async def test_a_preference_leads_to_a_page_of_the_dashboard_and_nowhere_else(
    session_database: SessionDatabase,
) -> None:
    app = dashboard_app(session_database, viewer=viewer)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://host", headers={"X-User": "a"}) as client:
        for back, expected in (
            ("/sessions?tags=%C3%A9", "/sessions?tags=%C3%A9"),
            ("https://elsewhere", "/"),
            ("//elsewhere", "/"),
            ("/\\elsewhere", "/"),
            # A browser leaves these out.
            ("/\t/elsewhere", "/"),
            ("/\r\n/elsewhere", "/"),
            # Another header.
            ("/sessions\r\nSet-Cookie: a=b", "/"),
            ("/\N{RIGHT-TO-LEFT OVERRIDE}", "/"),
        ):
            answer = await client.post("/preferences", data={"theme": "dark", "back": back})
            assert (answer.status_code, answer.headers["location"]) == (303, expected), back
