"""The pages over HTTP: who sees what, what their addresses keep, what they escape, and what they refuse."""

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import UUID

import httpx
import pytest_asyncio
from fastapi import FastAPI, HTTPException

from session_lifecycle import Message, Run, SessionDatabase, Settings, Step, Touch, UsageEvent
from session_lifecycle.models import Budget, Item
from session_lifecycle.web.dashboard import dashboard_app
from session_lifecycle.web.pages.session import MESSAGES_SHOWN, RUNS_SHOWN, STEPS_OF_RUN
from session_lifecycle.web.pages.waterfall import STEPS_SHOWN
from support.lived_in import SHOWN, live_in, viewer_a
from support.statements import noted
from support.usage import A
from support.web import AGENT, D1, B, viewer

NOW = datetime.now(UTC)
ROOT = "/mounted/here"
VIEWS = ("timeline", "transcript", "tools", "threads", "usage", "annotations")
LISTS = ("/", "/sessions", "/live", "/budgets")
ODD_ID = "a/b?c=d&e #%f.."
PAYLOAD = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><b>{{7*7}}</b>"


class Browser:
    """A client of a host that has the pages below `ROOT`."""

    def __init__(self, db: SessionDatabase, user: str | None = "a", **options: Any) -> None:
        host = FastAPI()
        host.mount(ROOT, dashboard_app(db, viewer=viewer, **options))
        self.app = host
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=host, raise_app_exceptions=False),
            base_url="http://host",
            headers={} if user is None else {"X-User": user},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def get(self, path: str, *, headers: dict[str, str] | None = None, **parameters: Any) -> httpx.Response:
        """The answer to a path below the root, or to a whole one."""
        whole = path if path.startswith(ROOT) else ROOT + path
        return await self._client.get(whole, params=parameters or None, headers=headers)

    async def page(self, path: str, **parameters: Any) -> str:
        """The text of a page that must be there."""
        answer = await self.get(path, **parameters)
        assert answer.status_code == 200, (path, answer.status_code, answer.text[-800:])
        return answer.text

    async def post(
        self, path: str, fields: Mapping[str, str] | None = None, *, headers: dict[str, str] | None = None, **more: str
    ) -> httpx.Response:
        """Sends a form, as a browser does from a page of the same origin unless headers say otherwise."""
        own = {"Origin": "http://host"} if headers is None else headers
        return await self._client.post(
            path if path.startswith(ROOT) else ROOT + path, data={**(fields or {}), **more}, headers=own
        )

    @property
    def token(self) -> str:
        """The secret in the browser's cookie."""
        return self._client.cookies["session_lifecycle_token"]

    def set_cookie(self, name: str, value: str) -> None:
        self._client.cookies.set(name, value, domain="host.local")


