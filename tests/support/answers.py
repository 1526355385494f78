"""Rows in every table, and what every read answers of them."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from session_lifecycle import (
    End,
    Message,
    Run,
    RunFilters,
    SessionDatabase,
    SessionListFilters,
    Step,
    SummaryFilters,
    Touch,
    UsageEvent,
    Viewer,
)
from session_lifecycle.models import Budget, UsageEventFilters

USERS = [UUID(int=number) for number in (1, 2, 3)]
SHARED, OTHER = UUID(int=11), UUID(int=12)
STARTED = datetime(2026, 1, 1, tzinfo=UTC)
VIEWERS = [
    Viewer(USERS[0]),
    Viewer(USERS[1], [SHARED]),
    Viewer(USERS[2], [SHARED, OTHER], [USERS[0]]),
    Viewer(UUID(int=99)),
    Viewer(UUID(int=99), [OTHER]),
    Viewer.of_users([]),
    Viewer.auditor(),
]


async def fill(url: str, owner_url: str) -> None:
    """Rows of every user in every table, some of them shared and some rolled up."""
    async with SessionDatabase.connect(url) as db, SessionDatabase.connect(owner_url) as owner:
        for number, user in enumerate(USERS):
            dataset = (SHARED, OTHER, None)[number]
            for session in ("over", "ended", "open", "alone"):
                key = {"session_id": session, "user_id": user}
                of_dataset = None if session == "alone" else dataset
                run = Run(run_id=f"r-{session}", **key, started_at=STARTED, model="m", agent_name="a", client="c")
                await db.lifecycle.record(
                    [
                        Touch(**key, agent_name="a", dataset_id=of_dataset),
                        UsageEvent(**key, model="m", tokens_in=1, cost_usd=1, idempotency_key="k", run_id=run.run_id),
                        run,
                        Step(step_id="t", run_id=run.run_id, user_id=user, kind="task", started_at=STARTED),
                        Message(message_id=session, **key, role="user", content="secret", created_at=STARTED),
                    ]
                )
                await db.lifecycle.annotate_session(session, user, "quality", score=1)
            ends = [End(session_id=name, user_id=user, status="completed") for name in ("over", "ended")]
            await db.lifecycle.record(ends)
        await owner.maintenance.roll_up()
        for user in USERS:
            await owner.budgets.set_budget(Budget(budget_id=str(user), user_id=user, limit_usd=9))
            await db.budgets.reserve("open", user, cost_usd=1, idempotency_key="b")
            # Taken out of the roll-ups and not yet put into the buckets.
            await db.lifecycle.reopen_session("over", user)
            ends = [End(session_id=name, user_id=user, status="completed") for name in ("over", "ended")]
            await db.lifecycle.record(ends)
        await owner.maintenance.reprice(since=STARTED - timedelta(days=1), until=STARTED)
        async with owner.engine.begin() as connection:
            await connection.exec_driver_sql(
                "INSERT INTO session_lifecycle.session_tombstones (user_id) SELECT * FROM unnest("
                f"'{{{','.join(map(str, USERS))}}}'::uuid[])"
            )


async def answers(db: SessionDatabase, viewer: Viewer) -> list[object]:
    """What every read answers to this viewer, without what depends on the moment of asking."""
    since, until = STARTED - timedelta(days=1), datetime(2030, 1, 1, tzinfo=UTC)
    return [
        await db.lifecycle.list_session_rows(SessionListFilters(viewer=viewer)),
        await db.lifecycle.aggregate_stats(viewer),
        await db.lifecycle.cost_by_model(viewer),
        await db.lifecycle.get_session_row("open", viewer),
        await db.lifecycle.list_annotations("open", viewer),
        await db.lifecycle.get_family_figures("over", viewer),
        await db.activity.list_session_summaries(SummaryFilters(viewer=viewer)),
        await db.activity.list_session_summaries(SummaryFilters(viewer=viewer, search="ECRE")),
        await db.activity.get_session_detail("open", viewer),
        await db.activity.get_recent_activity("open", viewer),
        await db.activity.list_threads("open", viewer),
        await db.activity.list_runs(RunFilters(viewer=viewer, include_open=True)),
        await db.activity.list_usage_events(UsageEventFilters(viewer=viewer)),
        await db.activity.list_models(viewer),
        await db.activity.list_clients(viewer),
        await db.activity.list_agents(viewer),
        await db.activity.chat_history("over", viewer),
        await db.reports.spend(viewer),
        await db.reports.usage(viewer, group_by=("user", "model")),
        await db.reports.usage_timeseries(viewer, since=since, until=until, bucket="month"),
        await db.reports.cost_by_user(viewer),
        await db.reports.session_durations(viewer),
        await db.reports.telemetry(viewer),
        await db.reports.list_telemetry_keys(viewer),
        await db.budgets.list_budgets(viewer),
    ]
