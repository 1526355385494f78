"""A database clock that jumps back, as after a correction or a failover to a server whose clock is behind."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import Run, SessionDatabase, SessionStatus, UsageEvent
from session_lifecycle.models import SessionRecord
from session_lifecycle.testing import SessionClock

A = UUID(int=1)
BACK = timedelta(minutes=3)
LATE: dict[str, dict[str, Any]] = {
    "plain": {},
    "keyed": {"idempotency_key": "k"},
    "revision": {"idempotency_key": "k", "revision": 3},
    "user": {"idempotency_key": "k", "key_scope": "user"},
    "run": {"run_id": "r"},
    "untouched": {"touch": False},
}


async def record_of(db: SessionDatabase) -> SessionRecord:
    found = await db.lifecycle.get_session_row("s", A)
    assert found is not None
    return found.record


@pytest.mark.parametrize("more", LATE.values(), ids=LATE)
@pytest.mark.parametrize("batch", [1, 3])
async def test_X38_usage_after_an_end_is_frozen_although_the_clock_jumped_back(
    session_database: SessionDatabase, session_clock: SessionClock, more: dict[str, Any], batch: int
) -> None:
    db = session_database
    await db.lifecycle.record([Run(run_id="r", user_id=A, session_id="s", started_at=datetime.now(UTC))])
    await db.lifecycle.accumulate_usage("s", A, "m", 1, cost_usd=1)
    await db.lifecycle.end_session("s", A, SessionStatus.COMPLETED)
    before = await record_of(db)
    await session_clock.advance(-BACK)
    late = UsageEvent(session_id="s", user_id=A, model="m", tokens_in=5, cost_usd=2, **more)
    others = [UsageEvent(session_id=f"other {number}", user_id=A, tokens_in=1) for number in range(1, batch)]
    receipts = await db.lifecycle.record([late, *others])
    assert [receipt.outcome for receipt in receipts] == ["frozen", *["applied"] * (batch - 1)]
    after = await record_of(db)
    assert after == before.model_copy(update={"late_events": 1, "late_cost_usd": 2})
    # What was used before the end still counts, by the time that the caller names.
    assert before.ended_at is not None
    counted = late.model_copy(update={"idempotency_key": "in time", "at": before.ended_at, "revision": 0})
    [receipt] = await db.lifecycle.record([counted])
    assert receipt.outcome == "applied"
    assert (await db.maintenance.reconcile()).mismatch_count == 0


async def test_X38_late_stays_late_when_the_clock_comes_back(
    session_database: SessionDatabase, session_clock: SessionClock
) -> None:
    db = session_database
    late = UsageEvent(session_id="s", user_id=A, model="m", tokens_in=5, cost_usd=2, idempotency_key="k")
    await db.lifecycle.ensure_and_touch_session("s", A)
    await db.lifecycle.end_session("s", A, SessionStatus.FAILED)
    await session_clock.advance(-BACK)
    assert [receipt.outcome for receipt in await db.lifecycle.record([late])] == ["frozen"]
    await session_clock.advance(BACK)
    assert [receipt.outcome for receipt in await db.lifecycle.record([late])] == ["duplicate"]
    await db.lifecycle.reopen_session("s", A)
    assert [receipt.outcome for receipt in await db.lifecycle.record([late])] == ["duplicate"]
    assert ((await record_of(db)).tokens_in, (await record_of(db)).late_events) == (0, 1)


async def test_X38_a_running_session_goes_on_and_its_times_do_not_move_back(
    session_database: SessionDatabase, session_clock: SessionClock
) -> None:
    db = session_database
    await db.lifecycle.ensure_and_touch_session("s", A)
    before = await record_of(db)
    await session_clock.advance(-BACK)
    receipt = await db.lifecycle.accumulate_usage("s", A, "m", 1, cost_usd=1)
    assert receipt.outcome == "applied"
    assert (await record_of(db)).last_activity_at == before.last_activity_at
