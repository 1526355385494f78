"""Erasing: everything of one session or one user, nothing of anybody else, and nothing that leads back."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import InvalidValueError, Message, Run, SessionDatabase, Touch, UsageEvent, Viewer
from stored_rows import TABLES, ask, counts, store_message, store_run, store_step

A, B, D = UUID(int=1), UUID(int=2), UUID(int=3)
NOW = datetime.now(UTC)
NOTHING = dict.fromkeys(TABLES, 0)
PRIVATE = "very private"


async def live(db: SessionDatabase, session_id: str, user: UUID) -> None:
    """A session in which everything that can be named has a name to be found by."""
    name = f"{PRIVATE} {session_id}"
    await db.lifecycle.record(
        [
            Touch(name, user, D, agent_name=PRIVATE, title=PRIVATE, metadata={PRIVATE: PRIVATE}, at=NOW),
            UsageEvent(name, user, "gpt-4o", 10, 5, 2, idempotency_key=name, details={PRIVATE: 1}, at=NOW),
            UsageEvent(name, user, None, 7, cost_usd=1, idempotency_key=name + "!", key_scope="user", at=NOW),
        ]
    )
    await store_run(db, user, name, NOW, session_id=name, name=PRIVATE, input=PRIVATE, project=PRIVATE)
    await store_step(db, user, name, PRIVATE, NOW, output=PRIVATE)
    await store_message(db, user, name, PRIVATE, run_id=name)


async def stored(db: SessionDatabase) -> str:
    """All that is stored, as text."""
    rows = [await ask(db, f"SELECT to_jsonb(t) FROM {name} t") for name in TABLES.values()]
    return str(rows)


async def test_a_session_is_deleted_with_all_that_is_its(session_database: SessionDatabase) -> None:
    for session_id, user in (("one", A), ("two", A), ("one", B)):
        await live(session_database, session_id, user)
    delete = session_database.maintenance.delete_session
    assert await delete(f"{PRIVATE} one", A) is True
    assert await delete(f"{PRIVATE} one", A) is False
    assert await delete("unknown", A) is False
    each = {"sessions": 1, "runs": 1, "steps": 1, "messages": 1, "events": 2, "model_rows": 2}
    assert await counts(session_database, user_id=A) == each
    assert await counts(session_database, user_id=B) == each


async def test_a_user_is_erased_and_nobody_else(session_database: SessionDatabase) -> None:
    for session_id, user in (("one", A), ("two", A), ("one", B)):
        await live(session_database, session_id, user)
    await store_run(session_database, A, "waiting", NOW, parent_run_id="placeholder", root_run_id=None)
    await store_run(session_database, A, "placeholder", None)
    await store_step(session_database, A, "placeholder", "1", NOW)
    before = await counts(session_database, user_id=B)
    receipt = await session_database.maintenance.erase_user(A)
    assert (receipt.sessions, receipt.runs, receipt.steps, receipt.messages, receipt.events) == (2, 3, 3, 2, 4)
    assert (receipt.user_id, receipt.pseudonym, receipt.tombstoned) == (A, None, False)
    assert abs(receipt.erased_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert await counts(session_database, user_id=A) == NOTHING
    assert await counts(session_database) == before
    again = await session_database.maintenance.erase_user(A)
    assert (again.sessions, again.runs, again.events) == (0, 0, 0)


async def test_an_anonymous_users_spend_stays_right_and_leads_nowhere(session_database: SessionDatabase) -> None:
    db = session_database
    for session_id in ("one", "two"):
        await live(db, session_id, A)
    await db.lifecycle.end_session(f"{PRIVATE} one", A, "completed")
    await db.lifecycle.record([UsageEvent(f"{PRIVATE} one", A, "gpt-4o", 3, cost_usd=4)])
    await store_run(db, A, PRIVATE, None, events_tokens_in=3)
    before = [
        await db.lifecycle.aggregate_stats(Viewer.auditor()),
        await db.lifecycle.cost_by_model(Viewer.auditor()),
        await db.lifecycle.aggregate_stats(Viewer(B, [D])),
        await db.reports.spend(Viewer.auditor()),
    ]
    receipt = await db.maintenance.erase_user(A, usage="anonymise")
    assert (receipt.sessions, receipt.runs, receipt.steps, receipt.messages, receipt.events) == (2, 2, 2, 2, 5)
    assert receipt.pseudonym not in {None, A}
    assert [
        await db.lifecycle.aggregate_stats(Viewer.auditor()),
        await db.lifecycle.cost_by_model(Viewer.auditor()),
        await db.lifecycle.aggregate_stats(Viewer(B, [D])),
        await db.reports.spend(Viewer.auditor()),
    ] == before
    assert await counts(db, user_id=A) == NOTHING
    left = await stored(db)
    assert PRIVATE not in left
    assert str(A) not in left
    assert (await db.maintenance.reconcile()).mismatch_count == 0
    sessions = await ask(db, "SELECT user_id, agent_name, title, metadata, dataset_id FROM session_records")
    assert sessions == [(receipt.pseudonym, None, None, {}, D)] * 2


async def test_one_with_a_tombstone_cannot_come_back(session_database: SessionDatabase) -> None:
    db = session_database
    for user in (A, B):
        await live(db, "one", user)
    receipt = await db.maintenance.erase_user(A, tombstone=True)
    assert (receipt.sessions, receipt.tombstoned) == (1, True)
    for item in (
        Touch("one", A),
        UsageEvent("one", A, "m", 1, run_id="r"),
        UsageEvent("one", A, "m", 1, idempotency_key="k", key_scope="user"),
        Run(run_id="r", user_id=A, started_at=NOW),
        Run(run_id="waiting", user_id=A, parent_run_id="r", started_at=NOW),
        Message(message_id="m", user_id=A, session_id="one", role="user", content="hi", created_at=NOW),
    ):
        with pytest.raises(InvalidValueError, match="erased"):
            await db.lifecycle.record([item])
    assert await counts(db, user_id=A) == NOTHING
    await live(db, "two", B)
    again = await db.maintenance.erase_user(A, tombstone=True)
    assert (again.sessions, again.tombstoned) == (0, True)


async def test_what_is_created_while_the_tombstone_is_written_is_erased_as_well(
    session_database: SessionDatabase,
) -> None:
    db = session_database
    async with db.engine.begin() as host:
        await db.bind(host).lifecycle.ensure_and_touch_session("just in time", A)
        erasing = asyncio.create_task(db.maintenance.erase_user(A, tombstone=True))
        done, _ = await asyncio.wait([erasing], timeout=0.3)
        assert not done
    assert (await erasing).sessions == 1
    assert await counts(db) == NOTHING


async def test_erasing_waits_for_a_writer(session_database: SessionDatabase) -> None:
    await live(session_database, "one", A)
    async with session_database.engine.begin() as host:
        name = f"{PRIVATE} one"
        await session_database.bind(host).lifecycle.record([UsageEvent(name, A, "m", 1, cost_usd=1)])
        erasing = asyncio.create_task(session_database.maintenance.erase_user(A))
        done, _ = await asyncio.wait([erasing], timeout=0.3)
        assert not done
    assert (await erasing).events == 3
    assert await counts(session_database) == NOTHING


async def test_a_writer_goes_on_in_a_new_session(session_database: SessionDatabase) -> None:
    async def write() -> None:
        for number in range(60):
            await session_database.lifecycle.record([UsageEvent(f"s{number % 4}", A, "m", 1, cost_usd=1)])

    async def delete(**how: Any) -> int:
        return sum([(await session_database.maintenance.erase_user(A, **how)).events for _ in range(8)])

    *_, deleted, anonymous = await asyncio.gather(write(), write(), delete(), delete(usage="anonymise"))
    left = await counts(session_database)
    # What was made anonymous is the pseudonyms' and cannot be deleted any more.
    assert left["events"] == 120 - deleted
    assert (await counts(session_database, user_id=A))["events"] == 120 - deleted - anonymous
    assert (await session_database.maintenance.reconcile()).mismatch_count == 0


async def test_what_cannot_be_meant_is_refused(session_database: SessionDatabase) -> None:
    maintenance = session_database.maintenance
    for field, call in (
        ("user_id", maintenance.erase_user("me")),
        ("usage", maintenance.erase_user(A, usage="keep")),
        ("tombstone", maintenance.erase_user(A, tombstone=1)),
        ("session_id", maintenance.delete_session("", A)),
        ("user_id", maintenance.delete_session("s", None)),
    ):
        with pytest.raises(InvalidValueError, match=field):
            await call
