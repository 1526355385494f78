"""Every route, tried without a name and as a stranger. A route without a row here fails the test."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any

import httpx
import pytest
import pytest_asyncio
from fastapi import Header
from sqlalchemy import text

from session_lifecycle import Message, Run, SessionDatabase, Step, Touch, UsageEvent, Viewer
from session_lifecycle.entities import metadata
from session_lifecycle.web.dashboard import dashboard_app
from session_lifecycle.web.health import health_router
from session_lifecycle.web.reading import session_router
from support.usage import A
from support.web import D1, PREFIX, Host, host_app, hosting, refuses, viewer

SECRET = "hidden"
NOW = datetime.now(UTC)
NOTHING: list[Any] = []
# What a stranger gets from each route: the status, and the fields that must be so.
PAGE = {"total": 0, "has_more": False, "next_cursor": None}
STRANGERS: dict[tuple[str, str], tuple[int, Any]] = {
    ("GET", "/sessions"): (200, PAGE | {"sessions": []}),
    ("GET", "/sessions/with-agent-info"): (200, PAGE | {"sessions": []}),
    ("GET", "/sessions/stats"): (200, {"sessions": 0, "total_spend_usd": 0.0, "tokens_total": 0}),
    ("GET", "/sessions/cost-by-model"): (200, NOTHING),
    ("GET", "/sessions/cost-by-user-agent"): (200, NOTHING),
    ("GET", "/sessions/{session_id}"): (404, None),
    ("GET", "/sessions/{session_id}/threads"): (404, None),
    ("GET", "/sessions/{session_id}/messages"): (404, None),
    ("GET", "/sessions/{session_id}/runs"): (404, None),
    ("GET", "/sessions/{session_id}/usage"): (404, None),
    ("GET", "/summaries"): (200, PAGE | {"sessions": []}),
    ("GET", "/runs"): (200, PAGE | {"runs": []}),
    ("GET", "/models"): (200, NOTHING),
    ("GET", "/clients"): (200, NOTHING),
    ("GET", "/agents"): (200, NOTHING),
    ("GET", "/usage"): (200, {"has_more": False}),
    ("GET", "/telemetry"): (200, {"runs_count": 0, "users_count": 0}),
    ("GET", "/events"): (200, None),
    ("PATCH", "/sessions/{session_id}"): (404, None),
    ("POST", "/sessions/{session_id}/end"): (404, None),
    ("POST", "/sessions/{session_id}/reopen"): (404, None),
    ("POST", "/sessions/{session_id}/annotations"): (404, None),
    ("POST", "/ingest"): (200, {"refused": 1}),
}
OPEN = {("GET", "/health"), ("GET", "/ready")}
BODIES: dict[tuple[str, str], Any] = {
    ("PATCH", "/sessions/{session_id}"): {"title": "taken"},
    ("POST", "/sessions/{session_id}/end"): {"status": "failed"},
    ("POST", "/sessions/{session_id}/reopen"): {},
    ("POST", "/sessions/{session_id}/annotations"): {"name": "quality"},
    ("POST", "/ingest"): {"items": [{"kind": "end", "session_id": SECRET, "user_id": str(A), "status": "failed"}]},
}
WRITING = set(BODIES)


@pytest_asyncio.fixture
async def host(session_database: SessionDatabase) -> AsyncIterator[Host]:
    await session_database.lifecycle.record(
        [
            Touch(session_id=SECRET, user_id=A, dataset_id=D1, agent_name=SECRET, title=SECRET, at=NOW),
            Run(
                run_id=SECRET, user_id=A, session_id=SECRET, client=SECRET, model=SECRET, started_at=NOW, ended_at=NOW,
                status="completed",
            ),
            Step(step_id=SECRET, run_id=SECRET, user_id=A, kind="tool", started_at=NOW),
            Message(message_id=SECRET, user_id=A, session_id=SECRET, role="user", content=SECRET, created_at=NOW),
            UsageEvent(session_id=SECRET, user_id=A, model=SECRET, tokens_in=1, cost_usd=1, run_id=SECRET, at=NOW),
        ]
    )  # fmt: skip
    async with hosting(session_database) as found:
        yield found


async def everything(db: SessionDatabase) -> list[str]:
    """The rows of all our tables, as text."""
    async with db.engine.connect() as connection:
        return [
            str(row[0])
            for table in metadata.sorted_tables
            for row in await connection.execute(text(f"SELECT t::text FROM {table.fullname} t ORDER BY 1"))
        ]


def routes(host: Host) -> set[tuple[str, str]]:
    paths = host.app.openapi()["paths"]
    return {(method.upper(), path.removeprefix(PREFIX)) for path, methods in paths.items() for method in methods}


async def tried(host: Host, route: tuple[str, str], user: str | None) -> Any:
    method, path = route
    more = {"json": BODIES[route]} if route in BODIES else {}
    return await host.ask(method, path.format(session_id=SECRET), user, **more)


async def test_every_route_has_a_row(host: Host) -> None:
    assert routes(host) == {*STRANGERS, *OPEN}
    assert all(method == "GET" for method, _ in routes(host) - WRITING)


@pytest.mark.parametrize("route", STRANGERS, ids=" ".join)
async def test_a_route_asks_the_host_first_and_shows_a_stranger_nothing(
    host: Host, session_database: SessionDatabase, route: tuple[str, str]
) -> None:
    before = await everything(session_database)
    assert (await tried(host, route, None)).status_code == 401
    answer = await tried(host, route, "stranger")
    status, fields = STRANGERS[route]
    if status == 404:
        refuses(answer, 404)
    else:
        assert answer.status_code == status, answer.text
        if route == ("GET", "/events"):
            assert "event:" not in answer.text
        else:
            found = answer.json()
            assert found == fields if fields == [] else found == found | fields
    assert SECRET not in answer.text
    assert await everything(session_database) == before


@pytest.mark.parametrize("route", sorted({*STRANGERS, *OPEN} - WRITING), ids=" ".join)
async def test_a_head_is_answered_as_a_get_but_opens_no_stream(host: Host, route: tuple[str, str]) -> None:
    _, path = route
    head = ("HEAD", path)
    if path == "/events":
        assert (await tried(host, head, "a")).status_code == 405
        return
    for user in ("a", "stranger", None):
        found, full = await tried(host, head, user), await tried(host, route, user)
        assert (found.status_code, found.headers["content-type"]) == (full.status_code, full.headers["content-type"])


async def test_a_parameter_that_the_hosts_dependency_needs_is_refused_by_name(
    session_database: SessionDatabase,
) -> None:
    def needs(x_tenant: Annotated[int, Header()]) -> Viewer:
        raise AssertionError(x_tenant)

    app = host_app(session_database, needs)
    app.mount("/pages", dashboard_app(session_database, viewer=needs, writable=True))
    before = await everything(session_database)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://host") as client:
        host = Host(app, client)
        for headers, found in ({}, "nothing"), ({"X-Tenant": "x"}, "'x'"):
            for route in STRANGERS:
                method, path = route
                more = {"json": BODIES[route]} if route in BODIES else {}
                answer = await host.ask(method, path.format(session_id=SECRET), None, headers=headers, **more)
                assert f"x-tenant: got {found}" in refuses(answer, 422, "x-tenant")["detail"], route
            for method, path in (
                ("GET", "/"),
                ("GET", "/session?id=s"),
                ("POST", "/session/end?id=s"),
                ("POST", "/preferences"),
            ):
                page = await client.request(method, f"/pages{path}", headers=headers)
                assert (page.status_code, "<code>x-tenant</code>" in page.text) == (422, True), path
    assert await everything(session_database) == before


@pytest.mark.parametrize(
    "route", sorted(set(STRANGERS) - WRITING - {("GET", "/models"), ("GET", "/clients")}), ids=" ".join
)
async def test_a_route_shows_the_owner_what_it_hides_from_a_stranger(host: Host, route: tuple[str, str]) -> None:
    own, foreign = await tried(host, route, "a"), await tried(host, route, "stranger")
    assert own.status_code == 200
    assert own.content != foreign.content


@pytest.mark.parametrize("route", sorted(WRITING), ids=" ".join)
async def test_whoever_only_reads_a_session_may_not_write_it(
    host: Host, session_database: SessionDatabase, route: tuple[str, str]
) -> None:
    assert (await host.get(f"/sessions/{SECRET}", "b")).status_code == 200
    before = await everything(session_database)
    answer = await tried(host, route, "b")
    if route == ("POST", "/ingest"):
        [result] = answer.json()["results"]
        assert (result["outcome"], result["status"]) == ("refused", 403)
    else:
        refuses(answer, 403)
    assert await everything(session_database) == before


async def test_health_and_readiness_ask_for_no_name(host: Host) -> None:
    for _, path in OPEN:
        answer = await host.get(path, None)
        assert (answer.status_code, SECRET in answer.text) == (200, False)


async def test_the_reading_router_exposes_no_write(session_database: SessionDatabase) -> None:
    from fastapi import FastAPI

    app = FastAPI()
    app.include_router(session_router(session_database, viewer=viewer))
    methods = {method for methods in app.openapi()["paths"].values() for method in methods}
    assert methods == {"get"}
    alone = FastAPI()
    alone.include_router(health_router(session_database))
    assert set(alone.openapi()["paths"]) == {"/health", "/ready"}
