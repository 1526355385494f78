"""The examples run unchanged."""

import asyncio
import os
import runpy
import subprocess
import sys
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from session_lifecycle import SessionDatabase

EXAMPLES = Path(__file__).parents[2] / "examples"
# Loaded by path, since the standard library has a module of this name.
TRACES = runpy.run_path(str(EXAMPLES / "trace.py"))


PRINTED = {
    "quickstart.py": [
        "applied: 0.00045 USD",
        "chat-1 completed 1000 0.00045",
        "1 session, 0.00045 USD, success rate 100%",
    ],
    "agent_hook.py": [
        "resp-1: applied, session at 0.006 USD",
        "resp-2: applied, session at 0.01325 USD",
        "resp-1: duplicate, session at 0.01325 USD",
    ],
    "conversation.py": [
        "Bread for Sunday: 0.00090 USD, runs 2, errors 1",
        "last said: Two loaves are yours.",
        "turn-1: 2000.0 ms, [['the stock did not answer']]",
        "turn-2: 2000.0 ms, [None]",
        "assistant: The oven is out of order.",
        "user: And tomorrow?",
        "assistant: Two loaves are yours.",
    ],
    "trace.py": [
        "trip-1 in all: 0.00062 USD, 2800 tokens, 3200.0 ms, errors 1",
        "trip-1 in assistant: 0.0006 USD, 1800 tokens, 3000.0 ms, errors 1",
        "trip-1 in search: 0.00002 USD, 1000 tokens, 200.0 ms, errors 0",
        "guide by gpt-4o-mini: invoke_agent guide, chat gpt-4o-mini, weather",
    ],
    "proxied_request.py": [
        "Where do sessions end? 2 requests, 0.0141 USD",
        "request-1: ['A search will tell.'], ['search']",
        "[('request-2', 'request-1', 2500, 2000), ('request-1', None, 2000, 0)]",
        "['chat']",
        "['Cursor', 'Unknown'] ['claude-sonnet-4-5']",
        "3 requests, p50 3000.0 ms, 2 prompts",
    ],
}


