"""Parameters of the reading routes: every filter, cursors, entity tags, refusals in our words."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, get_args

import httpx
import pytest
import pytest_asyncio
from fastapi import Depends, FastAPI

from session_lifecycle import (
    Run,
    RunFilters,
    SessionDatabase,
    SessionLifecycleError,
    SessionListFilters,
    Step,
    SummaryFilters,
    Touch,
    UsageEvent,
    Viewer,
)
from session_lifecycle.models.reports import UsageQuestion
from session_lifecycle.models.session_filters import ALL_SESSION_ORDERS
from session_lifecycle.models.summaries import SUMMARY_ORDERS
from session_lifecycle.models.usage_filters import UsageEventFilters, UsageFilters
from session_lifecycle.web.filters import Asked, SessionOrder, SummaryOrder, asked_sessions
from session_lifecycle.web.problems import problem_handler
from support.usage import A
from support.web import AGENT, D1, PREFIX, Host, hosting, refuses

NOW = datetime.now(UTC)
# The fields that no parameter has: the viewer is the host's, and a path names the session.
OF_HOST = {"viewer", "user_id", "permitted_dataset_ids"}
OF_PAGES = {"since", "until", "limit", "offset", "order_by", "descending", "cursor", "total"}
RENAMED = {"status_filter": "status"}


@pytest_asyncio.fixture
async def host(session_database: SessionDatabase) -> AsyncIterator[Host]:
    async with hosting(session_database) as found:
        yield found


def parameters(host: Host, path: str) -> set[str]:
    [operation] = host.app.openapi()["paths"][PREFIX + path].values()
    return {one["name"] for one in operation["parameters"]}


@pytest.mark.parametrize(
    ("path", "filters", "without"),
    [
        ("/sessions", SessionListFilters, set()),
        ("/sessions/with-agent-info", SessionListFilters, set()),
        ("/summaries", SummaryFilters, set()),
        ("/runs", RunFilters, set()),
        ("/sessions/{session_id}/runs", RunFilters, set()),
        ("/sessions/{session_id}/usage", UsageEventFilters, set()),
        ("/usage", UsageFilters, set()),
        ("/events", SessionListFilters, OF_PAGES),
        ("/usage", UsageQuestion, {"filters"}),
    ],
)
async def test_every_filter_is_a_parameter(host: Host, path: str, filters: Any, without: set[str]) -> None:
    expected = {RENAMED.get(name, name) for name in filters.model_fields.keys() - OF_HOST - without}
    assert expected <= parameters(host, path)


def test_the_orders_are_those_of_the_filters() -> None:
    assert get_args(SessionOrder) == ALL_SESSION_ORDERS
    assert get_args(SummaryOrder) == SUMMARY_ORDERS


async def test_filters_choose(host: Host, session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record(
        [
            Touch(session_id="one", user_id=A, agent_name="x", tags={"a": "b:c", "d": "e"}, metadata={"k": [1, 2]}),
            Touch(session_id="two", user_id=AGENT, dataset_id=D1, tags={"a": "other"}),
            UsageEvent(session_id="one", user_id=A, tokens_in=5, tokens_out=5, cost_usd="0.5", errored=True),
            Run(run_id="r", user_id=A, session_id="one", client="Cursor", model="M", started_at=NOW, ended_at=NOW),
        ]
    )
    await session_database.lifecycle.annotate_session("two", AGENT, "quality", score=0.5, label="l", annotator="p")
    chosen: list[tuple[dict[str, Any], list[str]]] = [
        ({"owner_id": str(AGENT)}, ["two"]),
        ({"dataset_id": str(D1)}, ["two"]),
        ({"without_dataset": "true"}, ["one"]),
        ({"agent_name": "x"}, ["one"]),
        ({"agent_names": ["x", "y"]}, ["one"]),
        ({"session_id_prefix": "tw"}, ["two"]),
        ({"excluded_session_id_prefix": "tw"}, ["one"]),
        ({"tags": "a:b:c"}, ["one"]),
        ({"tags": ["a:b:c", "d:e"]}, ["one"]),
        ({"tags": ["a:b:c", "d:x"]}, []),
        ({"metadata": '{"k": [2]}'}, ["one"]),
        ({"min_cost_usd": "0.5", "max_cost_usd": "0.5"}, ["one"]),
        ({"max_tokens": 9}, ["two"]),
        ({"min_errors": 1}, ["one"]),
        ({"max_duration_s": "1000.5", "min_tokens": 10}, ["one"]),
        ({"annotation": "quality", "min_score": "0.5", "annotator": "p", "annotation_label": "l"}, ["two"]),
        ({"tool": "none"}, []),
        ({"until": NOW.isoformat()}, []),
        ({"since": (NOW - timedelta(hours=1)).isoformat(), "total": "none", "agent_name": "x"}, ["one"]),
    ]
    for asked, expected in chosen:
        page = await host.found("/sessions", **asked)
        assert [one["session_id"] for one in page["sessions"]] == expected, asked
    assert [one["record"]["session_id"] for one in (await host.found("/summaries", client="Cursor"))["sessions"]] == [
        "one"
    ]
    assert (await host.found("/models", prefix="m")) == ["M"]
    assert (await host.found("/clients")) == ["Cursor"]
    usage = await host.found("/usage", group_by=["model", "day"], tags="d:e", range="7d")
    assert [(row["model"], row["tokens_in"], row["cost_usd"]) for row in usage["rows"]] == [("unknown", 5, 0.5)]
    assert usage["total"]["cost_usd"] == 0.5


@pytest.mark.parametrize(
    ("path", "asked", "field", "expected"),
    [
        ("/sessions", {"range": "7d", "since": "2026-01-01T00:00Z"}, "range", "either range, or since and until"),
        ("/sessions", {"since": "2026-01-01"}, "since", "a datetime with a time zone, or its ISO 8601 text"),
        ("/sessions", {"since": "1"}, "since", "a datetime with a time zone, or its ISO 8601 text"),
        ("/sessions", {"since": "2026-01-02T00:00Z", "until": "2026-01-01T00:00Z"}, "until", "at or after since"),
        ("/sessions", {"cursor": "x"}, "cursor", "the next_cursor of a page under the same filters"),
        ("/sessions", {"cursor": "30d.9999999999999999999999.x"}, "cursor", "the next_cursor of a page"),
        ("/sessions", {"cursor": "30d.1.x", "offset": 1}, "cursor", "either cursor or offset, not both"),
        ("/sessions", {"tags": "a"}, "tags", "name:text, and each name once"),
        ("/sessions", {"tags": ["a:b", "a:c"]}, "tags", "name:text, and each name once"),
        ("/sessions", {"metadata": "[1]"}, "metadata", "a JSON object"),
        ("/sessions", {"metadata": "[" * 5_000}, "metadata", "a JSON object"),
        ("/sessions", {"min_cost_usd": "much"}, "min_cost_usd", "a Decimal, an int, a float, or a number as text"),
        ("/sessions", {"min_tokens": 2, "max_tokens": 1}, "max_tokens", "min_tokens or more"),
        ("/sessions", {"min_tokens": 10**30}, "min_tokens", "a whole number from 0 to"),
        ("/sessions", {"min_score": "nan"}, "min_score", "a finite number"),
        ("/sessions", {"descending": "perhaps"}, "descending", "true or false"),
        ("/sessions", {"limit": "1.5"}, "limit", "a whole number"),
        ("/sessions", {"offset": 2**70}, "offset", "a whole number from 0 to"),
        ("/sessions", {"owner_id": "x"}, "owner_id", "a UUID or its text"),
        ("/sessions", {"total": "all"}, "total", "one of exact, bounded, none"),
        ("/sessions", {"agent_names": ["\x00"]}, "agent_names.0", "text without the character NUL"),
        ("/summaries", {"order_by": "drop"}, "order_by", "one of last_activity_at, started_at"),
        ("/usage", {"group_by": ["day", "hour"]}, "group_by", "at most one of hour, day, week, month"),
        ("/usage", {"group_by": "day", "range": "all"}, "since", "a time, because the report is grouped by day"),
        ("/usage", {"group_by": "drop"}, "group_by.0", "one of model, provider"),
        ("/usage", {"timezone": "Mars"}, "timezone", "the name of an IANA time zone"),
        ("/usage", {"kind": "x"}, "kind", "one of llm, embedding"),
        ("/sessions/" + "x" * 513, {}, "session_id", "1 to 512 characters"),
        ("/sessions/%00", {}, "session_id", "text without the character NUL"),
        ("/runs", {"steps_limit": 0}, "steps_limit", "a number of at least 1"),
        ("/sessions/s/runs", {"steps_limit": 50_001}, "steps_limit", "a number of at most 50"),
        ("/sessions/s/runs", {"steps_limit": "all"}, "steps_limit", "a whole number"),
        ("/runs", {"steps_offset": -1}, "steps_offset", "a number of at least 0"),
        ("/sessions/s/runs", {"steps_offset": 2**63}, "steps_offset", "a whole number from 0 to"),
        ("/sessions/s/threads", {"after": "a", "before": "b"}, "before", "either after or before, not both"),
    ],
)
async def test_a_refusal_names_the_parameter_and_what_is_expected(
    host: Host, session_database: SessionDatabase, path: str, asked: dict[str, Any], field: str, expected: str
) -> None:
    await session_database.lifecycle.ensure_and_touch_session("s", A)
    problem = refuses(await host.get(path, **asked), 422, field)
    assert expected in problem["expected"]
    assert problem["detail"].endswith(f"expected {problem['expected']}")


@pytest.mark.parametrize("path", ["/runs", "/sessions/s/runs"])
async def test_the_steps_of_runs_come_in_pages(host: Host, session_database: SessionDatabase, path: str) -> None:
    of_run: dict[str, Any] = {"run_id": "r", "user_id": A, "started_at": NOW}
    steps = [Step(step_id=f"s{number}", kind="tool", seq=number, **of_run) for number in range(5)]
    await session_database.lifecycle.record([Run(session_id="s", ended_at=NOW, **of_run), *steps])
    pages: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["s0", "s1", "s2", "s3", "s4"]),
        ({"steps_limit": 2}, ["s0", "s1"]),
        ({"steps_limit": 2, "steps_offset": 4}, ["s4"]),
        ({"steps_offset": 3}, ["s3", "s4"]),
    ]
    for asked, expected in pages:
        [run] = (await host.found(path, **asked))["runs"]
        assert [step["step_id"] for step in run["steps"]] == expected
        assert run["steps_count"] == 5


async def test_R14_a_walk_keeps_the_window_of_its_first_page(host: Host, session_database: SessionDatabase) -> None:
    names = [f"s{number:02}" for number in range(7)]
    await session_database.lifecycle.record([Touch(session_id=name, user_id=A, at=NOW) for name in names])
    for path in ("/sessions", "/sessions/with-agent-info"):
        for window in ({}, {"range": "24h"}, {"range": "all"}, {"since": (NOW - timedelta(hours=1)).isoformat()}):
            found: list[str] = []
            cursor: dict[str, str] = {}
            while True:
                page = await host.found(path, limit=3, **window, **cursor)
                found += [one["session_id"] for one in page["sessions"]]
                if page["next_cursor"] is None:
                    break
                cursor = {"cursor": page["next_cursor"]}
            assert sorted(found) == names, window
    cursor = {"cursor": (await host.found("/sessions", limit=3, range="24h"))["next_cursor"]}
    refuses(await host.get("/sessions", range="7d", **cursor), 422, "cursor")
    refuses(await host.get("/sessions", range="24h", status="running", **cursor), 422, "cursor")
    refuses(await host.get("/sessions", "b", range="24h", **cursor), 422, "cursor")


async def test_an_answer_that_the_client_has_is_not_sent_again(host: Host, session_database: SessionDatabase) -> None:
    await session_database.lifecycle.ensure_and_touch_session("s", A)
    first = await host.get("/sessions/s")
    assert first.headers["cache-control"] == "private, no-cache"
    known = {"If-None-Match": f'"other", W/{first.headers["etag"]}'}
    again = await host.ask("GET", "/sessions/s", headers=known)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    await session_database.lifecycle.update_session("s", A, title="new")
    changed = await host.ask("GET", "/sessions/s", headers=known)
    assert (changed.status_code, changed.json()["title"]) == (200, "new")


async def test_a_host_s_own_route_takes_the_filters_and_the_handler(session_database: SessionDatabase) -> None:
    app = FastAPI()
    app.add_exception_handler(SessionLifecycleError, problem_handler)

    @app.get("/mine")
    async def mine(asked: Annotated[Asked[SessionListFilters], Depends(asked_sessions)]) -> dict[str, Any]:
        page = await session_database.lifecycle.list_session_rows(asked.seen_by(Viewer(A)))
        return {"ids": [row.record.session_id for row in page.sessions], "next": asked.next_cursor(page)}

    for name in ("one", "two"):
        await session_database.lifecycle.ensure_and_touch_session(name, A)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://host") as client:
        first = (await client.get("/mine", params={"limit": 1})).json()
        second = (await client.get("/mine", params={"limit": 1, "cursor": first["next"]})).json()
        assert (first["ids"], second) == (["two"], {"ids": ["one"], "next": None})
        refuses(await client.get("/mine", params={"tags": "x"}), 422, "tags")


async def test_a_viewer_that_is_none_is_the_host_s_mistake(session_database: SessionDatabase) -> None:
    from session_lifecycle.web.reading import session_router

    app = FastAPI()
    app.include_router(session_router(session_database, viewer=lambda: None))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://host") as client:
        problem = refuses(await client.get("/sessions"), 500)
        assert problem["detail"] == "the server cannot answer; its log says why"
