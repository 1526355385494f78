"""What the pages show: figures, texts, sessions of any size, and no code but that of the host."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlencode
from uuid import UUID

import pytest
from jinja2 import Environment

from session_lifecycle import Message, Run, SessionDatabase, Step, Touch, UsageEvent
from session_lifecycle.web.pages.session import MESSAGES_SHOWN, RUNS_SHOWN, STEPS_OF_RUN
from session_lifecycle.web.pages.waterfall import STEPS_SHOWN
from support.dashboard import LISTS, NOW, ROOT, VIEWS, Browser, Links, pages_of, record, session_page
from support.lived_in import SHOWN, live_in
from support.statements import noted
from support.usage import A

PAYLOAD = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><b>{{7*7}}</b>"


async def test_an_empty_database_has_pages_that_say_so(browser: Browser) -> None:
    assert "Nothing happened in this window" in await browser.page("/")
    assert "No session that you may see used anything" in await browser.page("/", range="all")
    assert "No session matches" in await browser.page("/sessions")
    assert "No sessions yet" in await browser.page("/sessions", range="all")
    assert "No session is running now" in await browser.page("/live")
    assert "No budgets" in await browser.page("/budgets")


async def test_a_session_without_anything_has_every_view(session_database: SessionDatabase, browser: Browser) -> None:
    await session_database.lifecycle.record([Touch(session_id="s", user_id=A, at=NOW)])
    for view, words in zip(
        VIEWS,
        ("No runs", "No messages", "No tool calls", "No threads", "No usage events", "No annotations"),
        strict=True,
    ):
        assert words in await browser.page(session_page("s", view=view))


async def test_text_of_a_session_stays_text_on_every_page(session_database: SessionDatabase) -> None:
    await record(session_database, PAYLOAD)
    run = "/session/run?" + urlencode({"id": "s", "run": f"{PAYLOAD}-r", "start": NOW.isoformat()})
    asked = urlencode({"agent_name": PAYLOAD, "search": PAYLOAD})
    groups = [f"/?{urlencode({'group_by': one})}" for one in ("agent", "provider", "client", f"tag:{PAYLOAD[:100]}")]
    columns = [("columns", name) for name in ("agent", "user", "models", "tags", "cost")]

    async def names(user_ids: Iterable[UUID]) -> dict[UUID, str]:
        return dict.fromkeys(user_ids, PAYLOAD)

    async with Browser(session_database, writable=True, user_emails=names) as browser:
        pages = [*LISTS, *pages_of("s"), run, f"/sessions?{asked}", f"/?{asked}", *groups,
                 f"/sessions?{urlencode(columns)}", f"/sessions?status={PAYLOAD}"]  # fmt: skip
        for page in pages:
            answer = await browser.get(page)
            assert answer.status_code == (422 if "status=" in page else 200), page
            assert "<script>alert" not in answer.text, page
            assert "<img src=x" not in answer.text, page
            assert "<b>" not in answer.text, page
            assert "49" not in re.findall(r"<b>\d+|&lt;b&gt;(\d+)", answer.text), page
            assert Links.of(answer.text).code == [], page
            assert "alert(1)" in unescape(answer.text), page


async def test_a_page_runs_nothing_but_the_scripts_of_its_host(session_database: SessionDatabase) -> None:
    await live_in(session_database, 4)
    async with Browser(session_database, writable=True) as browser:
        for path in (*LISTS, *pages_of(SHOWN), "/nowhere", "/sessions?limit=0", session_page("none")):
            answer = await browser.get(path)
            said = answer.headers["content-security-policy"]
            policy = dict(one.strip().split(" ", 1) for one in said.split(";"))
            assert policy["default-src"] == policy["form-action"] == "'self'", path
            assert policy["frame-ancestors"] == policy["base-uri"] == policy["object-src"] == "'none'", path
            assert "unsafe" not in said
            assert answer.headers["cache-control"] == "private, no-store"
            assert answer.headers["x-content-type-options"] == "nosniff"
            links = Links.of(answer.text)
            assert links.code == [], path
            assert all(link.startswith((f"{ROOT}/", "#")) for link in links.links), links.links


async def test_a_page_takes_a_bounded_number_of_reads(session_database: SessionDatabase, browser: Browser) -> None:
    await live_in(session_database, 40)
    await browser.page("/")  # the first statements look at the schema as well
    most = {"/": 44, "/sessions": 1, "/live": 2, "/budgets": 5, **dict.fromkeys(pages_of(SHOWN), 3)}
    most[session_page(SHOWN, view="usage")] = 5
    for page, reads in most.items():
        async with noted(session_database) as sent:
            await browser.page(page)
        selects = [text for text, _ in sent if text.lstrip().upper().startswith(("SELECT", "WITH"))]
        assert len(selects) == reads, page


async def test_no_page_waits_for_a_template_to_be_compiled(
    session_database: SessionDatabase, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("compiled while a page is answered")

    await live_in(session_database, 5)
    monkeypatch.setattr(Environment, "compile", refuse)
    for page in ("/", "/sessions", "/live", "/budgets", *pages_of(SHOWN)):
        await browser.page(page)


async def test_a_session_with_many_steps_has_small_pages(session_database: SessionDatabase, browser: Browser) -> None:
    steps = 3_000
    await session_database.lifecycle.record(
        [Run(run_id=f"r-{number}", user_id=A, session_id="s", started_at=NOW + timedelta(seconds=number))
         for number in range(RUNS_SHOWN + 5)]
    )  # fmt: skip
    for first in range(0, steps, 1_000):
        await session_database.lifecycle.record(
            [Step(step_id=f"s-{number:05}", run_id="r-0", user_id=A, kind="tool", name=f"tool-{number:05}", seq=number,
                  inputs="x" * 200, started_at=NOW) for number in range(first, first + 1_000)]
        )  # fmt: skip
    page = await browser.page(session_page("s"))
    assert len(re.findall('class="of-step"', page)) == STEPS_SHOWN
    assert "2,980 more steps" in page
    assert len(page) < 200_000
    assert len(re.findall('class="of-run"', page)) == RUNS_SHOWN
    [link] = {one for one in Links.of(page).links if "run=r-0&" in one}
    found: list[str] = []
    for _ in range(2):
        page = await browser.page(link)
        found += re.findall(r'<span class="step-name">(tool-\d+)', page)
        assert len(page) < 400_000
        link = next(one for one in Links.of(page).links if "offset=" in one and "run=" in one)
    assert found == [f"tool-{number:05}" for number in range(2 * STEPS_OF_RUN)]
    assert "Steps 101 to 200 of 3,000" in page
    last = await browser.page(re.sub("offset=[0-9]+", f"offset={steps - 1}", link))
    assert re.findall(r'<span class="step-name">(tool-\d+)', last) == ["tool-02999"]
    assert "Steps 3,000 to 3,000 of 3,000" in last
    beyond = await browser.page(re.sub("offset=[0-9]+", f"offset={steps}", link))
    assert "The run has 3,000 steps." in beyond
    later = await browser.page(session_page("s", offset=RUNS_SHOWN))
    assert len(re.findall('class="of-run"', later)) == 5


async def test_a_transcript_goes_back_page_by_page(session_database: SessionDatabase, browser: Browser) -> None:
    count = 2 * MESSAGES_SHOWN + 7
    await session_database.lifecycle.record(
        [Message(message_id=f"m-{number}", user_id=A, session_id="s", role="user", content=f"said-{number:03}",
                 created_at=NOW + timedelta(seconds=number)) for number in range(count)]
    )  # fmt: skip
    link, found = session_page("s", view="transcript"), list[str]()
    while link:
        page = await browser.page(link)
        found = [*re.findall(r"said-\d{3}", page), *found]
        link = next((one for one in Links.of(page).links if "offset=" in one), "")
    assert found == [f"said-{number:03}" for number in range(count)]
    assert "There are no earlier messages" in await browser.page(session_page("s", view="transcript", offset=count))


async def test_long_texts_are_cut(session_database: SessionDatabase, browser: Browser) -> None:
    await session_database.lifecycle.record(
        [Message(message_id="m", user_id=A, session_id="s", role="user", content="x" * 100_000, created_at=NOW)]
    )
    page = await browser.page(session_page("s", view="transcript"))
    assert "The text goes on" in page
    assert len(page) < 40_000


async def test_figures_are_exact_on_hover_and_in_the_visitors_words(
    session_database: SessionDatabase, browser: Browser
) -> None:
    at = datetime.now(UTC).replace(minute=30, second=0, microsecond=123_456) - timedelta(hours=2)
    await session_database.lifecycle.record(
        [UsageEvent(session_id="s", user_id=A, model="m", tokens_in=1_234_567, cost_usd="1234.5678901", at=at)]
    )
    page = await browser.page("/sessions")
    assert 'title="$1,234.5678901">$1,234.5679<' in page
    assert 'title="1,234,567 in, 0 out">1.2M<' in page
    assert f'title="{at.isoformat(" ")}"' in page
    german = (await browser.get("/sessions?tz=Asia/Kolkata", headers={"Accept-Language": "de-DE,en;q=0.5"})).text
    assert 'title="$1.234,5678901">$1.234,5679<' in german
    assert f"{at + timedelta(hours=5, minutes=30):%Y-%m-%d %H:%M}</time>" in german
    assert "Asia/Kolkata" in german
    cookie = {"Cookie": "session_lifecycle_zone=Asia%2FTokyo"}
    assert "Asia/Tokyo" in (await browser.get("/", headers=cookie)).text
    wrong = {"Cookie": "session_lifecycle_zone=Mars"}
    assert "Times are in UTC" in (await browser.get("/", headers=wrong)).text


async def test_the_overview_says_what_its_figures_leave_out(
    session_database: SessionDatabase, browser: Browser
) -> None:
    def event(key: str, **more: Any) -> UsageEvent:
        return UsageEvent(session_id="s", user_id=A, idempotency_key=key, **{"model": "in-house", "at": NOW, **more})

    await session_database.lifecycle.record(
        [event("1", tokens_in=5), event("2", measured=False), event("3", tokens_in=1, cost_usd=1, partial=True),
         event("4", tokens_in=9, cost_usd=7, billing="plan")]
    )  # fmt: skip
    await session_database.lifecycle.end_session("s", A, "completed", at=NOW)
    await session_database.lifecycle.record([event("5", tokens_in=1, cost_usd=2, at=NOW + timedelta(microseconds=5))])
    page = await browser.page("/")
    for words in ("1 event without a price", "1 response without usage", "1 event with counts that are a lower bound",
                  "1 event from after the end", "1 event under a plan"):  # fmt: skip
        assert words in page


async def test_the_overview_compares_and_narrows(session_database: SessionDatabase, browser: Browser) -> None:
    day = timedelta(days=1)
    for session_id, at, cost in (("old", NOW - 1.5 * day, 1), ("new", NOW - 0.5 * day, 3)):
        await session_database.lifecycle.record(
            [Touch(session_id=session_id, user_id=A, agent_name="coder", at=at),
             UsageEvent(session_id=session_id, user_id=A, model="m-" + session_id, cost_usd=cost, tokens_in=1, at=at)]
        )  # fmt: skip
    page = await browser.page("/")
    assert 'title="$1.00 → $3.00">+200.0%<' in page
    assert ("m-new" in page, "m-old" in page) == (True, False)
    narrowed = await browser.page("/", model="m-none")
    assert "No usage matches the filters" in narrowed
    assert "m-new" in await browser.page("/", agent_name="coder", range="7d", group_by="model")
    week = await browser.page("/", range="7d")
    assert week.count('data-x="') >= 3 * 7
    all_time = await browser.page("/", range="all")
    assert ("m-old" in all_time, "data-chart" in all_time) == (True, False)


async def test_the_chart_of_sessions_adds_up_to_the_tile(session_database: SessionDatabase, browser: Browser) -> None:
    def charted(page: str, column: int) -> list[int]:
        """A column of the chart of sessions."""
        rows = page.split("Sessions over time</caption>")[1].split("</table>", maxsplit=1)[0].split("<tr>")[2:]
        return [int(re.findall(r'data-y="(\d*)"', row)[column]) for row in rows]

    day = timedelta(days=1)
    used = UsageEvent(session_id="used", user_id=A, model="m", cost_usd=1, tokens_in=1, at=NOW - 5 * day)
    touched = [Touch(session_id=name, user_id=A, agent_name="coder", at=NOW - ago * day)
               for name, ago in (("used", 2), ("idle", 2), ("failed", 4))]  # fmt: skip
    await session_database.lifecycle.record([used, *touched])
    await session_database.lifecycle.end_session("failed", A, "failed", at=NOW - 3 * day)
    for _ in range(2):  # never rolled up, then rolled up
        page = await browser.page("/", range="7d")
        assert "Last active" in page
        assert [(at, count) for at, count in enumerate(charted(page, 0)[-5:]) if count] == [(0, 1), (2, 2)]
        assert (sum(charted(page, 0)), sum(charted(page, 1)), sum(charted(page, 2))) == (3, 1, 2)
        filtered = await browser.page("/", range="7d", agent_name="coder")
        assert "With usage" in filtered
        assert (charted(filtered, 0)[-6], sum(charted(filtered, 0))) == (1, 1)
        await session_database.maintenance.roll_up()
    centuries = await browser.page("/", since="2000-01-01T00:00:00Z")
    assert ("With usage" in centuries, sum(charted(centuries, 0))) == (True, 1)


async def test_the_overview_of_all_time_says_what_the_ledger_says_and_does_not_read_it(
    session_database: SessionDatabase, browser: Browser
) -> None:
    def words(page: str) -> list[str]:
        """The tiles of spend and tokens, what the figures leave out, and the table of models."""
        tiles = re.findall(r"<dt>(?:Spend|Tokens)</dt>\s*<dd>.*?</dd>", page, re.DOTALL)
        beside = re.findall(r'<section class="notice".*?</section>', page, re.DOTALL)
        groups = re.findall(r"<tbody>.*?</tbody>", page[page.index('id="groups"') :], re.DOTALL)
        return [" ".join(re.sub(r"<[^>]*>", " ", one).split()) for one in (*tiles, *beside, *groups)]

    await live_in(session_database, 40)
    at, key = NOW - timedelta(days=400), {"session_id": "late", "user_id": A, "model": "gpt-4o"}
    await session_database.lifecycle.record(
        [UsageEvent(**key, tokens_in=9, cost_usd=7, billing="plan", at=at), UsageEvent(**key, measured=False, at=at),
         UsageEvent(**key, tokens_in=1, cost_usd=1, partial=True, at=at)]
    )  # fmt: skip
    await session_database.lifecycle.end_session("late", A, "completed", at=NOW)
    late = UsageEvent(**key, tokens_in=1, cost_usd=2, at=NOW + timedelta(microseconds=5))
    await session_database.lifecycle.record([late])
    from_the_ledger = words(await browser.page("/", since="2000-01-01T00:00:00Z"))
    async with noted(session_database) as sent:
        all_time = words(await browser.page("/", range="all"))
    assert len(all_time) == 4
    assert all_time == from_the_ledger
    assert not any("session_usage_events" in statement or "session_runs" in statement for statement, _ in sent)


async def test_without_a_feed_the_live_page_says_so(browser: Browser) -> None:
    page = await browser.page("/live")
    assert "This host sends no events" in page
    assert '<noscript><meta http-equiv="refresh" content="10"></noscript>' in page


async def test_a_host_can_put_pages_into_its_own_layout(session_database: SessionDatabase, tmp_path: Path) -> None:
    (tmp_path / "layout.html").write_text(
        '<!doctype html><html lang="en"><head><title>{% block title %}{% endblock %}</title>'
        '{% include "parts/head.html" %}{% block head %}{% endblock %}</head><body><p>Acme</p>'
        "<main>{% block page %}{% endblock %}</main></body></html>"
    )
    async with Browser(session_database, templates=tmp_path, frame_ancestors="'self'") as browser:
        answer = await browser.get("/sessions")
    assert "<p>Acme</p>" in answer.text
    assert "<h1>Sessions</h1>" in answer.text
    assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]


async def test_the_colours_are_the_visitors_choice(browser: Browser) -> None:
    answer = await browser.post("/preferences", theme="dark", back=f"{ROOT}/sessions?status=failed")
    assert (answer.status_code, answer.headers["location"]) == (303, f"{ROOT}/sessions?status=failed")
    assert '<html lang="en" data-theme="dark">' in await browser.page("/sessions")
    assert (await browser.post("/preferences", theme="pink")).status_code == 422
    for elsewhere in ("https://evil.example/", "//evil.example", "/other", ""):
        answer = await browser.post("/preferences", theme="light", back=elsewhere)
        assert answer.headers["location"] == f"{ROOT}/"
