"""`POST /ingest`: any mix of items, an outcome for each, idempotent, bounded."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from session_lifecycle import SessionDatabase
from support.statements import noted
from support.usage import A
from support.web import AGENT, D1, D2, B, C, Host, hosting, refuses

AT = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
MIX: list[dict[str, Any]] = [
    {"kind": "touch", "session_id": "s", "agent_name": "coder", "at": AT},
    {"kind": "run", "run_id": "r", "session_id": "s", "started_at": AT},
    {"kind": "step", "step_id": "t", "run_id": "r", "step_kind": "tool", "started_at": AT},
    {"kind": "message", "message_id": "m", "session_id": "s", "role": "user", "content": "hello", "created_at": AT},
    {
        "kind": "usage", "session_id": "s", "model": "m", "tokens_in": 10, "cost_usd": 0.1, "idempotency_key": "k",
        "usage_kind": "embedding", "at": AT,
    },
    {"kind": "end", "session_id": "s", "status": "completed"},
]  # fmt: skip


@pytest_asyncio.fixture
async def host(session_database: SessionDatabase) -> AsyncIterator[Host]:
    async with hosting(session_database, most_items=20, most_bytes=20_000) as found:
        yield found


async def ingested(host: Host, items: list[Any], user: str = "a") -> list[dict[str, Any]]:
    answer = await host.ask("POST", "/ingest", user, json={"items": items})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["refused"] == sum(one["outcome"] == "refused" for one in found["results"])
    results: list[dict[str, Any]] = found["results"]
    return results


async def test_a_mix_is_written_in_one_transaction_and_again_changes_nothing(
    host: Host, session_database: SessionDatabase
) -> None:
    await session_database.check()
    async with noted(session_database) as sent:
        results = await ingested(host, MIX)
    assert [one["outcome"] for one in results] == ["created", "created", "created", "created", "applied", "ended"]
    assert results[4]["cost_usd"] == results[4]["session_cost_usd"] == 0.1
    assert len([one for one in sent if "record_v1" in one[0]]) == 1
    again = [one["outcome"] for one in await ingested(host, MIX)]
    assert again == ["terminal", "unchanged", "unchanged", "unchanged", "duplicate", "already_ended"]
    found = await host.found("/sessions/s")
    assert (found["user_id"], found["tokens_in"], found["tool_calls"], found["msg_count"]) == (str(A), 10, 1, 1)
    [event] = (await host.found("/sessions/s/usage"))["events"]
    assert (event["kind"], event["cost_usd"]) == ("embedding", 0.1)


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"kind": "usage", "session_id": "s", "model": "m"}, "idempotency_key"),
        ({"kind": "usage", "session_id": "s", "tokens_in": -1, "idempotency_key": "k"}, "tokens_in"),
        ({"kind": "step", "step_id": "t", "run_id": "r", "started_at": AT}, "step_kind"),
        ({"kind": "usage", "session_id": "s", "usage_kind": "x", "idempotency_key": "k"}, "usage_kind"),
        ({"kind": "reopen", "session_id": "s"}, "kind"),
        ({"kind": []}, "kind"),
        ({}, "kind"),
        ({"kind": "touch", "session_id": "s", "cls": 1}, "cls"),
        ({"kind": "touch", "session_id": "s", "self": 1}, "self"),
        ({"kind": "touch", "session_id": "s", "user_id": None}, "user_id"),
        ({"kind": "touch", "session_id": "\x00"}, "session_id"),
        ({"kind": "touch", "session_id": "s", "at": "2126-01-01T00:00:00Z"}, "at"),
    ],
)
async def test_an_item_that_is_refused_keeps_no_other_from_being_written(
    host: Host, item: dict[str, Any], field: str
) -> None:
    before, refused, after = await ingested(host, [MIX[0], item, {**MIX[0], "session_id": "t"}])
    assert (before["outcome"], after["outcome"]) == ("created", "created")
    assert (refused["outcome"], refused["status"], refused["field"]) == ("refused", 422, field)
    assert refused["expected"] in refused["detail"]


async def test_items_of_others_are_refused(host: Host) -> None:
    items: list[dict[str, Any]] = [
        {**MIX[0], "user_id": str(B)},
        {**MIX[0], "user_id": str(C)},
        {**MIX[0], "user_id": str(AGENT)},
        {**MIX[0], "session_id": "x", "dataset_id": str(D2)},
        {**MIX[0], "session_id": "y", "dataset_id": str(D1)},
    ]
    results = await ingested(host, items)
    assert [one.get("status") for one in results] == [403, 403, None, 403, None]
    assert [one.get("field") for one in results] == ["user_id", "user_id", None, "dataset_id", None]
    assert (await host.found("/sessions", "b", range="all"))["sessions"][0]["session_id"] == "y"
    assert [one["outcome"] for one in await ingested(host, items[:2], "auditor")] == ["created", "created"]
    [nobodys] = await ingested(host, MIX[:1], "auditor")
    assert (nobodys["outcome"], nobodys["field"]) == ("refused", "user_id")


async def test_a_request_has_bounds(host: Host) -> None:
    touches = [{"kind": "touch", "session_id": f"s{number}"} for number in range(21)]
    refuses(await host.ask("POST", "/ingest", json={"items": touches}), 413, "items")
    assert len(await ingested(host, touches[:20])) == 20
    refuses(await host.ask("POST", "/ingest", json={"items": [{"kind": "touch", "session_id": "x" * 20_000}]}), 413)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(10_000):
            yield b" " * 1_000
            sent.append(1)

    sent: list[int] = []
    json_type = {"Content-Type": "application/json"}
    refuses(await host.ask("POST", "/ingest", content=endless(), headers=json_type), 413)
    assert await ingested(host, []) == []
    for body in (b"[]", b"{}", b'{"items": 5}', b'{"items": [5]}', b"nothing", b'{"items": [], "more": 1}'):
        answer = await host.ask("POST", "/ingest", content=body, headers=json_type)
        assert answer.status_code == 422, body
    refuses(await host.ask("POST", "/ingest", content=b"items=1", headers={"Content-Type": "text/plain"}), 415)


async def test_a_refusal_of_the_database_is_found_among_many(host: Host) -> None:
    ahead = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    items = [{"kind": "touch", "session_id": f"s{number}"} for number in range(20)]
    for number in (3, 4, 17):
        items[number]["at"] = ahead
    results = await ingested(host, items)
    assert [number for number, one in enumerate(results) if one["outcome"] == "refused"] == [3, 4, 17]
    assert {one["field"] for one in results if one["outcome"] == "refused"} == {"at"}
    assert (await host.found("/sessions"))["total"] == 17
    assert UUID((await host.found("/sessions"))["sessions"][0]["user_id"]) == A


async def test_R26_a_text_that_javascript_has_cut_keeps_no_item_from_being_written(host: Host) -> None:
    lone = "\ud83d"
    message = {"kind": "message", "session_id": "s", "message_id": "m", "role": "user"}
    deep: Any = []
    for _ in range(400):
        deep = [deep]
    items = [
        {"kind": "touch", "session_id": "s"},
        {**message, "content": f"cut {lone}", "created_at": datetime.now(UTC).isoformat()},
        {**message, "message_id": "deep", "content": deep, "created_at": datetime.now(UTC).isoformat()},
        {"kind": "touch", "session_id": lone},
        {"kind": "touch", "session_id": "s", lone: 1},
    ]
    of_json = {"Content-Type": "application/json"}
    answer = await host.ask("POST", "/ingest", content=json.dumps({"items": items}), headers=of_json)
    results = answer.json()["results"]
    assert [one["outcome"] for one in results] == ["created", "created", "created", "refused", "refused"]
    assert results[3]["field"] == "session_id"
    [first, _] = (await host.found("/sessions/s/messages"))["messages"]
    assert first["content"] == "cut \N{REPLACEMENT CHARACTER}"
    comment = json.dumps({"name": "quality", "comment": lone})
    refuses(await host.ask("POST", "/sessions/s/annotations", content=comment, headers=of_json), 422, "comment")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ('"kind": "usage", "idempotency_key": "k", "cost_usd": NaN', "cost_usd"),
        ('"kind": "usage", "idempotency_key": "k", "tokens_in": 1' + "0" * 5_000, "tokens_in"),
        ('"kind": "usage", "idempotency_key": "k", "tokens_in": 1e3', "tokens_in"),
        ('"kind": "touch", "metadata": {"a": 1' + "0" * 5_000 + "}", "metadata"),
        ('"kind": "touch", "metadata": {"a": Infinity}', "metadata"),
        ('"kind": "touch", "metadata": ' + '{"a": ' * 100 + "1" + "}" * 100, "metadata"),
    ],
)
async def test_numbers_and_nesting_that_json_allows_are_refused_by_field(host: Host, fields: str, field: str) -> None:
    content = '{"items": [{"session_id": "s", ' + fields + "}]}"
    answer = await host.ask("POST", "/ingest", content=content, headers={"Content-Type": "application/json"})
    if answer.status_code != 422:  # the reader of JSON may refuse the whole
        [result] = answer.json()["results"]
        assert (result["outcome"], result["field"]) == ("refused", field)
    assert (await host.found("/sessions"))["total"] == 0
