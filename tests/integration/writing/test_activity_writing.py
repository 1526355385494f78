"""Recording activity beside other writers, after a session's end, and with the cost that runs report."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import select

from session_lifecycle import End, Run, SessionDatabase, SessionStatus, Touch, UsageEvent
from session_lifecycle.entities import SessionRunEntity
from session_lifecycle.models import PriceOverride, SessionRecord
from support.eventually import eventually
from support.stored_rows import lock_waits
from support.usage import outcomes, receipt_of

USER = UUID(int=1)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def run(run_id: str = "r", minutes: float = 0, **more: Any) -> Run:
    return Run(run_id=run_id, user_id=USER, started_at=NOON + minutes * MINUTE, **more)


def event(cost: str | None, session_id: str = "s", **more: Any) -> UsageEvent:
    known: dict[str, Any] = {"model": "m", "tokens_in": 10, "run_id": "r", "idempotency_key": "k", "at": NOON, **more}
    return UsageEvent(session_id=session_id, user_id=USER, cost_usd=None if cost is None else Decimal(cost), **known)


async def record_of(db: SessionDatabase, session_id: str) -> SessionRecord:
    found = await db.lifecycle.get_session_row(session_id, USER)
    assert found is not None
    return found.record


async def events_cost(db: SessionDatabase) -> Decimal:
    async with db.engine.connect() as connection:
        return (await connection.execute(select(SessionRunEntity.events_cost_usd))).scalar_one()


async def test_a_batch_of_plain_items_leaves_an_ended_session_as_it_is(session_database: SessionDatabase) -> None:
    plain: dict[str, Any] = {"user_id": USER, "model": "m", "tokens_in": 1, "cost_usd": 1}
    await session_database.lifecycle.record([Touch(session_id="s", user_id=USER), Touch(session_id="t", user_id=USER)])
    await session_database.lifecycle.end_session("s", USER, SessionStatus.COMPLETED)
    receipts = await session_database.lifecycle.record(
        [UsageEvent(session_id="s", **plain), UsageEvent(session_id="t", **plain), Touch(session_id="s", user_id=USER)]
    )
    assert outcomes(receipts) == ["frozen", "applied", "terminal"]
    record = await record_of(session_database, "s")
    assert (record.tokens_in, record.late_events, record.late_cost_usd) == (0, 1, Decimal(1))


async def test_a_batch_may_end_the_session_that_its_own_run_creates(session_database: SessionDatabase) -> None:
    end = End(session_id="r", user_id=USER, status=SessionStatus.COMPLETED, at=NOON + MINUTE)
    assert await session_database.lifecycle.record([run(), end]) == ["created", "ended"]
    record = await record_of(session_database, "r")
    assert (record.started_at, record.ended_at, record.status) == (NOON, NOON + MINUTE, "completed")


async def test_a_run_that_ends_after_its_session_reports_late_cost(session_database: SessionDatabase) -> None:
    lifecycle = session_database.lifecycle
    await lifecycle.record([run("early", session_id="s"), run("r", session_id="s")])
    await lifecycle.end_session("s", USER, SessionStatus.COMPLETED, at=NOON + 5 * MINUTE)
    await lifecycle.record([run("early", session_id="s", ended_at=NOON + 4 * MINUTE, reported_cost_usd=1)])
    await lifecycle.record([run("r", session_id="s", ended_at=NOON + 6 * MINUTE, reported_cost_usd=2)])
    record = await record_of(session_database, "s")
    assert (record.cost_usd, record.late_cost_usd, record.late_events) == (Decimal(1), Decimal(2), 1)
    # An event from before the end accounts for a part of the report; the rest stays late.
    await lifecycle.record([event("0.5")])
    record = await record_of(session_database, "s")
    assert (record.cost_usd, record.late_cost_usd, record.late_events) == (Decimal("1.5"), Decimal("1.5"), 1)
    assert (await session_database.maintenance.reconcile()).mismatches == []


async def test_a_revision_changes_the_cost_of_its_run(session_database: SessionDatabase) -> None:
    lifecycle = session_database.lifecycle
    await lifecycle.record([run(session_id="s", model="m", reported_cost_usd=1), event("0.4")])
    for revision, (cost, total) in enumerate((("1.5", "1.5"), ("0.1", "1")), 1):
        assert (await receipt_of(lifecycle, event(cost, revision=revision))).outcome == "replaced"
        assert await events_cost(session_database) == Decimal(cost)
        assert (await record_of(session_database, "s")).cost_usd == Decimal(total)
        assert (await session_database.maintenance.reconcile()).mismatches == []


async def test_repricing_changes_the_cost_of_the_run(
    session_database: SessionDatabase, session_database_url: str
) -> None:
    def price(usd: int) -> PriceOverride:
        return PriceOverride(model_pattern="m", input_usd_per_million=usd, output_usd_per_million=0)

    async with SessionDatabase.connect(session_database_url, prices=[price(1)]) as db:
        await db.lifecycle.record([run(session_id="s", reported_cost_usd=2), event(None, tokens_in=10**6)])
        assert (await record_of(db, "s")).cost_usd == 2
    async with SessionDatabase.connect(session_database_url, prices=[price(3)]) as db:
        report = await db.maintenance.reprice()
        assert (report.cost_before_usd, report.cost_after_usd) == (Decimal(1), Decimal(3))
        assert await events_cost(db) == 3
        assert (await record_of(db, "s")).cost_usd == 3
        assert (await db.maintenance.reconcile()).mismatches == []


async def test_events_recreate_a_session_that_is_removed_while_they_wait(session_database: SessionDatabase) -> None:
    """Giving the run another session removes the thread's session, while four events wait for its lock."""
    db = session_database
    await db.lifecycle.record([run()])
    async with db.engine.connect() as host:
        await db.bind(host).lifecycle.record([run(session_id="s")])
        uses = [
            asyncio.create_task(
                receipt_of(db.lifecycle, event("1", "r", run_id=None, idempotency_key=str(number), revision=1))
            )
            for number in range(4)
        ]

        async def all_wait() -> bool:
            return await lock_waits(db) == len(uses)

        await eventually(all_wait)
        await host.commit()
        receipts = await asyncio.gather(*uses)
    assert {receipt.outcome for receipt in receipts} == {"applied"}
    assert (await record_of(db, "r")).cost_usd == 4
