"""Repricing: only prices that the catalogue gave change, every total moves by the difference, and only once."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import End, InvalidValueError, SessionDatabase, SessionStatus, Touch, UsageEvent, Viewer
from session_lifecycle.models import PriceOverride
from support.eventually import eventually
from support.stored_rows import ask, lock_waits

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


def priced(url: str, usd_per_million: int) -> SessionDatabase:
    override = PriceOverride(
        model_pattern="house*", input_usd_per_million=usd_per_million, output_usd_per_million=usd_per_million
    )
    return SessionDatabase.connect(url, prices=[override])


def used(session_id: str, model: str, **more: Any) -> UsageEvent:
    return UsageEvent(session_id=session_id, user_id=A, model=model, tokens_in=1_000_000, tokens_out=0, **more)


async def spend(db: SessionDatabase) -> tuple[Decimal, int, Decimal]:
    stats = await db.lifecycle.aggregate_stats(Viewer.auditor())
    return stats.total_spend_usd, stats.unpriced_events, stats.late_cost_usd


async def live(db: SessionDatabase) -> None:
    """Events without a price, with a given cost, late, unmeasured, and one of a model that has a price."""
    await db.lifecycle.record(
        [
            used("s", "house-1", at=NOW - DAY),
            used("s", "house-2"),
            used("s", "house-1", cost_usd=Decimal("0.5")),
            used("t", "gpt-4o-mini"),
            UsageEvent(session_id="t", user_id=A, model="house-1", measured=False),
            Touch(session_id="u", user_id=A),
            End(session_id="u", user_id=A, status="completed"),
            used("u", "house-1"),
        ]
    )


async def test_events_priced_by_the_catalogue_are_priced_again(
    session_database: SessionDatabase, session_database_url: str
) -> None:
    await live(session_database)
    assert await spend(session_database) == (Decimal("0.65"), 2, Decimal(0))
    progress: list[int] = []
    async with priced(session_database_url, 3) as db:
        would_be = await db.maintenance.reprice(dry_run=True)
        assert await spend(db) == (Decimal("0.65"), 2, Decimal(0))
        report = await db.maintenance.reprice(batch=2, on_progress=progress.append)
        assert await spend(db) == (Decimal("6.65"), 0, Decimal(3))
    assert (report.looked_at, report.events, report.cost_before_usd, report.cost_after_usd) == (
        4,
        3,
        Decimal(0),
        Decimal(9),
    )
    assert would_be == report.model_copy(update={"repricing_id": None})
    assert progress == [2, 4]
    async with priced(session_database_url, 5) as db:
        report = await db.maintenance.reprice("house-1", NOW - DAY / 2)
        assert (report.events, report.cost_before_usd, report.cost_after_usd) == (1, Decimal(3), Decimal(5))
        report = await db.maintenance.reprice("house-1", until=NOW - DAY / 2)
        assert (report.events, report.cost_before_usd, report.cost_after_usd) == (1, Decimal(3), Decimal(5))
        assert await spend(db) == (Decimal("8.65"), 0, Decimal(5))
        assert (await db.maintenance.reprice("house-1")).events == 0
        # Without a price for the model, the stored price stays.
        assert (await session_database.maintenance.reprice("house-1")).events == 0
        assert await ask(db, DISAGREE) == [(0,)]
    audit = "SELECT count(*), sum(cost_after_usd - cost_before_usd) FROM session_lifecycle.session_repricings"
    assert await ask(session_database, audit) == [(5, 13)]


async def test_the_ledger_keeps_the_prices_used(session_database: SessionDatabase, session_database_url: str) -> None:
    await live(session_database)
    async with priced(session_database_url, 3) as db:
        await db.maintenance.reprice("house-2")
    [row] = await ask(
        session_database,
        "SELECT price_source, unit_prices ->> 'input_mtok', given_cost_usd FROM session_lifecycle.session_usage_events "
        "WHERE model = 'house-2'",
    )
    assert row == ("override:house*", "3", None)


async def test_usage_recorded_meanwhile_is_counted_once(
    session_database: SessionDatabase, session_database_url: str
) -> None:
    def revision(number: int, caller: int) -> UsageEvent:
        return UsageEvent(
            session_id=f"s{number % 4}",
            user_id=A,
            model="house-1",
            tokens_in=number + 1,
            idempotency_key=f"{caller}",
            revision=number,
        )

    async def writer(caller: int) -> None:
        for number in range(0, 40, 4):
            await session_database.lifecycle.record([revision(number + caller % 4, caller), used("s0", "house-1")])

    async with priced(session_database_url, 3) as db, priced(session_database_url, 4) as other:
        await asyncio.gather(
            *(writer(caller) for caller in range(6)),
            *(one.maintenance.reprice(batch=5) for _ in range(3) for one in (db, other)),
        )
        assert await ask(db, DISAGREE) == [(0,)]
        await db.maintenance.reprice()
        assert await ask(db, DISAGREE) == [(0,)]
        stats = await db.lifecycle.aggregate_stats(A)
        assert (stats.total_spend_usd, stats.unpriced_events) == (stats.tokens_in * Decimal("0.000003"), 0)


@pytest.mark.parametrize("by", [{"revision": 1}, {"partial": False}, {"partial": True}])
async def test_X51_the_price_of_a_replaced_event_is_not_written(
    session_database: SessionDatabase, session_database_url: str, by: dict[str, Any]
) -> None:
    """A revision replaces an event, and so does a larger count that replaces a lower bound without a revision."""
    event = used("s", "house-1", idempotency_key="k", partial=True)
    await session_database.lifecycle.record([event])
    async with priced(session_database_url, 3) as db:
        async with session_database.engine.begin() as host:
            revised = event.model_copy(update={**by, "tokens_in": 2_000_000})
            await session_database.bind(host).lifecycle.record([revised])
            # Repricing has the old event's price, and waits for the session's lock.
            repricing = asyncio.create_task(db.maintenance.reprice())

            async def waits() -> bool:
                return await lock_waits(db, "reprice_v1") == 1

            await eventually(waits)
        report = await repricing
        assert (report.looked_at, report.events) == (1, 0)
        assert await spend(db) == (Decimal(0), 1, Decimal(0))
        assert (await db.maintenance.reprice()).cost_after_usd == 6


async def test_wrong_arguments_are_refused_by_name(session_database: SessionDatabase) -> None:
    reprice: Any = session_database.maintenance.reprice  # as a host without a type checker has it
    naive = datetime.fromisoformat("2026-01-01")
    for field, call in (
        ("since", reprice(since=naive)),
        ("batch", reprice(batch=0)),
        ("dry_run", reprice(dry_run="yes")),
        ("model", reprice("\x00")),
    ):
        with pytest.raises(InvalidValueError, match=field):
            await call
    await session_database.lifecycle.end_session("s", A, SessionStatus.FAILED)
