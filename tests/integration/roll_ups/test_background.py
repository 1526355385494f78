"""The background roll-up: it repeats, makes one call at a time, goes on after failures, and ends with its block."""

import asyncio
import gc
import logging
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from session_lifecycle import ConfigurationError, DatabaseUnavailableError, SessionDatabase, SessionStatus
from session_lifecycle.maintenance.background import BackgroundRollUp, RollUpSnapshot
from session_lifecycle.models import RollUpReport
from support.eventually import eventually

A = UUID(int=1)
SOON = 0.001
REPORT = RollUpReport(idle_before=datetime(2026, 1, 1, tzinfo=UTC), sessions=3, changes=4)
ROLLED_UP = text("SELECT count(*) FROM session_lifecycle.rolled_up_sessions")


class Calls:
    """Stands in for `roll_up`: each call waits until the test answers it."""

    def __init__(self) -> None:
        self.begun: asyncio.Queue[asyncio.Future[RollUpReport]] = asyncio.Queue()
        self.under_way = 0

    async def __call__(self) -> RollUpReport:
        self.under_way += 1
        assert self.under_way == 1
        answer: asyncio.Future[RollUpReport] = asyncio.get_running_loop().create_future()
        self.begun.put_nowait(answer)
        try:
            return await answer
        finally:
            self.under_way -= 1


async def rolled_up(db: SessionDatabase) -> int:
    async with db.engine.connect() as connection:
        counted: int = (await connection.execute(ROLLED_UP)).scalar_one()
        return counted


async def until_rolled_up(db: SessionDatabase, sessions: int) -> None:
    async def are() -> bool:
        return await rolled_up(db) == sessions

    await eventually(are)


async def until_some(rolling_up: BackgroundRollUp, figure: str) -> None:
    await eventually(lambda: getattr(rolling_up.snapshot(), figure))


async def test_it_goes_on_after_each_call_and_after_each_failure(caplog: pytest.LogCaptureFixture) -> None:
    calls = Calls()
    unreachable, unforeseen = DatabaseUnavailableError("it is away"), RuntimeError("a mistake")
    async with asyncio.timeout(30), BackgroundRollUp(calls, SOON) as rolling_up:
        assert rolling_up.snapshot() == RollUpSnapshot(runs=0, failures=0, last_report=None, last_error=None)
        (await calls.begun.get()).set_result(REPORT)
        second = await calls.begun.get()
        assert rolling_up.snapshot() == RollUpSnapshot(1, 0, REPORT, None)
        second.set_exception(unreachable)
        third = await calls.begun.get()
        assert rolling_up.snapshot() == RollUpSnapshot(1, 1, REPORT, unreachable)
        third.set_exception(unforeseen)
        fourth = await calls.begun.get()
        assert rolling_up.snapshot() == RollUpSnapshot(1, 2, REPORT, unforeseen)
        fourth.set_result(REPORT)
        await calls.begun.get()
        assert rolling_up.snapshot() == RollUpSnapshot(2, 2, REPORT, None)
    assert [(record.name, record.levelno, bool(record.exc_info)) for record in caplog.records] == [
        ("session_lifecycle.maintenance.background", logging.WARNING, False),
        ("session_lifecycle.maintenance.background", logging.WARNING, True),
    ]
    assert "it is away" in caplog.text


async def test_leaving_cancels_the_call_that_is_under_way() -> None:
    calls = Calls()
    async with asyncio.timeout(30), BackgroundRollUp(calls, SOON) as rolling_up:
        answer = await calls.begun.get()
    assert answer.cancelled()
    assert calls.under_way == 0
    await rolling_up.close()
    # The block can be entered again.
    async with asyncio.timeout(30), rolling_up:
        await calls.begun.get()


async def test_entered_twice_it_runs_once() -> None:
    calls = Calls()
    async with asyncio.timeout(30), BackgroundRollUp(calls, SOON) as rolling_up, rolling_up:
        (await calls.begun.get()).set_result(REPORT)
        await calls.begun.get()
    assert calls.begun.empty()


