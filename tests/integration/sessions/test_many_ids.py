"""A viewer with more ids than a statement takes parameters."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from session_lifecycle import Message, Run, SessionDatabase, SessionListFilters, SummaryFilters, Viewer
from session_lifecycle.models import RunFilters, UsageEventFilters

USER = UUID(int=1)
BEGAN = datetime.now(UTC) - timedelta(minutes=1)
UNTIL = BEGAN + timedelta(hours=1)
MANY = 40_000
"""asyncpg takes at most 32,767 parameters in one statement."""

READS: dict[str, Callable[[SessionDatabase, Viewer], Awaitable[Any]]] = {
    "get_session_row": lambda db, viewer: db.lifecycle.get_session_row("s", viewer),
    "prefer_other_owner": lambda db, viewer: db.lifecycle.get_session_row("s", viewer, prefer_other_owner=True),
    "of an owner": lambda db, viewer: db.lifecycle.get_session_row("s", viewer, owner_id=USER),
    "list_session_rows": lambda db, viewer: db.lifecycle.list_session_rows(SessionListFilters(viewer=viewer)),
    "of an owner's": lambda db, viewer: db.lifecycle.list_session_rows(
        SessionListFilters(viewer=viewer, owner_id=USER)
    ),
    "aggregate_stats": lambda db, viewer: db.lifecycle.aggregate_stats(viewer),
    "cost_by_model": lambda db, viewer: db.lifecycle.cost_by_model(viewer),
    "list_session_summaries": lambda db, viewer: db.activity.list_session_summaries(SummaryFilters(viewer=viewer)),
    "get_session_detail": lambda db, viewer: db.activity.get_session_detail("s", viewer),
    "get_recent_activity": lambda db, viewer: db.activity.get_recent_activity("s", viewer),
    "list_threads": lambda db, viewer: db.activity.list_threads("s", viewer),
    "list_runs": lambda db, viewer: db.activity.list_runs(RunFilters(viewer=viewer)),
    "list_usage_events": lambda db, viewer: db.activity.list_usage_events(UsageEventFilters(viewer=viewer)),
    "list_models": lambda db, viewer: db.activity.list_models(viewer),
    "list_clients": lambda db, viewer: db.activity.list_clients(viewer),
    "list_agents": lambda db, viewer: db.activity.list_agents(viewer),
    "chat_history": lambda db, viewer: db.activity.chat_history("s", viewer),
    "usage": lambda db, viewer: db.reports.usage(viewer, group_by=("user", "client")),
    "spend": lambda db, viewer: db.reports.spend(viewer),
    "usage_timeseries": lambda db, viewer: db.reports.usage_timeseries(viewer, since=BEGAN, until=UNTIL),
    "tokens_by_class": lambda db, viewer: db.reports.tokens_by_class(viewer),
    "cost_by_agent": lambda db, viewer: db.reports.cost_by_agent(viewer),
    "cost_by_user": lambda db, viewer: db.reports.cost_by_user(viewer),
    "cost_by_user_agent": lambda db, viewer: db.reports.cost_by_user_agent(viewer),
    "telemetry": lambda db, viewer: db.reports.telemetry(viewer),
    "list_telemetry_keys": lambda db, viewer: db.reports.list_telemetry_keys(viewer),
    "session_durations": lambda db, viewer: db.reports.session_durations(viewer),
    "run_durations": lambda db, viewer: db.reports.run_durations(viewer),
}


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("whose", ["datasets", "agents"])
async def test_X35_every_read_takes_more_ids_than_a_statement_takes_parameters(
    session_database: SessionDatabase, whose: str
) -> None:
    shared, others = uuid4(), [uuid4() for _ in range(MANY)]
    run = Run(
        run_id="r",
        user_id=USER,
        session_id="s",
        dataset_id=shared,
        agent_name="a",
        client="c",
        model="m",
        started_at=BEGAN,
        ended_at=BEGAN,
        status="completed",
    )
    said = Message(message_id="m", user_id=USER, session_id="s", role="user", content="hello", created_at=BEGAN)
    await session_database.lifecycle.record([run, said])
    await session_database.lifecycle.accumulate_usage("s", USER, "m", 1, cost_usd=1)
    few, many = (
        (Viewer(None, [shared]), Viewer(None, [*others, shared]))
        if whose == "datasets"
        else (Viewer(None, (), [USER]), Viewer(None, (), [*others, USER]))
    )
    for name, read in READS.items():
        of_few, of_many = await read(session_database, few), await read(session_database, many)
        assert of_many, name
        assert of_many == of_few, name
