"""The routes that change one session."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from session_lifecycle import SessionDatabase, Touch
from support.usage import A
from support.web import AGENT, D1, D2, B, Host, hosting, refuses

NOW = datetime.now(UTC)


@pytest_asyncio.fixture
async def host(session_database: SessionDatabase) -> AsyncIterator[Host]:
    touch = Touch(
        session_id="s", user_id=A, dataset_id=D1, title="old", metadata={"a": 1}, tags={"t": "u"}, agent_name="coder"
    )
    await session_database.lifecycle.record([touch, Touch(session_id="of agent", user_id=AGENT)])
    async with hosting(session_database) as found:
        yield found


async def patched(host: Host, body: Any, session_id: str = "s", user: str = "a") -> dict[str, Any]:
    answer = await host.ask("PATCH", f"/sessions/{session_id}", user, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_patch_replaces_what_it_names(host: Host) -> None:
    before = await host.found("/sessions/s")
    after = await patched(host, {"title": "new", "tags": {"v": "w"}})
    changed = {"title": "new", "tags": {"v": "w"}}
    assert after == {name: value for name, value in before.items() if name in after} | changed
    emptied = await patched(host, {"title": None, "metadata": None, "tags": None, "dataset_id": None})
    assert (emptied["title"], emptied["metadata"], emptied["tags"], emptied["dataset_id"]) == (None, {}, {}, None)
    assert emptied["agent_name"] == "coder"
    assert await patched(host, {}) == emptied


async def test_a_session_is_shared_through_a_dataset_of_the_writer_only(host: Host) -> None:
    refuses(await host.ask("PATCH", "/sessions/s", json={"dataset_id": str(D2)}), 403)
    assert (await patched(host, {"dataset_id": None}))["dataset_id"] is None
    refuses(await host.get("/sessions/s", "b"), 404)
    assert (await patched(host, {"dataset_id": str(D1)}))["dataset_id"] == str(D1)
    assert (await host.found("/sessions/s", "b"))["session_id"] == "s"
    assert (await patched(host, {"dataset_id": str(D2)}, user="auditor"))["dataset_id"] == str(D2)


async def test_the_agents_sessions_may_be_changed(host: Host) -> None:
    assert (await patched(host, {"title": "t"}, "of%20agent"))["user_id"] == str(AGENT)


async def test_the_owner_may_be_named(host: Host, session_database: SessionDatabase) -> None:
    await session_database.lifecycle.ensure_and_touch_session("s", AGENT)
    assert (await patched(host, {"title": "own"}))["user_id"] == str(A)
    assert (await patched(host, {"title": "agent"}, f"s?owner_id={AGENT}"))["user_id"] == str(AGENT)
    refuses(await host.ask("PATCH", f"/sessions/s?owner_id={B}", json={"title": "no"}), 404)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"title": 5}', "title"),
        (b'{"tags": {"a": 5}}', "tags.a"),
        (b'{"dataset_id": "x"}', "dataset_id"),
        (b'{"status": "completed"}', "status"),
        (b'{"metadata": []}', "metadata"),
        (b"[]", "body"),
        (b"{", "body"),
        (b"", "body"),
        (b'{"title": "\\u0000"}', "title"),
        (b"[" * 100_000, "body"),
        (b'{"title": "\xff"}', "body"),
    ],
)
async def test_a_body_that_is_refused_names_the_field(host: Host, body: bytes, field: str) -> None:
    answer = await host.ask("PATCH", "/sessions/s", content=body, headers={"Content-Type": "application/json"})
    problem = refuses(answer, 422, field)
    assert problem["expected"]
    assert (await host.found("/sessions/s"))["title"] == "old"


async def test_a_body_has_a_bound_and_a_type(host: Host) -> None:
    large = {"title": "x" * 300_000}
    for method, path in [("PATCH", ""), ("POST", "/end"), ("POST", "/annotations"), ("POST", "/reopen")]:
        refuses(await host.ask(method, f"/sessions/s{path}", json=large), 413)
        text = {"Content-Type": "text/plain"}
        refuses(await host.ask(method, f"/sessions/s{path}", content=b"{}", headers=text), 415)


async def test_the_first_end_stays(host: Host) -> None:
    first = (await host.ask("POST", "/sessions/s/end", json={"status": "failed", "reason": "why"})).json()
    assert list(first)[:4] == ["session_id", "status", "ended_at", "already_ended"]
    assert (first["status"], first["already_ended"], first["outcome"]) == ("failed", False, "ended")
    second = (await host.ask("POST", "/sessions/s/end")).json()
    assert second == first | {"already_ended": True, "outcome": "already_ended"}
    assert (await host.found("/sessions/s"))["end_reason"] == "why"
    refuses(await host.ask("POST", "/sessions/s/end", json={"status": "running"}), 422, "status")
    later = (NOW + timedelta(days=1)).isoformat()
    refuses(await host.ask("POST", "/sessions/of%20agent/end", json={"at": later}), 422, "at")


async def test_a_session_is_reopened(host: Host) -> None:
    await host.ask("POST", "/sessions/s/end")
    first = (await host.ask("POST", "/sessions/s/reopen")).json()
    assert (first["status"], first["ended_at"], first["outcome"]) == ("running", None, "reopened")
    second = (await host.ask("POST", "/sessions/s/reopen", json={})).json()
    assert (second["already_running"], second["outcome"]) == (True, "already_running")


async def test_an_annotation_replaces_the_one_of_its_name(host: Host, session_database: SessionDatabase) -> None:
    for score in (0.5, 0.75):
        made = await host.ask("POST", "/sessions/s/annotations", json={"name": "quality", "score": score})
        assert (made.status_code, made.json()["score"], made.json()["annotator"]) == (200, score, None)
    [kept] = await session_database.lifecycle.list_annotations("s", A)
    assert kept.score == 0.75
    refuses(await host.ask("POST", "/sessions/s/annotations", json={"score": 1}), 422, "name")
