"""Every report has a bound, and refuses what is beyond it."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import InvalidValueError, Run, SessionDatabase, UsageEvent, Viewer
from session_lifecycle.models.reports import Series
from support.world import World

A = UUID(int=1)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


async def refused(ask: Callable[[], Awaitable[Any]]) -> None:
    with pytest.raises(InvalidValueError, match="at most 3 "):
        await ask()


async def test_X15_R25_a_report_without_a_limit_refuses_too_many_groups(
    session_database: SessionDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement ends after the most groups, so no more rows are sent than those."""
    for number in range(4):
        user, at = UUID(int=number + 1), NOON + timedelta(minutes=number)
        run = Run(
            run_id="r",
            user_id=user,
            session_id="s",
            agent_name=f"a{number}",
            model=f"m{number}",
            started_at=at,
            ended_at=at,
        )
        used = UsageEvent(session_id="s", user_id=user, model=f"m{number}", tokens_in=1, at=at, cost_usd=0)
        await session_database.lifecycle.record([run, used])
    reports, auditor = session_database.reports, Viewer.auditor()
    window: dict[str, Any] = {"since": NOON - timedelta(days=1), "until": NOON + timedelta(days=1)}
    asks: list[Callable[[], Awaitable[Any]]] = [
        lambda: reports.tokens_by_class(auditor, **window),
        lambda: reports.cost_by_agent(auditor, **window),
        lambda: reports.cost_by_user(auditor, **window),
        lambda: reports.run_durations(auditor, **window),
        lambda: reports.list_telemetry_keys(auditor, **window),
        lambda: reports.usage_timeseries(auditor, group_by="user", **window),
    ]
    monkeypatch.setattr("session_lifecycle.reports.MOST_POINTS", 12)
    monkeypatch.setattr("session_lifecycle.reports.MOST_ROWS", 5)
    for ask in asks:
        assert await ask()
    monkeypatch.setattr("session_lifecycle.reports.MOST_POINTS", 3)
    monkeypatch.setattr("session_lifecycle.reports.MOST_ROWS", 3)
    for ask in asks:
        *_, (statement, bound) = await World(session_database).statements(refused(ask))
        assert "LIMIT" in statement
        # One row more than the answer may have, and with some reports the total.
        assert bound[-1] in {4, 5}


async def test_R25_the_work_on_a_row_does_not_grow_with_the_buckets(
    session_database: SessionDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The boundaries of thousands of hours are computed once for a report, and not for each of its rows."""
    used = [
        UsageEvent(session_id="s", user_id=A, model=f"m{n}", tokens_in=1, at=NOON + n * timedelta(hours=1), cost_usd=0)
        for n in range(20)
    ]
    await session_database.lifecycle.record(used)
    computed: list[Series] = []
    compute = Series.boundaries

    def boundaries(series: Series) -> list[datetime]:
        computed.append(series)
        return compute(series)

    monkeypatch.setattr(Series, "boundaries", boundaries)
    window: dict[str, Any] = {"since": NOON, "until": NOON + timedelta(hours=9_999)}
    report = await session_database.reports.usage(A, group_by=("hour", "model"), order_by="hour", **window)
    assert (len(report.rows), len(computed)) == (20, 1)
    assert [row.starts_at for row in report.rows] == [event.at for event in used]
    points = await session_database.reports.usage_timeseries(A, bucket="hour", **window)
    assert (len(points), len(computed)) == (9_999, 2)
