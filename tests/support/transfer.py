"""A history that has every rare class, and every answer that a database gives about it."""

import inspect
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from session_lifecycle import (
    End,
    Message,
    Run,
    RunFilters,
    SessionActivityDb,
    SessionBudgetsDb,
    SessionDatabase,
    SessionLifecycleDb,
    SessionListFilters,
    SessionReportsDb,
    Step,
    SummaryFilters,
    Touch,
    UsageEvent,
    Viewer,
)
from session_lifecycle.buckets.database import BucketDatabase
from session_lifecycle.models import Budget, ImportReport, Item, PriceOverride, RefusedRow, UsageEventFilters
from session_lifecycle.models.session_filters import ALL_SESSION_ORDERS
from session_lifecycle.testing import TemplateServer

A, B, C = (UUID(int=number) for number in (1, 2, 3))
D1, D2 = UUID(int=11), UUID(int=12)
DAY = datetime(2026, 2, 1, 8, tzinfo=UTC)
PRICES = [PriceOverride(model_pattern="m*", input_usd_per_million=Decimal("1.23456789"), output_usd_per_million=2)]
TINY = Decimal("0.000000000000000000000000000001")
WRITES = {
    *("ensure_and_touch_session", "accumulate_usage", "end_session", "reopen_session", "record", "update_session"),
    *("annotate_session", "set_budget", "delete_budget", "reserve", "release", "would_exceed"),
}
_numbers = count(1)


def at(minutes: float) -> datetime:
    return DAY + timedelta(minutes=minutes)


def _event(user: UUID, session_id: str, minute: float, **fields: Any) -> UsageEvent:
    return UsageEvent(
        **{"user_id": user, "session_id": session_id, "at": at(minute), "model": "m", "tokens_in": 100, **fields}
    )


def _items(user: UUID) -> Iterator[Sequence[Item]]:
    """What happened to a user, in the batches in which it is recorded."""
    yield [
        Touch(
            user_id=user, session_id="s", at=at(0), agent_name="coder", title="Tïtle 🎈", metadata={"deep": [1, 0.1]}
        ),
        Touch(user_id=user, session_id="s", at=at(0), dataset_id=D1, tags={"customer": "acme"}),
        _event(user, "s", 1, tokens_out=7, cache_read_tokens=3, cache_write_tokens=2, idempotency_key="k1"),
        _event(user, "s", 2, cost_usd=TINY, tokens_out=9, reasoning_tokens=4, details={"odd": 3}),
        _event(user, "s", 2, model="M", cost_usd=Decimal("0.10"), provider="openai"),
        _event(user, "s", 3, model="nobody-prices-it", idempotency_key="unpriced"),
        _event(user, "s", 3, measured=False, tokens_in=0, idempotency_key="never came"),
        _event(user, "s", 3, partial=True, idempotency_key="cut off"),
        _event(user, "s", 4, billing="plan", tokens_out=50, service_tier="batch"),
        _event(user, "s", 4, audio_tokens_in=5, web_searches=2, kind="embedding"),
        _event(user, "s", 5, errored=True, tokens_in=0, model=None),
        _event(user, "s", 5, tokens_in=0, model="only-named", idempotency_key="named"),
        _event(user, "s", 5, model=None, cost_usd=1),
    ]
    # A revision, and a key of the user's scope in a fork that comes later.
    yield [_event(user, "s", 6, tokens_in=900, idempotency_key="k1", revision=3)]
    yield [
        _event(user, "origin", 7, idempotency_key="forked", key_scope="user", cost_usd=2),
        _event(user, "fork", 9, idempotency_key="forked", key_scope="user", cost_usd=2),
    ]
    # A run that moves into a session with its thread, and a run outside any session.
    yield [
        Run(user_id=user, run_id="child", parent_run_id="root", started_at=at(10), ended_at=at(11), model="m"),
        Step(user_id=user, run_id="child", step_id="tool", kind="tool", name="grep", started_at=at(10), errors=["no"]),
        _event(user, "s", 10.5, run_id="child"),
    ]
    yield [
        Run(user_id=user, run_id="root", session_id="moved", started_at=at(9), client="cli", provider="openai"),
        Run(user_id=user, run_id="alone", parent_run_id="nobody", started_at=at(10), ended_at=at(10.5)),
        Run(
            user_id=user,
            run_id="reports",
            session_id="s",
            started_at=at(12),
            ended_at=at(13),
            status="failed",
            error="it broke",
            model="m",
            reported_cost_usd=Decimal("3.000000000000000000000000000002"),
            reported_tokens=77,
            quality_score=0.1,
            input={"prompt": "ä", "n": 1.10},
            output=[None, True, "x"],
            project="p",
            agent_name="coder",
        ),
        _event(user, "s", 12.5, run_id="reports", cost_usd=1),
        Step(
            user_id=user,
            run_id="reports",
            step_id="2",
            kind="task",
            started_at=at(12),
            seq=2,
            prompt="p",
            injected=True,
        ),
        Step(user_id=user, run_id="reports", step_id="1", kind="task", started_at=at(12), seq=1, tool_call_id="call"),
        Run(user_id=user, run_id="called", parent_tool_call_id="call", started_at=at(12.1), ended_at=at(12.2)),
    ]
    # At one moment, in an order that no id has.
    yield [
        Message(user_id=user, session_id="s", message_id=one, role="user", content=f"Straße {one}\n", created_at=at(14))
        for one in ("z", "a", "m")
    ]
    yield [
        Message(
            user_id=user,
            session_id="s",
            message_id="t",
            run_id="reports",
            role="thought",
            content="hm",
            created_at=at(14),
        ),
        Touch(user_id=user, session_id="waits", at=at(15), waiting=True, parent_session_id="s"),
        Touch(user_id=user, session_id="grandchild", at=at(15), parent_session_id="waits", dataset_id=D2),
        _event(user, "grandchild", 15),
        Touch(user_id=user, session_id="ended", at=at(15)),
        _event(user, "ended", 16, idempotency_key="in time"),
        End(user_id=user, session_id="ended", at=at(17), status="failed", reason="gave up"),
    ]
    # After the end: late. From before it: counted. A revision of the late one, and a session that lives again.
    yield [_event(user, "ended", 18, idempotency_key="late", cost_usd=5), _event(user, "ended", 16.5, cost_usd=1)]
    yield [_event(user, "ended", 18, idempotency_key="late", cost_usd=6, revision=1)]
    yield [
        Touch(user_id=user, session_id="again", at=at(19)),
        End(user_id=user, session_id="again", at=at(20), status="completed"),
        _event(user, "again", 21, cost_usd=1),
    ]


