"""Usage by the hour, day, week and month of any time zone."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import pairwise
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from session_lifecycle import InvalidValueError, SessionDatabase, SessionStatus, Touch, UsageEvent, Viewer
from session_lifecycle.models import UsagePoint
from session_lifecycle.models.reports import Series

A, B = UUID(int=1), UUID(int=2)
SHARED = UUID(int=11)
HOUR = timedelta(hours=1)


def event(at: datetime, session_id: str = "s", user: UUID = A, **more: Any) -> UsageEvent:
    used: dict[str, Any] = {"model": "m", "tokens_in": 10, "cost_usd": Decimal("0.1"), **more}
    return UsageEvent(session_id=session_id, user_id=user, at=at, **used)


def lengths(points: Sequence[UsagePoint]) -> list[float]:
    return [(point.ends_at - point.starts_at) / HOUR for point in points]


async def test_days_have_23_or_25_hours_when_the_clocks_change(session_database: SessionDatabase) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    spring, autumn = datetime(2026, 3, 28, tzinfo=berlin), datetime(2026, 10, 24, tzinfo=berlin)
    for first in (spring, autumn):
        # One event in every hour of the three days, counted in UTC.
        await session_database.lifecycle.record(
            [event(first.astimezone(UTC) + number * HOUR, idempotency_key=f"{first} {number}") for number in range(72)]
        )
    for first, hours in ((spring, [24, 23, 24]), (autumn, [24, 25, 24])):
        until = datetime(first.year, first.month, first.day + 3, tzinfo=berlin)
        of_berlin = partial(
            session_database.reports.usage_timeseries, A, since=first, until=until, timezone="Europe/Berlin"
        )
        points = await of_berlin()
        assert lengths(points) == hours
        assert [point.events for point in points] == [min(hours[0], 24), hours[1], 24 if hours[1] == 23 else 23]
        assert points[0].starts_at == first
        by_hour = await of_berlin(bucket="hour")
        assert (len(by_hour), set(lengths(by_hour))) == (sum(hours), {1.0})
        spend = await session_database.reports.spend(A, since=first, until=until)
        for series in (points, by_hour):
            assert sum(point.cost_usd for point in series) == spend.cost_usd
            assert sum(point.tokens_in for point in series) == spend.tokens_in


async def test_weeks_and_months_begin_on_their_first_day_and_may_be_empty(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record(
        [event(datetime(2026, 1, 31, 23, tzinfo=UTC)), Touch(session_id="t", user_id=A)]
    )
    since, until = datetime(2026, 1, 15, 12, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC)
    weeks = await session_database.reports.usage_timeseries(A, since=since, until=until, bucket="week")
    assert [point.starts_at.isoweekday() for point in weeks] == [1] * 7
    assert [point.events for point in weeks] == [0, 0, 1, 0, 0, 0, 0]
    months = await session_database.reports.usage_timeseries(A, since=since, until=until, bucket="month")
    assert [point.starts_at.date().isoformat() for point in months] == ["2026-01-01", "2026-02-01", "2026-03-01"]
    assert [point.cost_usd for point in months] == [Decimal("0.1"), 0, 0]
    tokyo = await session_database.reports.usage_timeseries(
        A, since=since, until=until, bucket="month", timezone="Asia/Tokyo"
    )
    assert [point.events for point in tokyo] == [0, 1, 0]
    assert await session_database.reports.usage_timeseries(A, since=since, until=since) == []


async def test_the_window_is_exact_and_late_usage_is_left_out(session_database: SessionDatabase) -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    await session_database.lifecycle.record(
        [event(noon - HOUR), event(noon), event(noon + HOUR, "t"), event(noon + HOUR)]
    )
    await session_database.lifecycle.end_session("s", A, SessionStatus.COMPLETED, at=noon + HOUR)
    await session_database.lifecycle.record([event(noon + HOUR + timedelta(minutes=1))])
    [point] = await session_database.reports.usage_timeseries(A, since=noon, until=noon + 2 * HOUR)
    assert (point.starts_at, point.events) == (noon.replace(hour=0), 3)
    [point] = await session_database.reports.usage_timeseries(A, since=noon, until=noon + HOUR)
    assert point.events == 1


@pytest.mark.parametrize(
    ("group_by", "groups"),
    [
        ("model", [("m", 2), ("n", 1), ("unknown", 1)]),
        ("agent", [("coder", 2), ("unknown", 2)]),
        ("user", [(str(A), 3), (str(B), 1)]),
        ("dataset", [(str(SHARED), 1), ("unknown", 3)]),
    ],
)
async def test_each_group_has_every_bucket(
    session_database: SessionDatabase, group_by: Any, groups: list[tuple[str, int]]
) -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    await session_database.lifecycle.record(
        [
            Touch(session_id="s", user_id=A, agent_name="coder", at=noon),
            *(event(noon), event(noon, model="n"), event(noon, "t", model=None)),
            event(noon, "s", B, dataset_id=SHARED),
            event(noon, "mine", UUID(int=3)),
        ]
    )
    points = await session_database.reports.usage_timeseries(
        Viewer(A, [SHARED]), since=noon - 24 * HOUR, until=noon + 24 * HOUR, group_by=group_by
    )
    names = [name for name, _ in groups]
    assert [point.group for point in points] == names * 3
    assert [(point.group, point.events) for point in points[len(names) : 2 * len(names)]] == groups
    assert {point.events for point in points[: len(names)]} == {0}


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"timezone": "Europe/Atlantis"}, "timezone"),
        ({"timezone": "../etc/passwd"}, "timezone"),
        ({"timezone": None}, "timezone"),
        ({"bucket": "year"}, "bucket"),
        ({"bucket": "hour", "until": datetime(2028, 1, 1, tzinfo=UTC)}, "bucket"),
        ({"group_by": "client"}, "group_by"),
        ({"until": datetime(2025, 1, 1, tzinfo=UTC)}, "until"),
        ({"since": datetime.fromisoformat("2026-01-01")}, "since"),
    ],
)
async def test_wrong_arguments_are_refused_by_name(
    session_database: SessionDatabase, wrong: dict[str, Any], field: str
) -> None:
    asked: dict[str, Any] = {
        "since": datetime(2026, 1, 1, tzinfo=UTC),
        "until": datetime(2026, 1, 3, tzinfo=UTC),
        **wrong,
    }
    with pytest.raises(InvalidValueError) as refused:
        await session_database.reports.usage_timeseries(A, **asked)
    assert refused.value.field == field


FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("window", "zone", "bucket", "field"),
    [
        ((FIRST, FIRST + 24 * HOUR), "America/New_York", "day", "since"),
        ((LAST - 24 * HOUR, LAST), "UTC", "month", "until"),
        ((LAST - 48 * HOUR, LAST - 24 * HOUR), "Pacific/Kiritimati", "day", "until"),
        ((LAST - HOUR, LAST), "Pacific/Kiritimati", "hour", "since"),
    ],
)
async def test_R19_a_bucket_beyond_the_years_of_a_datetime_is_refused(
    session_database: SessionDatabase, window: tuple[datetime, datetime], zone: str, bucket: Any, field: str
) -> None:
    asked: dict[str, Any] = {"since": window[0], "until": window[1], "timezone": zone}
    for call in (
        session_database.reports.usage_timeseries(A, bucket=bucket, **asked),
        session_database.reports.usage(A, group_by=(bucket,), **asked),
    ):
        with pytest.raises(InvalidValueError) as refused:
            await call
        assert refused.value.field == field


# Zones that crossed the date line have a week of six days.
@example(zone="Pacific/Kwajalein", bucket="week", since=datetime(1993, 8, 16, tzinfo=UTC), length=timedelta(days=14))
@example(zone="Pacific/Apia", bucket="day", since=datetime(2011, 12, 29, tzinfo=UTC), length=timedelta(days=3))
@settings(max_examples=400)
@given(
    zone=st.sampled_from(sorted(available_timezones())),
    bucket=st.sampled_from(["hour", "day", "week", "month"]),
    since=st.datetimes(
        datetime.fromisoformat("1975-01-01"), datetime.fromisoformat("2037-01-01"), timezones=st.just(UTC)
    ),
    length=st.timedeltas(timedelta(0), timedelta(days=80)),
)
def test_boundaries_in_every_time_zone(zone: str, bucket: Any, since: datetime, length: timedelta) -> None:
    """Buckets follow each other without a gap, cover the window, and have a possible length."""
    found = Series(since=since, until=since + length, bucket=bucket, timezone=zone).boundaries()
    if not length:
        assert found == []
        return
    assert found[0] <= since < found[1]
    assert found[-2] < since + length <= found[-1]
    # Antarctica/Casey has put its clocks on by three hours.
    shortest, longest = {"hour": (0.5, 1.5), "day": (21, 48), "week": (143, 192), "month": (670, 770)}[bucket]
    hours = [(after - before) / HOUR for before, after in pairwise(found)]
    assert shortest <= min(hours) <= max(hours) <= longest
