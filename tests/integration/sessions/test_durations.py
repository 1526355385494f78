"""Reported durations of sessions and runs equal exact percentiles of the stored rows."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import product
from random import Random
from statistics import quantiles
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from session_lifecycle import SessionDatabase, Viewer
from session_lifecycle.models import Durations, EffectiveStatus, RunDurations, SessionDurations
from session_lifecycle.testing import SessionClock
from support.stored_rows import store, store_run

A, B, C = (UUID(int=number) for number in (1, 2, 3))
D, E = UUID(int=11), UUID(int=12)
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MICROSECOND, SECOND, MINUTE, DAY = (timedelta(**{f"{unit}s": 1}) for unit in ("microsecond", "second", "minute", "day"))
ABANDON_AFTER = 30 * MINUTE
# Each viewer, with the owners and the datasets whose rows the viewer sees.
VIEWERS: list[tuple[Viewer | UUID, set[UUID], set[UUID]]] = [
    (A, {A}, set()),
    (Viewer(A, [D]), {A}, {D}),
    (Viewer(A, [D, E], [B]), {A, B}, {D, E}),
    (Viewer(None, [E]), set(), {E}),
    (Viewer.of_users([B, C]), {B, C}, set()),
    (Viewer.of_users([]), set(), set()),
    (D, {D}, set()),
    (Viewer.auditor(), {A, B, C}, set()),
]
NOTHING = Durations(count=0, p50_s=None, p90_s=None, p95_s=None, p99_s=None)


class Took(NamedTuple):
    """A stored duration: its owner, its dataset, its key in the report, the time it is counted at, its length."""

    user: UUID
    dataset: UUID | None
    key: str
    at: datetime
    duration: timedelta


def lengths(random: Random) -> timedelta:
    """A negative length, zero, a common length, that and a microsecond, or a random short or long one."""
    some = [-SECOND, timedelta(0), 7 * SECOND, 7 * SECOND + MICROSECOND, MICROSECOND * random.randrange(10**6)]
    return random.choice([*some, MICROSECOND * random.randrange(10**12)])


def assert_durations(found: Durations, took: Sequence[Took]) -> None:
    """The durations are the percentiles of these rows, to the microsecond."""
    assert found.count == len(took)
    durations = sorted(max(Fraction(0), Fraction(one.duration // MICROSECOND)) for one in took)
    percentiles = {50: found.p50_s, 90: found.p90_s, 95: found.p95_s, 99: found.p99_s}
    if not durations:
        assert found == NOTHING
        return
    exact = quantiles(durations, n=100, method="inclusive") if len(durations) > 1 else durations * 99
    for percent, seconds in percentiles.items():
        microseconds = Fraction(str(seconds)) * 10**6
        assert microseconds.denominator == 1
        # Half a microsecond may be rounded either way.
        assert abs(microseconds - exact[percent - 1]) <= Fraction("0.501"), percent


def assert_report(found: SessionDurations | RunDurations, by: dict[Any, Durations], took: Iterable[Took]) -> None:
    """Compares the durations of all rows, and those of each key."""
    rows = list(took)
    assert_durations(Durations(**found.model_dump(include=set(Durations.model_fields))), rows)
    assert {row.key for row in rows} <= by.keys()
    for key, durations in by.items():
        assert_durations(durations, [row for row in rows if row.key == key])


def windows(rows: Sequence[Took]) -> list[tuple[datetime | None, datetime | None]]:
    """All time, an empty window, and windows whose edges are times of rows."""
    moments = sorted(row.at for row in rows)
    early, middle, late = moments[len(moments) // 5], moments[len(moments) // 2], moments[-len(moments) // 5]
    return [(None, None), (early, None), (None, late), (early, late), (middle, middle + MICROSECOND), (early, early)]


def chosen(
    rows: Iterable[Took], owners: set[UUID], datasets: set[UUID], since: datetime | None, until: datetime | None
) -> list[Took]:
    seen = [row for row in rows if row.user in owners or row.dataset in datasets]
    return [row for row in seen if (since is None or row.at >= since) and (until is None or row.at < until)]


async def store_sessions(db: SessionDatabase, random: Random, prefix: str) -> list[Took]:
    """Stores sessions of every kind, active within the last four months, some exactly at the threshold."""
    rows = []
    for number in range(60):
        user, dataset = random.choice([A, B, C]), random.choice([None, D, E])
        status = random.choice(["running", "running", "completed", "failed"])
        duration = lengths(random)
        at = NOW - random.choice([timedelta(0), ABANDON_AFTER, MICROSECOND * random.randrange(10**13)])
        # The last activity may be before or after the end.
        ended_at = None if status == "running" else at + random.choice([-MINUTE, timedelta(0), MINUTE])
        times = {"started_at": (ended_at or at) - duration, "last_activity_at": at, "ended_at": ended_at}
        row = {"user_id": user, "session_id": f"{prefix} {number}", "dataset_id": dataset, "status": status, **times}
        await store(db, "session_records", row)
        abandoned = status == "running" and at < NOW - ABANDON_AFTER
        rows.append(Took(user, dataset, "abandoned" if abandoned else status, at, duration))
    return rows


@pytest.mark.parametrize("seed", range(3))
async def test_durations_of_sessions_are_exact_before_and_after_a_roll_up(
    session_database: SessionDatabase, session_clock: SessionClock, seed: int
) -> None:
    db, random = session_database, Random(seed)
    await session_clock.freeze(NOW)
    rows: list[Took] = []
    for prefix in ("rolled up", "not rolled up"):
        rows += await store_sessions(db, random, prefix)
        for (viewer, owners, datasets), (since, until) in product(VIEWERS, windows(rows)):
            found = await db.reports.session_durations(viewer, since=since, until=until)
            assert list(found.by_status) == list(EffectiveStatus)
            assert_report(found, found.by_status, chosen(rows, owners, datasets, since, until))
        assert (await db.maintenance.roll_up()).sessions > 0


async def test_durations_of_sessions_by_status_agree_with_the_whole(session_database: SessionDatabase) -> None:
    for seconds in (0, 3, 9):
        ended_at = NOW + seconds * SECOND
        times = {"started_at": NOW, "last_activity_at": ended_at, "ended_at": ended_at}
        row = {"user_id": A, "session_id": str(seconds), "status": "completed", **times}
        await store(session_database, "session_records", row)
    found = await session_database.reports.session_durations(A)
    assert (found.count, found.p50_s, found.p90_s, found.p99_s) == (3, 3, 7.8, 8.88)
    assert found.by_status[EffectiveStatus.COMPLETED] == Durations(**found.model_dump(exclude={"by_status"}))
    assert (await session_database.lifecycle.aggregate_stats(A)).agent_time_s == 12


@pytest.mark.parametrize("seed", range(2))
async def test_durations_of_runs_are_exact(session_database: SessionDatabase, seed: int) -> None:
    db, random = session_database, Random(seed)
    sessions = {(user, str(dataset)): dataset for user in (A, B, C) for dataset in (None, D, E)}
    for (user, session_id), dataset in sessions.items():
        await store(db, "session_records", {"user_id": user, "session_id": session_id, "dataset_id": dataset})
    rows = []
    for number in range(90):
        (user, session_id), dataset = random.choice(list(sessions.items()))
        # A run outside a session is shared through no dataset, also when it names one.
        in_session = random.random() < 0.8
        agent_name = random.choice([None, "unknown", "coder", "Coder", "planner"])
        duration = lengths(random)
        ended_at = NOW - MICROSECOND * random.randrange(10**13)
        more: dict[str, Any] = {"agent_name": agent_name, "dataset_id": D, "status": "completed"}
        if in_session:
            more["session_id"] = session_id
        await store_run(db, user, str(number), ended_at - duration, ended_at=ended_at, **more)
        rows.append(Took(user, dataset if in_session else None, agent_name or "unknown", ended_at, duration))
    await store_run(db, A, "open", NOW - DAY, session_id="None")
    await store_run(db, A, "only named", None)
    for (viewer, owners, datasets), (since, until) in product(VIEWERS, windows(rows)):
        found = await db.reports.run_durations(viewer, since=since, until=until)
        assert_report(found, found.by_agent, chosen(rows, owners, datasets, since, until))
        assert list(found.by_agent) == sorted(found.by_agent, key=lambda name: (-found.by_agent[name].count, name))
        assert NOTHING not in found.by_agent.values()
        telemetry = await db.reports.telemetry(viewer, since=since, until=until)
        assert (telemetry.runs_count, telemetry.duration_p95_ms) == (
            found.count,
            None if found.p95_s is None else pytest.approx(found.p95_s * 1_000),
        )