async def live(db: SessionDatabase, users: Sequence[UUID] = (A, B)) -> None:
    """Records a history with every rare class for each user, rolls up, changes rolled-up sessions, erases a user."""
    for user in users:
        for items in _items(user):
            await db.lifecycle.record(items)
        await db.lifecycle.reopen_session("again", user, at=at(22))
        await db.lifecycle.record([_event(user, "again", 23)])
        await db.lifecycle.update_session("grandchild", user, dataset_id=None, title="of no dataset any more")
        await db.lifecycle.annotate_session("s", user, "quality", score=0.3, label="good", annotator="judge", at=at(30))
        await db.lifecycle.annotate_session("s", user, "quality", score=1, comment="a human", at=at(31))
        await db.budgets.set_budget(
            Budget(budget_id=f"of {user}", user_id=user, limit_usd=Decimal("100.50"), window="month")
        )
    await db.budgets.set_budget(
        Budget(budget_id="coder", agent_name="coder", limit_tokens=10, window=timedelta(days=3))
    )
    await db.lifecycle.record([Touch(user_id=C, session_id="gone", at=at(0))])
    await db.maintenance.erase_user(C, tombstone=True)
    await db.maintenance.reprice("m")
    await db.maintenance.roll_up()
    for user in users:
        await db.lifecycle.record([_event(user, "ended", 16.7, idempotency_key="taken out of the roll-ups")])


async def imported(db: SessionDatabase | BucketDatabase, folder: Path) -> tuple[ImportReport, list[str]]:
    """Imports a complete export: the report, and what was refused."""
    refused: list[RefusedRow] = []
    report = await db.maintenance.import_export(folder, on_refused=refused.append)
    return report, [str(one) for one in refused]


def rows_of(manifest: Mapping[str, Any]) -> dict[str, int]:
    """The number of rows of each table of a complete export."""
    return {table: entry["rows"] for table, entry in manifest["tables"].items()}


VIEWERS = {
    "the auditor": Viewer.auditor(),
    "B with a dataset": Viewer(B, permitted_dataset_ids=[D1]),
    "the agent's user": Viewer(UUID(int=98), permitted_dataset_ids=[D1, D2], agent_user_ids=[A]),
    "a stranger": Viewer(UUID(int=97)),
}
SESSIONS = ("s", "origin", "fork", "moved", "waits", "grandchild", "ended", "again", "child", "none")


async def answers(db: SessionDatabase | BucketDatabase) -> dict[str, Any]:
    """Every read of lists, activity, reports and budgets, as values of Python, by name and arguments."""
    found: dict[str, Any] = {}
    for name, viewer in VIEWERS.items():
        async for call, answer in _answers(db, viewer, thorough=viewer.sees_all):
            found[f"{name}: {call}"] = _plain(answer)
    for user in (A, B, C):
        found[f"everybody: find_lineage {user}"] = _plain(await db.activity.find_lineage(user, "call"))
    called = {key.partition(": ")[2].partition(" ")[0] for key in found}
    assert called == reads(), called ^ reads()
    return found