@pytest.mark.parametrize("name", PRINTED)
def test_a_program_runs(session_database_url: str, name: str) -> None:
    environment = {**os.environ, "SESSION_LIFECYCLE_DATABASE_URL": session_database_url}
    ran = subprocess.run(
        [sys.executable, EXAMPLES / name], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == PRINTED[name]


def span(parent_id: str | None = None, **attributes: Any) -> Any:
    """A span of one second, of the program's own class; `__` in a keyword stands for a dot."""
    named = {name.replace("__", "."): value for name, value in attributes.items()}
    return TRACES["Span"]("t", "span-1", parent_id, "a span", 0, 1_000_000_999, named)


def said(**attributes: Any) -> list[Any]:
    """The items that a span becomes."""
    parent_id = attributes.pop("parent_id", None)
    items: list[Any] = TRACES["items_of"](span(parent_id, **attributes), "s", uuid4())
    return items


@pytest.mark.parametrize(
    ("attributes", "session"),
    [
        ([{"gen_ai__conversation__id": "c"}], "c"),
        ([{"session__id": "s"}], "s"),
        ([{"session__id": "s"}, {"gen_ai__conversation__id": "c", "session__id": "s"}], "c"),
        ([{}, {"session__id": "s"}], "s"),
        ([{"gen_ai__conversation__id": ""}], "t"),
    ],
)
def test_T22_a_trace_belongs_to_the_conversation_its_spans_name(attributes: list[dict[str, str]], session: str) -> None:
    assert TRACES["session_of"]([span(**named) for named in attributes]) == session


def test_a_span_of_a_model_call_becomes_usage() -> None:
    run, step, usage = said(
        parent_id="span-0",
        gen_ai__operation__name="chat",
        gen_ai__provider__name="openai",
        gen_ai__request__model="gpt-4o",
        gen_ai__response__model="gpt-4o-2024-08-06",
        gen_ai__usage__input_tokens=100,
        gen_ai__usage__output_tokens=20,
        gen_ai__usage__cache_read__input_tokens=60,
        gen_ai__usage__cache_creation__input_tokens=30,
        gen_ai__usage__reasoning__output_tokens=10,
    )
    assert (run.run_id, run.ended_at, run.reported_tokens) == ("t", None, None)
    assert (step.step_id, step.parent_step_id, step.kind, step.ended_at.microsecond) == ("span-1", "span-0", "span", 0)
    assert (usage.idempotency_key, usage.provider, usage.model) == ("span-1", "openai", "gpt-4o-2024-08-06")
    assert (usage.tokens_in, usage.cache_read_tokens, usage.cache_write_tokens) == (100, 60, 30)
    assert (usage.tokens_out, usage.reasoning_tokens, usage.measured, usage.errored) == (20, 10, True, False)


def test_a_model_call_without_figures_is_unmeasured() -> None:
    _run, step, usage = said(gen_ai__operation__name="chat", error__type="timeout")
    assert (step.errors, usage.measured, usage.errored) == ("timeout", False, True)


def test_the_outermost_span_ends_the_run_and_reports_its_cost() -> None:
    reported = {"gen_ai__usage__input_tokens": 100, "agent__cost_usd": 0.01}
    run, _step = said(gen_ai__operation__name="invoke_agent", error__type="timeout", **reported)
    assert (run.status, run.error, run.ended_at - run.started_at) == ("failed", "timeout", timedelta(seconds=1))
    assert (str(run.reported_cost_usd), run.reported_tokens) == ("0.01", 100)
    run, _step = said(parent_id="span-0", gen_ai__operation__name="invoke_agent", **reported)
    assert (run.ended_at, run.reported_cost_usd, run.reported_tokens) == (None, None, None)


def test_a_span_of_a_tool_becomes_a_tool_step() -> None:
    _run, step = said(gen_ai__operation__name="execute_tool", gen_ai__tool__name="weather", gen_ai__tool__call__id="c1")
    assert (step.kind, step.name, step.tool_call_id) == ("tool", "weather", "c1")


async def test_X34_the_host_app_serves_its_users_with_one_connection_for_each_request(
    session_database_url: str, session_database: SessionDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SESSION_LIFECYCLE_DATABASE_URL", session_database_url)
    monkeypatch.syspath_prepend(EXAMPLES)
    host = import_module("fastapi_host")
    app = host.app

    ann, ben = ({"x-user-id": str(uuid4())} for _ in range(2))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://host") as client,
    ):
        answered = await client.post("/sessions/chat/answers", params={"said": "hello"}, headers=ann)
        assert answered.json() == {"outcome": "applied"}
        undone = await client.post("/sessions/chat/answers", params={"said": "hello"}, headers=ann)
        assert undone.status_code == 409
        refused = await client.post(f"/sessions/{'x' * 513}/answers", params={"said": "hello"}, headers=ann)
        assert (refused.status_code, "session_id" in refused.json()["detail"]) == (422, True)
        page = (await client.get("/sessions", headers=ann)).json()
        assert [(row["session_id"], row["tokens_in"]) for row in page["sessions"]] == [("chat", 5)]
        assert (await client.get("/sessions/chat", headers=ann)).json()["effective_status"] == "running"
        assert (await client.get("/sessions/chat", headers=ben)).status_code == 404
        assert (await client.get("/sessions", headers=ben)).json()["total"] == 0
        assert (await client.get("/sessions", params={"cursor": "none of ours"}, headers=ann)).status_code == 422
        assert (await client.get("/sessions")).status_code == 422  # nobody asks

        # X34: more requests at once than connections. Each holds its own, and a second one would never come.
        pages = await asyncio.gather(*(client.get("/sessions", headers=ann) for _ in range(16)))
        assert [(page.status_code, page.json()["answers"]) for page in pages] == [(200, 1)] * 16

        nowhere = AsyncSession(create_async_engine("postgresql+asyncpg://127.0.0.1:1/x"))
        monkeypatch.setitem(app.dependency_overrides, host.session, lambda: nowhere)
        away = await client.get("/sessions/chat", headers=ann)
        assert (away.status_code, away.json()) == (503, {"detail": "try again later"})
    async with session_database.engine.connect() as connection:
        answers = await connection.exec_driver_sql("SELECT answer FROM answers")
        assert answers.scalars().all() == ["hello"]


async def test_the_web_host_shows_each_user_their_own_sessions_after_a_login(
    session_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SESSION_LIFECYCLE_DATABASE_URL", session_database_url)
    monkeypatch.syspath_prepend(EXAMPLES)
    app = import_module("web_host").app
    seen: dict[str, dict[str, bool]] = {}
    async with app.router.lifespan_context(app):
        for name in ("ann", "ben"):
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://host", follow_redirects=True
            ) as client:
                asked = await client.get("/")
                assert (asked.url.path, "Sign in" in asked.text) == ("/login", True)
                assert (await client.post("/login", data={"name": name, "password": "wrong"})).status_code == 401
                overview = await client.post("/login", data={"name": name, "password": name})
                assert (overview.url.path, "<h1>Overview</h1>" in overview.text) == ("/dashboard/", True)
                page = (await client.get("/dashboard/sessions")).text
                seen[name] = {one: f"The {one} of today" in page for one in ("build", "review", "report")}
                listed = (await client.get("/api/v1/sessions")).json()
                assert listed["total"] == sum(seen[name].values())
    assert seen["ann"] == {"build": True, "review": True, "report": True}
    assert seen["ben"] == {"build": False, "review": False, "report": True}
