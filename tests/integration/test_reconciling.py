"""Reconciling: every total beside the ledger, told where it differs, put right where that is asked for."""

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import End, InvalidValueError, Mismatch, SessionDatabase, Touch, UsageEvent
from stored_rows import ask, store_run

A, B = UUID(int=1), UUID(int=2)
NOW = datetime.now(UTC)


async def live(db: SessionDatabase, user: UUID = A) -> None:
    """Every kind of event: revised, unpriced, unmeasured, failed, late, and without a model."""
    await db.lifecycle.record(
        [
            UsageEvent("s", user, "gpt-4o", 10, 5, Decimal("0.1"), idempotency_key="k", cache_read_tokens=3),
            UsageEvent("s", user, "gpt-4o-mini", 20, 5, 2, idempotency_key="k", revision=1, reasoning_tokens=2),
            UsageEvent("s", user, "unpriced", 7),
            UsageEvent("s", user, measured=False),
            UsageEvent("s", user, errored=True),
            UsageEvent("s", user, "only named"),
            UsageEvent("s", user, "only named", errored=True, idempotency_key="named"),
            UsageEvent("s", user, None, 1, cost_usd=Decimal("1e-12")),
            UsageEvent("t", user, "gpt-4o", 1, cost_usd=1),
            Touch("u", user),
            End("t", user, "failed"),
            UsageEvent("t", user, "gpt-4o", 50, cost_usd=Decimal("0.7")),
        ]
    )


def told(mismatch: Mismatch) -> tuple[Any, ...]:
    return (
        mismatch.session_id or mismatch.run_id,
        mismatch.model,
        mismatch.field,
        mismatch.found,
        mismatch.expected,
    )


async def test_what_was_written_by_us_agrees(session_database: SessionDatabase) -> None:
    for user in (A, B):
        await live(session_database, user)
    report = await session_database.maintenance.reconcile()
    assert (report.sessions_looked_at, report.mismatch_count, report.mismatches, report.repaired) == (6, 0, [], 0)


async def test_what_differs_is_told_and_put_right(session_database: SessionDatabase) -> None:
    db = session_database
    await live(db)
    await store_run(db, A, "r", NOW, session_id="s", events_tokens_in=8)
    await db.lifecycle.record([UsageEvent("t", A, "m", 4, 2, run_id="unknown")])
    await ask(db, "UPDATE session_usage_events SET run_id = 'r' WHERE session_id = 's' AND model = 'unpriced'")
    good = await ask(db, "SELECT * FROM session_records ORDER BY 1, 2")
    await ask(db, "UPDATE session_records SET tokens_in = 1, cost_usd = cost_usd + 3 WHERE session_id = 's'")
    await ask(db, "UPDATE session_records SET late_cost_usd = 9, late_events = 5 WHERE session_id = 't'")
    await ask(db, "UPDATE session_model_usage SET events = 8 WHERE model = 'gpt-4o-mini'")
    await ask(db, "DELETE FROM session_model_usage WHERE model = 'unpriced'")
    await ask(
        db, "INSERT INTO session_model_usage (user_id, session_id, model, tokens_out) VALUES (:a, 'u', 'x', 2)", a=A
    )
    report = await db.maintenance.reconcile()
    assert sorted(map(told, report.mismatches), key=str) == sorted(
        [
            ("s", None, "tokens_in", 1, 28),
            ("s", None, "cost_usd", Decimal("5.000000000001"), Decimal("2.000000000001")),
            ("t", None, "late_cost_usd", 9, Decimal("0.7")),
            ("t", None, "late_events", 5, 2),
            ("s", "gpt-4o-mini", "events", 8, 1),
            ("s", "unpriced", "tokens_in", None, 7),
            ("s", "unpriced", "events", None, 1),
            ("s", "unpriced", "unpriced_events", None, 1),
            ("u", "x", "tokens_out", 2, 0),
            ("r", None, "events_tokens_in", 8, 7),
        ],
        key=str,
    )
    assert (report.mismatch_count, report.repaired) == (10, 0)
    repaired = await db.maintenance.reconcile(repair=True)
    assert (repaired.mismatches, repaired.repaired) == (report.mismatches, 10)
    assert await ask(db, "SELECT * FROM session_records ORDER BY 1, 2") == good
    assert (await db.maintenance.reconcile()).mismatch_count == 0


async def test_the_report_lists_the_first_hundred(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record([Touch(f"{number:04}", A) for number in range(1200)])
    await ask(session_database, "UPDATE session_records SET tokens_in = 1")
    report = await session_database.maintenance.reconcile(repair=True)
    assert (report.sessions_looked_at, report.mismatch_count, report.repaired) == (1200, 1200, 1200)
    assert [mismatch.session_id for mismatch in report.mismatches] == [f"{number:04}" for number in range(100)]


async def test_writers_go_on_while_it_repairs(session_database: SessionDatabase) -> None:
    db = session_database

    async def write(caller: int) -> None:
        for number in range(40):
            event = UsageEvent(f"s{number % 3}", A, "m", number + 1, idempotency_key=f"{caller}", revision=number)
            await db.lifecycle.record([event, UsageEvent("s0", A, f"m{number % 2}", 1, cost_usd=1)])

    async def disturb() -> None:
        for _ in range(10):
            await ask(db, "UPDATE session_records SET tokens_in = tokens_in + 5 WHERE session_id = 's0'")
            await ask(db, "DELETE FROM session_model_usage WHERE session_id = 's0' AND model = 'm1'")
            await db.maintenance.reconcile(repair=True)

    await asyncio.gather(*(write(caller) for caller in range(4)), disturb())
    await db.maintenance.reconcile(repair=True)
    assert (await db.maintenance.reconcile()).mismatch_count == 0
    assert (await db.lifecycle.aggregate_stats(A)).total_spend_usd == 160


async def test_what_cannot_be_meant_is_refused(session_database: SessionDatabase) -> None:
    with pytest.raises(InvalidValueError, match="repair"):
        await session_database.maintenance.reconcile(repair="yes")  # type: ignore[arg-type]
