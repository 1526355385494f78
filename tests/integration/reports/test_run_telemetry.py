"""Reports: spend by the time of use, cost by agent and user, run telemetry; each of visible rows only."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import End, InvalidValueError, SessionDatabase, Touch, UsageEvent, Viewer
from session_lifecycle.models import TelemetryKey, TelemetrySummary
from support.statements import noted
from support.stored_rows import store_message, store_run, store_step

A, B, C, D = (UUID(int=number) for number in range(1, 5))
NOW = datetime.now(UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
AUDITOR = Viewer.auditor()


def used(session_id: str, user: UUID, hours_ago: float, cost: int | str | None, **more: Any) -> UsageEvent:
    cost_usd = None if cost is None else Decimal(cost)
    fields: dict[str, Any] = {"model": "m", "tokens_in": 10, "tokens_out": 4, **more}
    return UsageEvent(session_id=session_id, user_id=user, cost_usd=cost_usd, at=NOW - hours_ago * HOUR, **fields)


async def live(db: SessionDatabase) -> None:
    """Records sessions of three users; B's session is shared through D."""
    await db.lifecycle.record(
        [
            used("a", A, 50, 1),
            used("a", A, 2, "0.5", cache_read_tokens=3, cache_write_tokens=2, reasoning_tokens=1),
            used("a", A, 1, None),
            Touch(session_id="b", user_id=B, dataset_id=D, agent_name="beta", at=NOW - 3 * HOUR),
            used("b", B, 3, 8),
            End(session_id="b", user_id=B, status="completed", at=NOW - 2 * HOUR),
            used("b", B, 1, 16),
            Touch(session_id="c", user_id=C, agent_name="gamma", at=NOW - 30 * HOUR),
            used("c", C, 30, 32),
            Touch(session_id="quiet", user_id=C, agent_name="gamma", at=NOW - 2 * HOUR),
        ]
    )


async def test_spend_is_by_the_time_of_use(session_database: SessionDatabase) -> None:
    await live(session_database)
    spend = session_database.reports.spend
    day = await spend(AUDITOR, since=NOW - DAY, until=NOW)
    assert day.model_dump(exclude_defaults=True) == {
        "cost_usd": Decimal("8.5"),
        "tokens_in": 30,
        "tokens_out": 12,
        "cache_read_tokens": 3,
        "cache_write_tokens": 2,
        "reasoning_tokens": 1,
        "events": 3,
        "unpriced_events": 1,
        "late_events": 1,
        "late_cost_usd": Decimal(16),
    }
    assert (await spend(AUDITOR, since=NOW - 50 * HOUR, until=NOW - 30 * HOUR)).cost_usd == 1
    assert (await spend(AUDITOR)).cost_usd == (
        await session_database.lifecycle.aggregate_stats(AUDITOR)
    ).total_spend_usd
    nothing = await spend(AUDITOR, since=NOW + HOUR)
    assert set(nothing.model_dump().values()) == {0}


async def test_spend_sums_only_visible_usage(session_database: SessionDatabase) -> None:
    await live(session_database)
    for viewer, cost in (
        (A, "1.5"),
        (Viewer(A, [D]), "9.5"),
        (Viewer(A, agent_user_ids=[C]), "33.5"),
        (Viewer.of_users([]), "0"),
        (D, "0"),
    ):
        assert (await session_database.reports.spend(viewer)).cost_usd == Decimal(cost)


async def test_cost_by_agent_and_by_user(session_database: SessionDatabase) -> None:
    await live(session_database)
    reports = session_database.reports

    async def agents(viewer: Viewer | UUID, **window: datetime) -> list[tuple[Any, ...]]:
        rows = await reports.cost_by_agent(viewer, **window)
        return [(row.agent_name, row.session_count, row.cost_usd) for row in rows]

    assert await agents(AUDITOR) == [("gamma", 2, 32), ("beta", 1, 8), ("unknown", 1, Decimal("1.5"))]
    assert await agents(Viewer(A, [D])) == [("beta", 1, 8), ("unknown", 1, Decimal("1.5"))]
    # The window is about the session's last activity, as in cost by model.
    assert await agents(AUDITOR, since=NOW - DAY) == [("beta", 1, 8), ("unknown", 1, Decimal("1.5")), ("gamma", 1, 0)]
    assert await agents(AUDITOR, until=NOW - DAY) == [("gamma", 1, 32)]
    assert await agents(D) == []
    users = await reports.cost_by_user(AUDITOR)
    assert [(row.user_id, row.session_count, row.cost_usd) for row in users] == [
        (C, 2, 32),
        (B, 1, 8),
        (A, 1, Decimal("1.5")),
    ]
    assert (users[2].tokens_in, users[2].cache_read_tokens, users[2].unpriced_events) == (30, 3, 1)
    assert [row.user_id for row in await reports.cost_by_user(A)] == [A]


async def test_ties_go_by_name(session_database: SessionDatabase) -> None:
    names = ["beta", "Alpha", "unknown", "alpha"]
    await session_database.lifecycle.record(
        [Touch(session_id=name, user_id=A, agent_name=name) for name in names] + [Touch(session_id="none", user_id=A)]
    )
    rows = await session_database.reports.cost_by_agent(A)
    assert [(row.agent_name, row.session_count) for row in rows] == [
        ("Alpha", 1),
        ("alpha", 1),
        ("beta", 1),
        ("unknown", 2),
    ]