def reads() -> set[str]:
    """The names of all calls that read."""
    roles = (SessionLifecycleDb, SessionActivityDb, SessionReportsDb, SessionBudgetsDb)
    names = {name for role in roles for name, _ in inspect.getmembers(role, inspect.isfunction)}
    return {name for name in names if not name.startswith("_")} - WRITES


async def _answers(
    db: SessionDatabase | BucketDatabase, viewer: Viewer, *, thorough: bool
) -> AsyncIterator[tuple[str, Any]]:
    """Every read as this viewer; thorough: also of every session and in every order."""
    lifecycle, activity, reports = db.lifecycle, db.activity, db.reports
    for order in ALL_SESSION_ORDERS if thorough else ALL_SESSION_ORDERS[:1]:
        for descending in (True, False):
            filters = SessionListFilters(viewer=viewer, order_by=order, descending=descending)
            yield f"list_session_rows {order} {descending}", await lifecycle.list_session_rows(filters)
    for status in ("running", "waiting", "completed", "failed", "abandoned"):
        listed = await lifecycle.list_session_rows(SessionListFilters(viewer=viewer, status_filter=status))
        yield f"list_session_rows {status}", listed
    for more in ({"tags": {"customer": "acme"}}, {"annotation": "quality"}, {"tool": "grep"}, {"agent_name": "coder"}):
        yield f"list_session_rows {more}", await lifecycle.list_session_rows(SessionListFilters(viewer=viewer, **more))
    windows = ((None, None), (at(0), at(16)), (at(15), None))
    for window in windows:
        since, until = window
        yield f"aggregate_stats {window}", await lifecycle.aggregate_stats(viewer, since=since, until=until)
        yield f"cost_by_model {window}", await lifecycle.cost_by_model(viewer, since=since, until=until)
        yield f"spend {window}", await reports.spend(viewer, since=since, until=until)
        yield f"telemetry {window}", await reports.telemetry(viewer, since=since, until=until)
        yield f"cost_by_agent {window}", await reports.cost_by_agent(viewer, since=since, until=until)
    for session_id in SESSIONS if thorough else SESSIONS[:1]:
        yield f"get_session_row {session_id}", await lifecycle.get_session_row(session_id, viewer)
        yield f"list_annotations {session_id}", await lifecycle.list_annotations(session_id, viewer)
        yield f"get_family_figures {session_id}", await lifecycle.get_family_figures(session_id, viewer)
        yield f"get_session_detail {session_id}", await activity.get_session_detail(session_id, viewer)
        yield f"get_recent_activity {session_id}", await activity.get_recent_activity(session_id, viewer)
        yield f"list_threads {session_id}", await activity.list_threads(session_id, viewer)
        yield f"chat_history {session_id}", await activity.chat_history(session_id, viewer)
    yield "list_session_summaries", await activity.list_session_summaries(SummaryFilters(viewer=viewer))
    yield (
        "list_session_summaries search",
        await activity.list_session_summaries(SummaryFilters(viewer=viewer, search="STRASSE")),
    )
    yield "list_runs", await activity.list_runs(RunFilters(viewer=viewer, include_open=True))
    yield "list_usage_events", await activity.list_usage_events(UsageEventFilters(viewer=viewer))
    for call in (activity.list_models, activity.list_clients, activity.list_agents):
        yield call.__name__, await call(viewer)
    for dimensions in (("model", "provider"), ("agent", "user"), ("session", "run"), ("status",), ("tag:customer",)):
        yield f"usage {dimensions}", await reports.usage(viewer, group_by=dimensions)
    series = await reports.usage_timeseries(viewer, since=at(-60), until=at(60), bucket="hour", group_by="model")
    yield "usage_timeseries", series
    for report in (
        reports.tokens_by_class,
        reports.cost_by_user,
        reports.cost_by_user_agent,
        reports.session_durations,
        reports.run_durations,
        reports.list_telemetry_keys,
    ):
        yield report.__name__, await report(viewer)
    yield "list_budgets", await db.budgets.list_budgets(viewer)
    yield "get_budget", await db.budgets.get_budget(f"of {A}", viewer)


def _plain(answer: Any) -> Any:
    """The answer without what tells of the moment at which it was asked for: the cursors of pages."""
    match answer:
        case BaseModel():
            return {name: _plain(value) for name, value in answer if not name.endswith("cursor")}
        case list() | tuple():
            return [_plain(one) for one in answer]
        case dict():
            return {name: _plain(value) for name, value in answer.items()}
        case _:
            return answer


@asynccontextmanager
async def another_database(server: TemplateServer) -> AsyncIterator[SessionDatabase]:
    """A further migrated and empty database."""
    name = f"session_lifecycle_transfer_{next(_numbers)}"
    await server.clone(name)
    try:
        async with SessionDatabase.connect(server.url_of(name), prices=PRICES) as db:
            yield db
    finally:
        await server.drop(name)
