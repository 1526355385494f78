"""Pricing events again: exactly what was priced by us, every total by the difference, and once."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from session_lifecycle import (
    End,
    InvalidValueError,
    PriceOverride,
    SessionDatabase,
    SessionStatus,
    Touch,
    UsageEvent,
    Viewer,
)
from waiting import until

A = UUID(int=1)
NOW = datetime.now(UTC)
DAY = timedelta(days=1)
DISAGREE = """
    WITH by_model AS (SELECT user_id, session_id, sum(cost_usd) AS cost, sum(unpriced_events) AS unpriced
                      FROM session_lifecycle.session_model_usage GROUP BY 1, 2),
         by_event AS (SELECT user_id, session_id, coalesce(sum(cost_usd), 0) AS cost,
                             count(*) FILTER (WHERE cost_usd IS NULL AND measured) AS unpriced
                      FROM session_lifecycle.session_usage_events WHERE NOT late GROUP BY 1, 2)
    SELECT count(*) FROM session_lifecycle.session_records s
    LEFT JOIN by_model m USING (user_id, session_id) LEFT JOIN by_event e USING (user_id, session_id)
    WHERE (s.cost_usd, s.unpriced_events) IS DISTINCT FROM (coalesce(m.cost, 0), coalesce(m.unpriced, 0))
       OR (s.cost_usd, s.unpriced_events) IS DISTINCT FROM (coalesce(e.cost, 0), coalesce(e.unpriced, 0))
"""
WAITING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%reprice_v2%'
"""


def priced(url: str, usd_per_million: int) -> SessionDatabase:
    override = PriceOverride(
        model_pattern="house*", input_usd_per_million=usd_per_million, output_usd_per_million=usd_per_million
    )
    return SessionDatabase.connect(url, prices=[override])


def used(session_id: str, model: str, **more: Any) -> UsageEvent:
    return UsageEvent(session_id, A, model, 1_000_000, 0, **more)


async def ask(db: SessionDatabase, sql: str) -> Any:
    async with db.engine.connect() as connection:
        return (await connection.execute(text(sql))).one()


async def spend(db: SessionDatabase) -> tuple[Decimal, int, Decimal]:
    stats = await db.lifecycle.aggregate_stats(Viewer.auditor())
    return stats.total_spend_usd, stats.unpriced_events, stats.late_cost_usd


async def live(db: SessionDatabase) -> None:
    """Two unpriced, one given, one late, one of another model, one unmeasured; the other model has a price."""
    await db.lifecycle.record(
        [
            used("s", "house-1", at=NOW - DAY),
            used("s", "house-2"),
            used("s", "house-1", cost_usd=Decimal("0.5")),
            used("t", "gpt-4o-mini"),
            UsageEvent("t", A, "house-1", measured=False),
            Touch("u", A),
            End("u", A, "completed"),
            used("u", "house-1"),
        ]
    )


async def test_what_was_priced_by_us_is_priced_again(
    session_database: SessionDatabase, session_database_url: str
) -> None:
    await live(session_database)
    assert await spend(session_database) == (Decimal("0.65"), 2, 0)
    told: list[int] = []
    async with priced(session_database_url, 3) as db:
        would_be = await db.maintenance.reprice(dry_run=True)
        assert await spend(db) == (Decimal("0.65"), 2, 0)
        report = await db.maintenance.reprice(batch=2, on_progress=told.append)
        assert await spend(db) == (Decimal("6.65"), 0, 3)
    assert (report.looked_at, report.events, report.cost_before_usd, report.cost_after_usd) == (4, 3, 0, 9)
    assert would_be == report.model_copy(update={"repricing_id": None})
    assert told == [2, 4]
    async with priced(session_database_url, 5) as db:
        report = await db.maintenance.reprice("house-1", NOW - DAY / 2)
        assert (report.events, report.cost_before_usd, report.cost_after_usd) == (1, 3, 5)
        report = await db.maintenance.reprice("house-1", until=NOW - DAY / 2)
        assert (report.events, report.cost_before_usd, report.cost_after_usd) == (1, 3, 5)
        assert await spend(db) == (Decimal("8.65"), 0, 5)
        assert (await db.maintenance.reprice("house-1")).events == 0
        # A price nobody knows any more does not take the old one away.
        assert (await session_database.maintenance.reprice("house-1")).events == 0
        assert await ask(db, DISAGREE) == (0,)
    audit = "SELECT count(*), sum(cost_after_usd - cost_before_usd) FROM session_lifecycle.session_repricings"
    assert await ask(session_database, audit) == (5, 13)


async def test_the_ledger_says_by_which_prices(session_database: SessionDatabase, session_database_url: str) -> None:
    await live(session_database)
    async with priced(session_database_url, 3) as db:
        await db.maintenance.reprice("house-2")
    row = await ask(
        session_database,
        "SELECT price_source, unit_prices ->> 'input_mtok', given_cost_usd FROM session_lifecycle.session_usage_events "
        "WHERE model = 'house-2'",
    )
    assert row == ("override:house*", "3", None)


async def test_what_is_recorded_meanwhile_is_counted_once(
    session_database: SessionDatabase, session_database_url: str
) -> None:
    def revision(number: int, caller: int) -> UsageEvent:
        return UsageEvent(f"s{number % 4}", A, "house-1", number + 1, idempotency_key=f"{caller}", revision=number)

    async def writer(caller: int) -> None:
        for number in range(0, 40, 4):
            await session_database.lifecycle.record([revision(number + caller % 4, caller), used("s0", "house-1")])

    async with priced(session_database_url, 3) as db, priced(session_database_url, 4) as other:
        await asyncio.gather(
            *(writer(caller) for caller in range(6)),
            *(one.maintenance.reprice(batch=5) for _ in range(3) for one in (db, other)),
        )
        assert await ask(db, DISAGREE) == (0,)
        await db.maintenance.reprice()
        assert await ask(db, DISAGREE) == (0,)
        stats = await db.lifecycle.aggregate_stats(A)
        assert (stats.total_spend_usd, stats.unpriced_events) == (stats.tokens_in * Decimal("0.000003"), 0)


async def test_a_price_of_a_revision_that_is_no_more_is_not_written(
    session_database: SessionDatabase, session_database_url: str
) -> None:
    event = UsageEvent("s", A, "house-1", 1_000_000, idempotency_key="k")
    await session_database.lifecycle.record([event])
    async with priced(session_database_url, 3) as db:
        async with session_database.engine.begin() as host:
            revised = event.model_copy(update={"revision": 1, "tokens_in": 2_000_000})
            await session_database.bind(host).lifecycle.record([revised])
            # It has looked the old revision's price up, and waits for the session.
            repricing = asyncio.create_task(db.maintenance.reprice())

            async def waits() -> bool:
                return await ask(db, WAITING) == (1,)

            await until(waits)
        report = await repricing
        assert (report.looked_at, report.events) == (1, 0)
        assert await spend(db) == (0, 1, 0)
        assert (await db.maintenance.reprice()).cost_after_usd == 6


async def test_what_cannot_be_meant_is_refused(session_database: SessionDatabase) -> None:
    reprice = session_database.maintenance.reprice
    naive = datetime.fromisoformat("2026-01-01")
    for field, call in (
        ("since", reprice(since=naive)),
        ("batch", reprice(batch=0)),
        ("dry_run", reprice(dry_run="yes")),
        ("model", reprice("x" * 201)),
    ):
        with pytest.raises(InvalidValueError, match=field):
            await call
    await session_database.lifecycle.end_session("s", A, SessionStatus.FAILED)