async def store_ended_run(db: SessionDatabase, user: UUID, run_id: str, seconds: float | None, **more: Any) -> None:
    started_at = NOW - DAY
    ended_at = None if seconds is None else started_at + timedelta(seconds=seconds)
    await store_run(db, user, run_id, started_at, ended_at=ended_at, **more)


async def test_durations_are_exact_and_never_negative(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.ensure_and_touch_session("s", A)
    await store_ended_run(session_database, A, "short", 0.0002, session_id="s")
    summary = await session_database.reports.telemetry(A)
    assert summary.duration_p50_ms == summary.duration_p99_ms == 0.2
    await store_ended_run(session_database, A, "backwards", -1, session_id="s")
    summary = await session_database.reports.telemetry(A)
    assert (summary.runs_count, summary.duration_p50_ms) == (2, 0.1)


async def test_without_runs_there_are_zeros_and_no_percentiles(session_database: SessionDatabase) -> None:
    await store_ended_run(session_database, A, "open", None)
    await store_run(session_database, A, "only named", None)
    zeros = {name: 0 for name in TelemetrySummary.model_fields if not name.startswith("duration")}
    nones = {name: None for name in TelemetrySummary.model_fields if name.startswith("duration")}
    assert await session_database.reports.telemetry(A) == TelemetrySummary(**zeros, **nones)
    assert await session_database.reports.list_telemetry_keys(A) == []


async def test_telemetry_counts_only_visible_runs(session_database: SessionDatabase) -> None:
    db = session_database
    await live(db)
    for user, session_id in ((A, "a"), (B, "b"), (C, "c")):
        run_id = f"of {session_id}"
        await store_ended_run(db, user, run_id, 1, session_id=session_id, client=session_id, events_tokens_in=1)
        await store_step(db, user, run_id, "1", NOW, kind="tool", injected=True, errors=["x"])
        await store_step(db, user, run_id, "2", NOW, kind="tool", injected=True)
        await store_step(db, user, run_id, "3", NOW, kind="tool", errors=["x"])
        await store_step(db, user, run_id, "4", NOW, kind="task", injected=True)
        await store_message(db, user, session_id, "hi", run_id=run_id)
        await store_message(db, user, session_id, "hello", run_id=run_id, role="assistant")
    await store_ended_run(db, B, "waiting", 1, client="outside", dataset_id=D)
    for viewer, clients in (
        (A, ["a"]),
        (B, ["b", "outside"]),
        (Viewer(A, [D]), ["a", "b"]),
        (Viewer(A, agent_user_ids=[B]), ["a", "b", "outside"]),
        (AUDITOR, ["a", "b", "c", "outside"]),
        (Viewer.of_users([]), []),
    ):
        keys = await db.reports.list_telemetry_keys(viewer)
        assert [key.client for key in keys] == clients
        summary = await db.reports.telemetry(viewer)
        assert summary.runs_count == len(clients)
        in_sessions = len([client for client in clients if client != "outside"])
        assert (summary.tokens_in, summary.prompts_count) == (in_sessions, in_sessions)
        assert (summary.tool_calls_injected, summary.tool_calls_failed) == (2 * in_sessions, in_sessions)
        assert summary.tool_calls_not_injected == in_sessions


async def test_keys_are_sorted_with_nulls_last(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.ensure_and_touch_session("s", A)
    for number, (provider, model, client) in enumerate(
        [("b", "m", None), ("b", "m", "Unknown"), ("a", "n", "Z"), ("a", "m", "Z"), (None, None, "c"), ("a", None, "c")]
    ):
        of = {"session_id": "s", "provider": provider, "model": model, "client": client}
        await store_ended_run(session_database, A, str(number), 1, **of)
    keys = await session_database.reports.list_telemetry_keys(A)
    assert [(key.provider, key.model, key.client) for key in keys] == [
        ("a", "m", "Z"),
        ("a", "n", "Z"),
        ("a", None, "c"),
        ("b", "m", "Unknown"),
        (None, None, "c"),
    ]
    assert keys[0] == TelemetryKey(provider="a", model="m", client="Z")
    assert (await session_database.reports.telemetry(A, client="Unknown")).runs_count == 2


async def test_each_report_is_one_statement(session_database: SessionDatabase) -> None:
    reports = session_database.reports
    await reports.spend(A)
    async with noted(session_database) as sent:
        await reports.spend(A)
        await reports.cost_by_agent(A)
        await reports.cost_by_user(A)
        await reports.telemetry(A)
        await reports.list_telemetry_keys(A)
        await reports.tokens_by_class(A)
        await reports.session_durations(A)
        await reports.run_durations(A)
    assert len(sent) == 8


async def test_wrong_arguments_are_refused_by_name(session_database: SessionDatabase) -> None:
    reports: Any = session_database.reports  # as a host without a type checker has it
    naive = datetime.fromisoformat("2026-01-01")
    for field, call in (
        ("viewer", reports.spend("me")),
        ("since", reports.spend(A, since=naive)),
        ("until", reports.cost_by_agent(A, until=naive)),
        ("since", reports.cost_by_user(A, since=naive)),
        ("model", reports.telemetry(A, model="\x00")),
        ("client", reports.telemetry(A, client=7)),
        ("until", reports.list_telemetry_keys(A, until=naive)),
        ("since", reports.tokens_by_class(A, since=naive)),
        ("until", reports.session_durations(A, until=naive)),
        ("viewer", reports.run_durations("me")),
    ):
        with pytest.raises(InvalidValueError, match=field):
            await call
