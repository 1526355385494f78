"""Events of a run in other sessions than the run's: deleting, recording again and reconciling keep every sum true."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from session_lifecycle import Run, SessionDatabase, UsageEvent, Viewer
from session_lifecycle.models import LedgerEvent, UsageEventFilters
from support.stored_rows import deadlocks

A = UUID(int=1)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
AUDITOR = Viewer.auditor()
LONG_AGO = NOON - timedelta(days=4000)


def run(session_id: str | None, run_id: str = "r", **more: Any) -> Run:
    fields = {"run_id": run_id, "user_id": A, "session_id": session_id, "started_at": NOON, "reported_cost_usd": 10}
    return Run(**{**fields, "model": "m", **more})


def used(session_id: str, key: str, cost_usd: int = 1, run_id: str = "r", **more: Any) -> UsageEvent:
    fields = {"tokens_in": 5, "model": "m", "at": NOON, "cost_usd": cost_usd}
    return UsageEvent(session_id=session_id, user_id=A, idempotency_key=key, run_id=run_id, **{**fields, **more})


async def spent(db: SessionDatabase, viewer: Viewer = AUDITOR) -> Decimal:
    """What all sessions cost; every sum agrees with the ledger."""
    assert (await db.maintenance.reconcile()).mismatches == []
    return (await db.lifecycle.aggregate_stats(viewer)).total_spend_usd


async def ledger(db: SessionDatabase) -> list[LedgerEvent]:
    return (await db.activity.list_usage_events(UsageEventFilters(viewer=AUDITOR))).events


async def split(db: SessionDatabase) -> None:
    """The run is in s1 and reports 10; one event of it, of 1, was counted in s2 before the run was known."""
    await db.lifecycle.record([used("s2", "a")])
    await db.lifecycle.record([run("s1")])
    assert await spent(db) == 10


@pytest.mark.parametrize("again", ["s3", "s1", None])
async def test_X05_a_run_recorded_again_does_not_count_its_events_twice(
    session_database: SessionDatabase, again: str | None
) -> None:
    db = session_database
    await split(db)
    assert await db.maintenance.delete_session("s1", A)
    assert await spent(db) == 1
    await db.lifecycle.record([run(again)])
    assert await spent(db) == 10
    # The event that comes again, and one more, are taken off what the run reports.
    await db.lifecycle.record([used("s2", "a"), used("s2", "b", 3)])
    assert await spent(db) == 10


async def test_R29_X05_a_run_of_another_session_that_loses_events_reports_them_itself(
    session_database: SessionDatabase,
) -> None:
    db = session_database
    await split(db)
    assert await db.maintenance.delete_session("s2", A)
    assert await spent(db) == 10
    [stats] = await db.lifecycle.cost_by_model(AUDITOR)
    assert stats.cost_usd == 10
    assert stats.tokens_in == 0
    await db.lifecycle.record([run("s1")])
    assert await spent(db) == 10


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(used("s1", "k"), used("s1", "k", 2, "other", revision=1), id="in the session of the key"),
        pytest.param(
            used("s1", "k", key_scope="user"),
            used("s2", "k", 2, "other", key_scope="user", revision=1),
            id="by a key of the user's scope",
        ),
        # The event follows its run into s1, where its key holds an event of another run.
        pytest.param(used("s1", "k"), used("s2", "k", 2, "in s1", revision=1), id="by following its run"),
    ],
)
async def test_R04_R06_a_run_that_loses_an_event_to_another_run_reports_it_itself(
    session_database: SessionDatabase, first: UsageEvent, second: UsageEvent
) -> None:
    db = session_database
    await db.lifecycle.record([run("s1"), run("s1", "in s1", reported_cost_usd=None), first])
    assert await spent(db) == 10
    await db.lifecycle.record([second])
    assert await spent(db) == 12
    [adjustment] = [row for row in await ledger(db) if row.key_scope == "run"]
    assert (adjustment.run_id, adjustment.cost_usd) == ("r", Decimal(10))


@pytest.mark.parametrize("order", [1, -1])
async def test_R04_an_event_that_follows_its_run_to_its_key_in_the_same_batch(
    session_database: SessionDatabase, order: int
) -> None:
    db = session_database
    await db.lifecycle.record([run("s1", reported_cost_usd=None)])
    follows, stays = used("s2", "k", revision=1), used("s1", "k", 2, "other")
    receipts = await db.lifecycle.record([follows, stays][::order])
    outcomes = {1: ["applied", "superseded"], -1: ["applied", "replaced"]}
    assert [receipt.outcome for receipt in receipts] == outcomes[order]
    assert await spent(db) == 1
    assert [(event.session_id, event.run_id, event.revision) for event in await ledger(db)] == [("s1", "r", 1)]


async def idle_for_long(db: SessionDatabase, *sessions: str) -> None:
    statement = (
        "UPDATE session_lifecycle.session_records SET started_at = :at, last_activity_at = :at WHERE session_id = "
    )
    async with db.engine.begin() as connection:
        for session_id in sessions:
            await connection.execute(text(statement + ":id"), {"at": LONG_AGO, "id": session_id})


@pytest.mark.parametrize("pruned", ["s1", "s2"])
async def test_X05_pruning_keeps_what_other_sessions_need(session_database: SessionDatabase, pruned: str) -> None:
    db = session_database
    await split(db)
    await idle_for_long(db, pruned)
    report = await db.maintenance.prune_sessions(timedelta(days=3000))
    assert report.sessions == 1
    assert await spent(db) == (1 if pruned == "s1" else 10)
    await db.lifecycle.record([run("s3"), used("s2", "a", at=None)])
    assert await spent(db) == 10


async def test_X05_a_run_outside_a_session_keeps_its_events_when_it_is_pruned(
    session_database: SessionDatabase,
) -> None:
    db = session_database
    waiting = run(None, parent_run_id="nobody", started_at=LONG_AGO)
    await db.lifecycle.record([used("s2", "a"), waiting])
    report = await db.maintenance.prune_sessions(timedelta(days=3000))
    assert (report.sessions, report.runs) == (0, 1)
    await db.lifecycle.record([run("s3")])
    assert await spent(db) == 10


async def test_X05_what_is_kept_goes_with_the_last_event(session_database: SessionDatabase) -> None:
    db = session_database
    await split(db)
    await db.maintenance.delete_session("s1", A)
    await db.maintenance.delete_session("s2", A)
    async with db.engine.connect() as connection:
        for table in ("session_runs", "session_usage_events", "session_model_usage"):
            rows = await connection.execute(text(f"SELECT * FROM session_lifecycle.{table}"))
            assert list(rows) == []


@pytest.mark.parametrize("batches", [1, 1000])
async def test_X05_anonymising_keeps_what_was_spent(
    session_database: SessionDatabase, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    db = session_database
    monkeypatch.setattr("session_lifecycle.maintenance.erase.MAX_BATCH", batches)
    await split(db)
    await db.lifecycle.record([used("s3", "c", 2, run_id="q"), used("s0", "d", run_id="x")])
    await db.lifecycle.record([run("s2", "q")])
    before = await spent(db)
    receipt = await db.maintenance.erase_user(A, usage="anonymise")
    assert receipt.sessions == 4
    assert await spent(db) == before
    assert await spent(db, Viewer.of_users([A])) == 0
    async with db.engine.connect() as connection:
        named = await connection.execute(text("SELECT run_id FROM session_lifecycle.session_runs"))
        assert list(named) == []


WRONG = {
    "an adjustment is too high": "UPDATE {events} SET cost_usd = 42 WHERE key_scope = 'run'",
    "an adjustment is missing": "DELETE FROM {events} WHERE key_scope = 'run'",
    "an adjustment is in the wrong session": "UPDATE {events} SET session_id = 's2' WHERE key_scope = 'run'",
    "an adjustment has no run": "DELETE FROM {runs}",
    "the sums of a run are gone": "UPDATE {runs} SET events_cost_usd = 0, events_tokens_in = 0",
    "the sums of a run are too high": "UPDATE {runs} SET events_cost_usd = 7, events_tokens_in = 70",
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
async def test_X05_reconcile_finds_and_mends_adjustments_and_run_figures(
    session_database: SessionDatabase, wrong: str
) -> None:
    db = session_database
    await split(db)
    names = {"events": "session_lifecycle.session_usage_events", "runs": "session_lifecycle.session_runs"}
    async with db.engine.begin() as connection:
        await connection.execute(text(wrong.format(**names)))
    found = await db.maintenance.reconcile()
    assert found.mismatch_count > 0
    assert {one.run_id for one in found.mismatches} & {"r"}
    for _ in range(2):
        # A repaired sum can show that another one is wrong.
        await db.maintenance.reconcile(repair=True)
    await db.lifecycle.record([run("s1")])
    assert await spent(db) == 10


async def test_X05_R10_deleting_beside_recording_never_deadlocks(session_database: SessionDatabase) -> None:
    """Sessions whose runs have events in each other are deleted and recorded at the same time."""
    db = session_database

    async def record(number: int) -> None:
        for turn in range(8):
            here, there = f"s{(number + turn) % 4}", f"s{(number + turn + 1) % 4}"
            name = f"r{number % 3}"
            await db.lifecycle.record([used(there, f"{number} {turn}", run_id=name), run(here, name)])

    async def delete(number: int) -> None:
        for turn in range(8):
            await db.maintenance.delete_session(f"s{(number + turn) % 4}", A)

    await asyncio.gather(*(record(number) for number in range(5)), *(delete(number) for number in range(3)))
    assert await deadlocks(db) == 0
    assert (await db.maintenance.reconcile()).mismatches == []
