"""The reference's endpoints (rows W)."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from session_lifecycle import (
    End,
    Message,
    Run,
    SessionDatabase,
    SessionStatus,
    Settings,
    Step,
    Touch,
    UsageEvent,
    Viewer,
)
from session_lifecycle.models import SessionRecord
from session_lifecycle.web.reading import session_router
from support.statements import noted
from support.usage import A
from support.web import AGENT, D1, VIEWERS, B, C, Host, hosting, refuses, viewer

NOW = datetime.now(UTC)
AGO = {"hour": timedelta(hours=1), "days": timedelta(days=3), "weeks": timedelta(days=20), "old": timedelta(days=90)}
TWELVE = [
    "session_id", "user_id", "dataset_id", "status", "started_at", "last_activity_at", "ended_at", "tokens_in",
    "tokens_out", "cost_usd", "error_count", "last_model",
]  # fmt: skip
STATS = [
    "range", "sessions", "total_spend_usd", "avg_spend_per_session_usd", "tokens_in", "tokens_out", "tokens_total",
    "agent_time_s", "avg_session_s", "success_rate", "completed", "failed", "abandoned", "running",
]  # fmt: skip


@pytest_asyncio.fixture
async def host(session_database: SessionDatabase) -> AsyncIterator[Host]:
    async with hosting(session_database) as found:
        yield found


def used(
    session_id: str = "s", user_id: Any = A, cost_usd: float | None = 1, model: str | None = "m", **more: Any
) -> UsageEvent:
    fields = {"tokens_in": 10, "tokens_out": 4, **more}
    return UsageEvent(session_id=session_id, user_id=user_id, model=model, cost_usd=cost_usd, **fields)


async def of_all_ages(db: SessionDatabase) -> None:
    """Sessions of A that were last active an hour, days, weeks and a quarter ago; an older one is costlier."""
    await db.lifecycle.record(
        [used(name, cost_usd=number, at=NOW - ago) for number, (name, ago) in enumerate(AGO.items(), 1)]
    )


async def ids(host: Host, path: str = "/sessions", user: str = "a", **parameters: Any) -> list[str]:
    return [one["session_id"] for one in (await host.found(path, user, **parameters))["sessions"]]


async def test_W01_a_page_has_the_envelope_and_the_defaults(host: Host, session_database: SessionDatabase) -> None:
    await of_all_ages(session_database)
    page = await host.found("/sessions")
    assert list(page)[:6] == ["sessions", "total", "limit", "offset", "has_more", "next_cursor"]
    assert (page["total"], page["limit"], page["offset"], page["has_more"], page["next_cursor"]) == (
        3,
        50,
        0,
        False,
        None,
    )
    assert [one["session_id"] for one in page["sessions"]] == ["hour", "days", "weeks"]


async def test_W02_a_session_has_the_twelve_keys_then_ours(host: Host, session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record(
        [used(at=NOW - timedelta(hours=2)), End(session_id="s", user_id=A, status="failed")]
    )
    [found] = (await host.found("/sessions"))["sessions"]
    row = await session_database.lifecycle.get_session_row("s", A)
    assert row is not None
    assert found == row.to_dict()
    assert list(found) == [*TWELVE, *list(SessionRecord.model_fields)[12:], "effective_status"]
    assert (found["user_id"], found["dataset_id"], found["cost_usd"]) == (str(A), None, 1.0)
    assert all(datetime.fromisoformat(found[name]).utcoffset() == timedelta(0) for name in TWELVE[4:7])


async def test_W03_range_is_the_window(host: Host, session_database: SessionDatabase) -> None:
    await of_all_ages(session_database)
    assert await ids(host, range="24h") == ["hour"]
    assert await ids(host, range="7d") == ["hour", "days"]
    assert await ids(host, range="all") == list(AGO)
    problem = refuses(await host.get("/sessions", range="90d"), 422, "range")
    assert problem["detail"] == "range: got '90d', expected one of 24h, 7d, 30d, all"


async def test_W04_status_is_the_effective_status(host: Host, session_database: SessionDatabase) -> None:
    db = session_database.lifecycle
    await db.record([Touch(session_id="running", user_id=A), Touch(session_id="waiting", user_id=A, waiting=True)])
    await db.record([Touch(session_id="abandoned", user_id=A, at=NOW - timedelta(hours=1))])
    for status in (SessionStatus.COMPLETED, SessionStatus.FAILED):
        await db.ensure_and_touch_session(status, A)
        await db.record([End(session_id=status, user_id=A, status=status)])
    for name in ("running", "waiting", "completed", "failed", "abandoned"):
        assert await ids(host, status=name) == [name]
    problem = refuses(await host.get("/sessions", status="zombie"), 422, "status")
    assert problem["expected"] == "one of running, waiting, completed, failed, abandoned"


async def test_W05_limit_and_offset_have_bounds(host: Host) -> None:
    for limit in (1, 500):
        assert (await host.found("/sessions", limit=limit))["limit"] == limit
    for parameters in ({"limit": 0}, {"limit": 501}, {"limit": "x"}, {"offset": -1}):
        refuses(await host.get("/sessions", **parameters), 422, *parameters)


async def test_W06_order_by_takes_the_columns(host: Host, session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record(
        [
            used("one", cost_usd=3, tokens_in=20, tokens_out=9, at=NOW - timedelta(hours=3)),
            used("two", cost_usd=2, tokens_in=30, tokens_out=8, at=NOW - timedelta(hours=2)),
            used("three", cost_usd=1, tokens_in=10, tokens_out=7, at=NOW - timedelta(hours=1)),
            End(session_id="one", user_id=A, status="completed", at=NOW - timedelta(minutes=30)),
            End(session_id="two", user_id=A, status="completed", at=NOW - timedelta(minutes=20)),
        ]
    )
    orders = {
        "last_activity_at": ["three", "two", "one"],
        "started_at": ["three", "two", "one"],
        "ended_at": ["two", "one", "three"],
        "cost_usd": ["one", "two", "three"],
        "tokens_in": ["two", "one", "three"],
        "tokens_out": ["one", "two", "three"],
    }
    for order_by, expected in orders.items():
        assert await ids(host, order_by=order_by) == expected, order_by
        upwards = [one for one in reversed(expected) if order_by != "ended_at" or one != "three"]
        assert (await ids(host, order_by=order_by, descending="false"))[: len(upwards)] == upwards
    problem = refuses(await host.get("/sessions", order_by="drop"), 422, "order_by")
    assert problem["expected"] == f"one of {', '.join(orders)}, error_count"


async def test_W07_stats_have_the_reference_s_keys(host: Host, session_database: SessionDatabase) -> None:
    stats = await host.found("/sessions/stats", range="7d")
    assert list(stats)[:14] == STATS
    assert (stats["range"], stats["sessions"], stats["success_rate"]) == ("7d", 0, 1.0)
    await of_all_ages(session_database)
    await session_database.lifecycle.end_session("hour", A, "completed", at=NOW)
    stats = await host.found("/sessions/stats", range="7d")
    assert (stats["sessions"], stats["total_spend_usd"], stats["avg_spend_per_session_usd"]) == (2, 3.0, 1.5)
    assert (stats["tokens_in"], stats["tokens_out"], stats["tokens_total"]) == (20, 8, 28)
    assert (stats["agent_time_s"], stats["avg_session_s"]) == (3600.0, 1800.0)
    assert [stats[name] for name in STATS[-5:]] == [0.5, 1, 0, 1, 0]
    assert (await host.found("/sessions/stats"))["range"] == "30d"
    refuses(await host.get("/sessions/stats", range="1y"), 422, "range")


async def test_W08_cost_by_model_is_a_list(host: Host, session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record(
        [used(cost_usd=1), used("t", cost_usd=3, model="n"), used(cost_usd=2, model=None)]
    )
    rows = await host.found("/sessions/cost-by-model", range="all")
    assert [list(row.values())[:5] for row in rows] == [
        ["n", 1, 3.0, 10, 4],
        ["unknown", 1, 2.0, 10, 4],
        ["m", 1, 1.0, 10, 4],
    ]
    assert list(rows[0])[:5] == ["model", "session_count", "cost_usd", "tokens_in", "tokens_out"]


async def test_W09_a_session_has_its_label_and_what_was_last(host: Host, session_database: SessionDatabase) -> None:
    at = NOW - timedelta(hours=1)
    await session_database.lifecycle.record(
        [
            Run(run_id="r", user_id=A, session_id="s", name="first run", started_at=at),
            *(
                Message(
                    message_id=f"m{number}", user_id=A, session_id="s", role="user" if number else "system",
                    content=f"{number} " + "x" * 200, created_at=at + timedelta(seconds=number),
                )
                for number in range(25)
            ),
            *(
                Step(
                    step_id=f"t{number}", run_id="r", user_id=A, kind="tool", started_at=at + timedelta(seconds=number)
                )
                for number in range(22)
            ),
            Step(step_id="task", run_id="r", user_id=A, kind="task", started_at=at),
        ]
    )  # fmt: skip
    found = await host.found("/sessions/s")
    session = list((await host.found("/sessions"))["sessions"][0])
    assert list(found)[: len(session) + 5] == [*session, "label", "msg_count", "tool_calls", "qas", "traces"]
    assert (found["label"], found["msg_count"], found["tool_calls"]) == ("1 " + "x" * 118, 25, 22)
    assert [one["message_id"] for one in found["qas"]] == [f"m{number}" for number in range(5, 25)]
    assert [one["step_id"] for one in found["traces"]] == [f"t{number}" for number in range(2, 22)]
    await session_database.lifecycle.record([Run(run_id="q", user_id=A, session_id="named", name="n", started_at=at)])
    assert (await host.found("/sessions/named"))["label"] == "n"
    await session_database.lifecycle.ensure_and_touch_session("bare", A)
    assert (await host.found("/sessions/bare"))["label"] is None


async def test_W10_no_session_and_an_invisible_one_look_the_same(host: Host, session_database: SessionDatabase) -> None:
    await session_database.lifecycle.ensure_and_touch_session("secret", A)
    missing, invisible = await host.get("/sessions/missing"), await host.get("/sessions/secret", "stranger")
    refuses(missing, 404)
    assert (missing.status_code, missing.content) == (invisible.status_code, invisible.content)


@pytest.mark.parametrize("session_id", ["a/b ä?#%2F", "a/threads", "stats/../x", "%", "ä/", "+ &=", "a/b/usage"])
async def test_W11_any_id_fits_into_a_path(host: Host, session_database: SessionDatabase, session_id: str) -> None:
    await session_database.lifecycle.record(
        [used(session_id), Run(run_id="r", user_id=A, session_id=session_id, started_at=NOW)]
    )
    path = f"/sessions/{quote(session_id, safe='')}"
    assert (await host.found(path))["session_id"] == session_id
    assert (await host.found(f"{path}/runs"))["runs"][0]["session_id"] == session_id
    assert (await host.found(f"{path}/usage"))["events"][0]["session_id"] == session_id
    ended = await host.ask("POST", f"{path}/end")
    assert (ended.status_code, ended.json()["session_id"]) == (200, session_id)


async def test_W11_any_id_is_found_below_a_mounted_app(host: Host, session_database: SessionDatabase) -> None:
    outer = FastAPI()
    outer.mount("/deep/er", host.app)
    for session_id in ("a/b ä?#%2F", "stats"):
        await session_database.lifecycle.ensure_and_touch_session(session_id, A)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=outer), base_url="http://host") as client:
        for sent, session_id in (("a%2Fb%20%C3%A4%3F%23%252F", "a/b ä?#%2F"), ("%73tats", "stats")):
            answer = await client.get(f"/deep/er/api/v1/sessions/{sent}", headers={"X-User": "a"})
            assert (answer.status_code, answer.json()["session_id"]) == (200, session_id)
        slash = await client.get("/deep/er/api/v1/sessions/", headers={"X-User": "a"})
        assert (slash.status_code, slash.headers["location"]) == (307, "http://host/deep/er/api/v1/sessions")


@pytest.mark.parametrize("prefix", ["/münchen", "/my api", "/a+b/c:d", "/~user/(1)", "/v1.0/{tenant}"])
async def test_W11_any_id_is_found_below_any_prefix(session_database: SessionDatabase, prefix: str) -> None:
    app = FastAPI()
    app.include_router(session_router(session_database, viewer=viewer), prefix=prefix)
    for session_id in ("a/b ä?#%2F", "stats"):
        await session_database.lifecycle.ensure_and_touch_session(session_id, A)
    root = f"http://host{quote(prefix, safe='/+:~(){}')}".replace("{tenant}", "a%2Fc%20%25e")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), headers={"X-User": "a"}) as client:
        for sent, session_id in (("a%2Fb%20%C3%A4%3F%23%252F", "a/b ä?#%2F"), ("%73tats", "stats")):
            answer = await client.get(f"{root}/sessions/{sent}")
            assert (answer.status_code, answer.json().get("session_id")) == (200, session_id), answer.url


async def test_W12_a_shared_session_shows_its_owner_s_content(host: Host, session_database: SessionDatabase) -> None:
    await session_database.lifecycle.ensure_and_touch_session("s", A, D1)
    await session_database.lifecycle.record(
        [Message(message_id="m", user_id=A, session_id="s", role="user", content="hello", created_at=NOW)]
    )
    found = await host.found("/sessions/s", "b")
    assert (found["user_id"], found["label"], found["qas"][0]["content"]) == (str(A), "hello", "hello")


async def test_W13_sessions_with_agent_info(host: Host, session_database: SessionDatabase) -> None:
    told = {"agent_type": "codex", "agent_source": "mcp", "agent_session_name": "n", "origin_function": "f"}
    await session_database.lifecycle.record(
        [
            Touch(session_id="claude-code-1", user_id=A, metadata=told, agent_name="coder"),
            Touch(
                session_id="claude-code-2",
                user_id=A,
                agent_name="coder",
                metadata={"agent_type": 5, "agent_source": []},
            ),
            Touch(session_id="claude-code-3", user_id=A),
            Touch(session_id="codex-4", user_id=A),
            Touch(session_id="claudecode", user_id=A),
        ]
    )
    page = await host.found("/sessions/with-agent-info", order_by="started_at", descending="false", limit=5)
    assert list(page) == list(await host.found("/sessions"))
    found = [[one[name] for name in told] for one in page["sessions"]]
    assert found == [
        list(told.values()),
        ["coder", None, None, None],
        ["claude-code", None, None, None],
        [None, None, None, None],
        ["codex", None, None, None],
    ]
    plain = list((await host.found("/sessions"))["sessions"][0])
    assert list(page["sessions"][0]) == [*plain, *told]
    refuses(await host.get("/sessions/with-agent-info", status="zombie"), 422, "status")


async def test_W14_cost_by_user_and_agent(host: Host, session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record(
        [
            used("codex-1", cost_usd=1, at=NOW - timedelta(days=99)),
            used("codex-2", cost_usd=2),
            Touch(session_id="codex-3", user_id=A, metadata={"agent_type": "claude-code"}),
            used("codex-3", cost_usd=0.5),
            used("shared", B, 4, dataset_id=D1),
            used("of the agent", AGENT, 0.25),
            used("foreign", C, 100),
        ]
    )
    rows = await host.found("/sessions/cost-by-user-agent", range="all")
    keys = [
        "user_id",
        "user_email",
        "agent_type",
        "session_count",
        "tokens_in",
        "tokens_out",
        "tokens_total",
        "cost_usd",
    ]
    assert all(list(row)[:8] == keys for row in rows)
    assert [list(row.values())[:8] for row in rows] == [
        [str(B), "unknown", None, 1, 10, 4, 14, 4.0],
        [str(A), "a@example.com", "codex", 2, 20, 8, 28, 3.0],
        [str(A), "a@example.com", "claude-code", 1, 10, 4, 14, 0.5],
        [str(AGENT), "unknown", None, 1, 10, 4, 14, 0.25],
    ]
    assert [row["cost_usd"] for row in await host.found("/sessions/cost-by-user-agent")] == [4.0, 2.0, 0.5, 0.25]
    assert await host.found("/sessions/cost-by-user-agent", "stranger") == [
        {**rows[0], "user_id": str(C), "cost_usd": 100.0}
    ]


async def test_W15_the_viewer_s_own_session_comes_first(host: Host, session_database: SessionDatabase) -> None:
    await session_database.lifecycle.ensure_and_touch_session("s", A, D1)
    await session_database.lifecycle.ensure_and_touch_session("s", B)
    assert (await host.found("/sessions/s", "b"))["user_id"] == str(B)
    assert (await host.found("/sessions/s", "b", owner_id=str(A)))["user_id"] == str(A)
    refuses(await host.get("/sessions/s", "b", owner_id=str(C)), 404)
    refuses(await host.get("/sessions/s", "b", owner_id="nobody"), 422, "owner_id")


async def test_W16_the_database_is_away(caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(retries=0, connect_timeout_seconds=2)
    away = SessionDatabase.connect("postgresql://nobody@127.0.0.1:1/nothing", settings=settings)
    async with hosting(away) as host:
        for path in ("/sessions", "/sessions/s", "/sessions/stats", "/usage", "/ready"):
            answer = await host.get(path)
            problem = refuses(answer, 503)
            assert "127.0.0.1" not in answer.text
            assert answer.headers["retry-after"] == "5"
            assert path == "/ready" or problem["may_have_written"] is False
        posted = await host.ask("POST", "/ingest", json={"items": [{"kind": "touch", "session_id": "s"}]})
        refuses(posted, 503)
        assert (await host.found("/health", None)) == {"status": "ok"}


async def test_W17_the_host_refuses(host: Host, session_database: SessionDatabase) -> None:
    async with noted(session_database) as sent:
        for path in ("/sessions", "/sessions/s", "/sessions?range=90d", "/runs?limit=x"):
            answer = await host.get(path, "nobody")
            assert (answer.status_code, answer.json()) == (401, {"detail": "who are you?"})
    assert sent == []
    assert "nobody" not in VIEWERS
    assert isinstance(VIEWERS["a"], Viewer)