async def test_it_pauses_for_the_interval_give_or_take_a_half(monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    pause = asyncio.sleep

    async def noted(seconds: float) -> None:
        paused.append(seconds)
        await pause(0)

    monkeypatch.setattr("session_lifecycle.maintenance.background.asyncio.sleep", noted)
    calls = Calls()
    async with asyncio.timeout(30), BackgroundRollUp(calls, timedelta(minutes=10)):
        for _ in range(20):
            (await calls.begun.get()).set_result(REPORT)
        await calls.begun.get()
    assert all(300 <= seconds <= 900 for seconds in paused)
    assert len(set(paused)) == len(paused) == 20


async def test_ended_sessions_are_rolled_up(session_database: SessionDatabase) -> None:
    async with session_database.rolling_up(every=SOON) as rolling_up:
        for number in range(2):
            await session_database.lifecycle.accumulate_usage(f"s{number}", A, "m", 1, cost_usd=1)
            await session_database.lifecycle.end_session(f"s{number}", A, SessionStatus.COMPLETED)
            await until_rolled_up(session_database, number + 1)
        assert rolling_up.snapshot().failures == 0
        stats = await session_database.lifecycle.aggregate_stats(A)
    assert (stats.sessions, stats.total_spend_usd) == (2, Decimal(2))


async def test_a_failure_of_the_database_is_logged_and_the_roll_up_goes_on(
    session_database: SessionDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    await session_database.lifecycle.accumulate_usage("s", A, "m", 1)
    await session_database.lifecycle.end_session("s", A, SessionStatus.COMPLETED)
    rename = "ALTER FUNCTION session_lifecycle.{} RENAME TO {}"
    async with session_database.engine.begin() as connection:
        await connection.execute(text(rename.format("compact_roll_ups_v1", "away")))
    async with asyncio.timeout(30), session_database.rolling_up(every=SOON) as rolling_up:
        await until_some(rolling_up, "failures")
        assert "the roll-up failed; the next attempt is in about 0.001 s: the schema does not fit" in caplog.text
        async with session_database.engine.begin() as connection:
            await connection.execute(text(rename.format("away", "compact_roll_ups_v1")))
        await until_some(rolling_up, "runs")
    assert await rolled_up(session_database) == 1


async def test_two_background_roll_ups_make_one_call_at_a_time(
    session_database: SessionDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls()
    monkeypatch.setattr(session_database.maintenance, "roll_up", calls)
    async with (
        asyncio.timeout(30),
        session_database.rolling_up(every=SOON) as one,
        session_database.rolling_up(every=SOON) as other,
    ):
        for _ in range(6):
            (await calls.begun.get()).set_result(REPORT)
        await calls.begun.get()
        assert one.snapshot().runs > 0
        assert other.snapshot().runs > 0
        assert one.snapshot().failures == other.snapshot().failures == 0


async def test_closing_the_database_ends_it(session_database_url: str) -> None:
    async with SessionDatabase.connect(session_database_url) as db:
        rolling_up = await db.rolling_up(every=SOON).__aenter__()
        del rolling_up
        gc.collect()
        await db.lifecycle.accumulate_usage("s", A, "m", 1)
        await db.lifecycle.end_session("s", A, SessionStatus.COMPLETED)
        await until_rolled_up(db, 1)
    assert [task.get_name() for task in asyncio.all_tasks() if "roll-up" in task.get_name()] == []


@pytest.mark.parametrize("every", [0, -1, timedelta(0), float("nan"), float("inf"), True, "5", None])
def test_a_senseless_interval_is_refused(every: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"every: got .*, expected a timedelta or a number of seconds above 0"):
        SessionDatabase.connect("postgresql://u@127.0.0.1:1/x").rolling_up(every=every)