class Links(HTMLParser):
    """Everything that a page names: addresses, attributes that are code, elements that hold code."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fields: list[tuple[str, str]] = []
        self.code: list[str] = []
        self._element = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._element = tag
        self.code += [f"{tag} {name}" for name in given if name.startswith("on") or name == "style"]
        self.links += [given[name] for name in ("href", "src") if name in given]
        if tag == "input" and "name" in given and (given.get("type") != "checkbox" or "checked" in given):
            self.fields.append((given["name"], given.get("value", "")))

    def handle_data(self, data: str) -> None:
        if self._element in {"script", "style"} and data.strip():
            self.code.append(f"{self._element}: {data}")

    @classmethod
    def of(cls, page: str) -> "Links":
        """What a page names."""
        links = cls()
        links.feed(page)
        return links


def session_page(session_id: str, owner: UUID | None = None, **more: Any) -> str:
    parameters = {"id": session_id, **({} if owner is None else {"owner": str(owner)}), **more}
    return f"/session?{urlencode(parameters)}"


def pages_of(session_id: str) -> list[str]:
    return [session_page(session_id, view=view) for view in VIEWS]


def items_with(text: str, session_id: str = "s", at: datetime = NOW) -> list[Item]:
    """A session with this text in every field that takes text."""
    short = text[:200]
    return [
        Touch(session_id=session_id, user_id=A, title=text, agent_name=short, tags={short[:100]: short},
              metadata={text: [text]}, at=at, dataset_id=D1),
        Run(run_id=f"{short}-r", user_id=A, session_id=session_id, name=text, agent_name=short, client=short,
            project=short, provider=short, model=short, error=text, input={text: text}, output=text, started_at=at,
            ended_at=at, status="failed"),
        Step(step_id=f"{short}-s", run_id=f"{short}-r", user_id=A, kind="tool", name=text, started_at=at, ended_at=at,
             inputs=text, output=text, prompt=text, errors=[text], metadata={text: text}),
        *(Message(message_id=f"{short}-{role}", user_id=A, session_id=session_id, run_id=f"{short}-r", role=role,
                  content=text, created_at=at) for role in ("user", "assistant", "thought", "system", "tool")),
        UsageEvent(session_id=session_id, user_id=A, model=short, provider=short, tokens_in=5, cost_usd=1, at=at,
                   run_id=f"{short}-r", idempotency_key=short),
    ]  # fmt: skip


async def record(db: SessionDatabase, text: str = "unseeable", session_id: str = "s") -> None:
    await db.lifecycle.record(items_with(text, session_id))
    await db.lifecycle.annotate_session(
        session_id, A, text[:200], label=text[:200], comment=text, annotator=text[:200], score=0.5
    )
    await db.budgets.set_budget(Budget(budget_id=text[:200], user_id=A, agent_name=text[:200], limit_usd=2))


@pytest_asyncio.fixture
async def browser(session_database: SessionDatabase) -> AsyncIterator[Browser]:
    async with Browser(session_database) as found:
        yield found


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


WRONG = (
    ("/sessions?order_by=colour", "order_by"),
    ("/sessions?status=done", "status"),
    ("/sessions?limit=0", "limit"),
    ("/sessions?columns=colour", "columns.0"),
    ("/sessions?cursor=made-up", "cursor"),
    ("/sessions?tags=nothing", "tags"),
    ("/?range=90d", "range"),
    ("/?group_by=colour", "group_by.0"),
    ("/?tz=Mars/Olympus", "tz"),
    ("/session?id=s&view=colours", "view"),
    ("/session", "id"),
    ("/session/run?id=s&run=r&start=never", "start"),
    ("/budgets?after=" + "x" * 201, "after"),
)


async def test_a_wrong_filter_is_refused_by_a_page_that_names_it(browser: Browser) -> None:
    for path, field in WRONG:
        answer = await browser.get(path)
        assert answer.status_code == 422, path
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert f"<code>{field}</code>" in answer.text, (path, answer.text)
        assert "Expected" in answer.text


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


async def test_a_page_takes_a_bounded_number_of_reads(session_database: SessionDatabase, browser: Browser) -> None:
    await live_in(session_database, 40)
    await browser.page("/")  # the first statements look at the schema as well
    most = {"/": 19, "/sessions": 1, "/live": 2, "/budgets": 5, **dict.fromkeys(pages_of(SHOWN), 3)}
    most[session_page(SHOWN, view="usage")] = 5
    for page, reads in most.items():
        async with noted(session_database) as sent:
            await browser.page(page)
        selects = [text for text, _ in sent if text.lstrip().upper().startswith(("SELECT", "WITH"))]
        assert len(selects) == reads, page


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


async def test_pages_keep_their_place_behind_a_proxy(session_database: SessionDatabase) -> None:
    host = FastAPI()
    host.mount("/pages", dashboard_app(session_database, viewer=viewer_a, feed=object(), api_path="/api/v2"))
    transport = httpx.ASGITransport(app=host, root_path="/behind")
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        page = (await client.get("/behind/pages/live")).text
    assert 'data-events="/behind/api/v2/events"' in page
    links = Links.of(page).links
    assert all(link.startswith(("/behind/pages/", "#")) for link in links), links


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


# What pages write.

CHANGES: dict[str, dict[str, str]] = {
    "/session/end": {"status": "failed", "reason": "enough"},
    "/session/reopen": {},
    "/session/annotate": {"name": "quality", "score": "0.5", "label": "good", "annotator": "ann", "comment": "yes"},
    "/session/edit": {"title": "Other", "tags": "customer: acme\nbranch: main"},
}


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


async def test_the_colours_are_the_visitors_choice(browser: Browser) -> None:
    answer = await browser.post("/preferences", theme="dark", back=f"{ROOT}/sessions?status=failed")
    assert (answer.status_code, answer.headers["location"]) == (303, f"{ROOT}/sessions?status=failed")
    assert '<html lang="en" data-theme="dark">' in await browser.page("/sessions")
    assert (await browser.post("/preferences", theme="pink")).status_code == 422
    for elsewhere in ("https://evil.example/", "//evil.example", "/other", ""):
        answer = await browser.post("/preferences", theme="light", back=elsewhere)
        assert answer.headers["location"] == f"{ROOT}/"


async def test_what_an_agent_of_the_viewer_did_is_there(session_database: SessionDatabase, browser: Browser) -> None:
    await session_database.lifecycle.record([Touch(session_id="of-agent", user_id=AGENT, at=NOW)])
    await session_database.lifecycle.record([Touch(session_id="of-ben", user_id=B, at=NOW)])
    page = await browser.page("/sessions")
    assert ("of-agent" in page, "of-ben" in page) == (True, False)
