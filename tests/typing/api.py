"""Type-checked, never run: what hosts write against the public names."""

from collections.abc import Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, Unpack, assert_type
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from session_lifecycle import (
    End,
    EndOutcome,
    Message,
    ReopenOutcome,
    RunFilters,
    SessionActivityDb,
    SessionBudgetsDb,
    SessionDatabase,
    SessionLifecycleDb,
    SessionListFilters,
    SessionMaintenanceDb,
    SessionReportsDb,
    SessionStatus,
    SessionWriter,
    Spool,
    SummaryFilters,
    Touch,
    TouchOutcome,
    UsageEvent,
    UsageReceipt,
    Viewer,
    current_run,
    traced,
)
from session_lifecycle.maintenance.background import BackgroundRollUp, RollUpSnapshot
from session_lifecycle.models import (
    Budget,
    BudgetUse,
    CostByAgentRow,
    CostByModelRow,
    CostByUserAgentRow,
    CostByUserRow,
    Durations,
    EffectiveStatus,
    ErasureReceipt,
    ExportBatch,
    FamilyFigures,
    ImportReport,
    Item,
    Lineage,
    PruneReport,
    Receipt,
    RecentActivity,
    ReconcileReport,
    RefusedRow,
    Reservation,
    RollUpReport,
    RunDurations,
    RunPage,
    SessionAnnotation,
    SessionDetail,
    SessionDurations,
    SessionListPage,
    SessionRecord,
    SessionRowWithStatus,
    SessionStats,
    Spend,
    SummaryPage,
    TelemetryKey,
    TelemetrySummary,
    ThreadPage,
    TokensByClass,
    UsageEventFilters,
    UsageEventPage,
    UsageFilters,
    UsagePoint,
    UsageReport,
)
from session_lifecycle.models.doctor import DatabaseFigures, DoctorReport, Finding
from session_lifecycle.models.schema import RoleReport, RowLevelSecurityReport, SchemaRevisions
from session_lifecycle.models.usage import RareUse
from session_lifecycle.roles import SessionRoles
from session_lifecycle.writing.attempt import Attempt
from session_lifecycle.writing.run_block import RunBlock
from session_lifecycle.writing.session_block import SessionBlock
from session_lifecycle.writing.spool import DrainReport, PoisonItem, SpoolStatus
from session_lifecycle.writing.spool_session import SpoolSession
from session_lifecycle.writing.step_block import StepBlock
from session_lifecycle.writing.synchronous import SynchronousSessionBlock


async def write(writer: SessionWriter, user: UUID, at: datetime) -> None:
    """Every write, in the reference's call shapes and ours."""
    assert_type(await writer.ensure_and_touch_session("s", user, None, agent_name="a", at=at), TouchOutcome)
    receipt = await writer.accumulate_usage("s", user, "gpt-4o", 100, 50, 0.012, False)
    assert_type(receipt, UsageReceipt)
    assert_type(receipt.cost_usd, Decimal | None)
    await writer.accumulate_usage("s", user, cost_usd=Decimal(1), idempotency_key="k")
    assert_type(await writer.end_session("s", user, SessionStatus.FAILED), EndOutcome)
    assert_type(await writer.reopen_session("s", user), ReopenOutcome)
    items: Sequence[Item] = [
        Touch(session_id="s", user_id=user),
        UsageEvent(session_id="s", user_id=user, tokens_in=1),
        End(session_id="s", user_id=user, status=SessionStatus.COMPLETED),
    ]
    assert_type(await writer.record(items), list[Receipt])


async def read(sessions: SessionLifecycleDb, user: UUID, since: datetime) -> None:
    """Every read, for a viewer and for a bare user id."""
    viewer = Viewer(user, [user], [user])
    assert_type(await sessions.get_session_row("s", user, [user], True), SessionRowWithStatus | None)
    assert_type(await sessions.get_session_row("s", viewer, owner_id=user), SessionRowWithStatus | None)
    page = await sessions.list_session_rows(SessionListFilters(viewer=viewer, since=since))
    assert_type(page, SessionListPage)
    assert_type(page.total, int | None)
    assert_type(page.sessions[0].effective_status, EffectiveStatus)
    assert_type(page.sessions[0].record.cost_usd, Decimal)
    assert_type(page.sessions[0].record.ended_at, datetime | None)
    assert_type(page.sessions[0].to_dict(), dict[str, Any])
    assert_type(await sessions.aggregate_stats(user, [user], since), SessionStats)
    assert_type(await sessions.cost_by_model(Viewer.auditor(), until=since), list[CostByModelRow])
    assert_type(await sessions.update_session("s", user, title=None, tags={"a": "b"}), SessionRecord | None)
    annotated = await sessions.annotate_session("s", user, "quality", score=1, annotator="eve", at=since)
    assert_type(annotated, SessionAnnotation | None)
    annotations = await sessions.list_annotations("s", viewer, owner_id=user, limit=10, offset=10)
    assert_type(annotations, list[SessionAnnotation])
    assert_type(await sessions.get_family_figures("s", viewer), FamilyFigures | None)


async def look_into(activity: SessionActivityDb, user: UUID, since: datetime) -> None:
    """Every read of activity, for a viewer and for a bare user id."""
    viewer = Viewer(user, [user], [user])
    assert_type(await activity.find_lineage(user, "call"), Lineage | None)
    page = await activity.list_session_summaries(SummaryFilters(viewer=viewer, search="x", project="default"))
    assert_type(page, SummaryPage)
    assert_type(page.sessions[0].session_id, str)
    assert_type(page.sessions[0].cost_usd, Decimal)
    assert_type(page.sessions[0].models, tuple[str, ...])
    assert_type(await activity.get_session_detail("s", user, owner_id=user, project="p"), SessionDetail | None)
    assert_type(await activity.get_session_detail("s", user, steps_limit=20), SessionDetail | None)
    threads = await activity.list_threads("s", viewer, owner_id=user, limit=1, after="r")
    assert_type(threads, ThreadPage | None)
    runs = await activity.list_runs(RunFilters(user_id=user, since=since, include_open=True, steps_limit=5))
    assert_type(runs, RunPage)
    assert_type(runs.runs[0].duration_ms, float | None)
    assert_type(runs.runs[0].reported_cost_usd, Decimal | None)
    events = await activity.list_usage_events(UsageEventFilters(viewer=viewer, kind="llm", model="m", since=since))
    assert_type(events, UsageEventPage)
    assert_type(events.events[0].unit_prices, dict[str, str] | None)
    assert_type(await activity.get_recent_activity("s", viewer, owner_id=user, limit=5), RecentActivity | None)
    assert_type(await activity.list_models(user, "gpt-"), list[str])
    assert_type(await activity.list_clients(viewer), list[str])
    assert_type(await activity.list_agents(Viewer.auditor()), list[str])
    assert_type(await activity.chat_history("s", user, limit=1, max_characters=1), list[Message])


async def report(reports: SessionReportsDb, user: UUID, since: datetime) -> None:
    """Every report."""
    assert_type(await reports.spend(user, since=since), Spend)
    usage = await reports.usage(
        viewer=Viewer(user),
        group_by=["user", "agent", "tag:team", "day"],
        since=since,
        until=since,
        filters=UsageFilters(billing="plan", tags={"team": "red"}),
        order_by="day",
        limit=10,
        timezone="Europe/Berlin",
        details=("pages",),
    )
    assert_type(usage, UsageReport)
    assert_type(usage.rows[0].agent_name, str | None)
    assert_type(usage.rows[0].tags, dict[str, str | None])
    assert_type(usage.total.details, dict[str, int])
    assert_type(await reports.cost_by_agent(Viewer.auditor(), since=since, until=since), list[CostByAgentRow])
    assert_type(await reports.cost_by_user(user), list[CostByUserRow])
    assert_type(await reports.cost_by_user_agent(user, since=since), list[CostByUserAgentRow])
    tokens = await reports.tokens_by_class(user, since=since)
    assert_type(tokens, TokensByClass)
    assert_type(tokens.by_model["m"].uncached_input_tokens, int)
    sessions = await reports.session_durations(user, since=since, until=since)
    assert_type(sessions, SessionDurations)
    assert_type(sessions.by_status[EffectiveStatus.ABANDONED].p99_s, float | None)
    runs = await reports.run_durations(Viewer.auditor(), since=since)
    assert_type(runs, RunDurations)
    assert_type(runs.by_agent["coder"], Durations)
    points = await reports.usage_timeseries(user, since=since, until=since, bucket="hour", group_by="model")
    assert_type(points, list[UsagePoint])
    telemetry = await reports.telemetry(user, provider="anthropic", model="m", client="Unknown", until=since)
    assert_type(telemetry, TelemetrySummary)
    assert_type(telemetry.duration_p99_ms, float | None)
    assert_type(await reports.list_telemetry_keys(user, since=since), list[TelemetryKey])


async def care(maintenance: SessionMaintenanceDb, user: UUID, age: timedelta) -> None:
    """What an operator calls."""
    told: list[PruneReport] = []
    assert_type(await maintenance.prune_sessions(age, batch=10, on_progress=told.append), PruneReport)
    assert_type(await maintenance.prune_payloads(age, dry_run=True), PruneReport)
    assert_type(await maintenance.delete_session("s", user), bool)
    receipt = await maintenance.erase_user(user, usage="anonymise", tombstone=True)
    assert_type(receipt, ErasureReceipt)
    assert_type(receipt.pseudonym, UUID | None)
    assert_type(await maintenance.reconcile(repair=True), ReconcileReport)
    assert_type(await maintenance.roll_up(on_progress=lambda _report: None), RollUpReport)
    async with aclosing(maintenance.export("usage_events", UsageEventFilters(viewer=Viewer(user)))) as batches:
        async for batch in batches:
            assert_type(batch, ExportBatch)
    refused: list[RefusedRow] = []
    assert_type(await maintenance.import_export("folder", on_refused=refused.append), ImportReport)


async def limit(budgets: SessionBudgetsDb, user: UUID) -> None:
    """Limits, and what is asked before a model is called."""
    assert_type(await budgets.set_budget(Budget(budget_id="b", user_id=user, limit_usd=1, window="day")), bool)
    assert_type(await budgets.get_budget("b", user), BudgetUse | None)
    assert_type(await budgets.list_budgets(Viewer.auditor(), limit=10, after="a"), list[Budget])
    assert_type(await budgets.delete_budget("b"), bool)
    assert_type(await budgets.would_exceed("s", user, "m", 10, provider="p", billing="plan"), list[BudgetUse])
    answer = await budgets.reserve("s", user, "m", 10, 20, idempotency_key="k", lease=timedelta(minutes=1))
    assert_type(answer, Reservation)
    assert_type(answer.admitted, bool)
    assert_type(await budgets.release("s", user, "k", key_scope="user"), bool)


async def ways_in(engine: AsyncEngine, connection: AsyncConnection, session: AsyncSession) -> None:
    """The front door; every role is both protocols."""
    db = SessionDatabase.from_engine(engine, read_engine=engine)
    writer: SessionWriter = db.lifecycle
    reader: SessionLifecycleDb = db.lifecycle
    wrap(writer)
    wrap(reader)
    assert_type(db.activity, SessionActivityDb)
    assert_type(db.bind(connection).activity, SessionActivityDb)
    assert_type(db.bind(connection).lifecycle, SessionLifecycleDb)
    assert_type(db.bind(session, savepoints=False).lifecycle, SessionLifecycleDb)
    assert_type(db.reports, SessionReportsDb)
    assert_type(db.bind(connection).reports, SessionReportsDb)
    assert_type(db.maintenance, SessionMaintenanceDb)
    assert_type(db.budgets, SessionBudgetsDb)
    assert_type(db.bind(connection).budgets, SessionBudgetsDb)
    assert_type(db.bind(connection), SessionRoles)
    assert_type(db.primary, SessionRoles)
    assert_type(db.primary.lifecycle, SessionLifecycleDb)
    async with db.rolling_up(every=timedelta(minutes=1)) as rolling_up:
        assert_type(rolling_up, BackgroundRollUp)
        assert_type(rolling_up.snapshot(), RollUpSnapshot)
    async with SessionDatabase.connect("postgresql://h/x", read_url="postgresql://r/x", pgbouncer=True) as connected:
        assert_type(connected, SessionDatabase)
    async with SessionDatabase.embedded() as embedded:
        assert_type(embedded.engine, AsyncEngine)
    await db.migrate(connection=connection)
    await db.migrate(on_progress=print)
    assert_type(await db.migration_sql(), str)
    report = await db.diagnose(full=True, role="worker")
    assert_type(report, DoctorReport)
    assert_type(report.findings, tuple[Finding, ...])
    assert_type(await db.measure(), DatabaseFigures)
    assert_type(await db.administration.revisions(), SchemaRevisions)
    assert_type(await db.administration.check_role("reader"), RoleReport)
    assert_type(await db.administration.enable_row_level_security(["app"]), RowLevelSecurityReport)
    async with db.metrics(max_age=timedelta(minutes=1)) as metrics:
        assert_type(await metrics.text(), str)


class Unbilled:
    """A host's own writer, which is the protocol without inheriting it: what its agents use is free."""

    def __init__(self, inner: SessionWriter) -> None:
        # What is not changed may as well be handed through.
        self.ensure_and_touch_session = inner.ensure_and_touch_session
        self.record = inner.record
        self._inner = inner

    async def accumulate_usage(
        self,
        session_id: str,
        user_id: UUID | str,
        model: str | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        cost_usd: Decimal | float | str | None = None,
        errored: bool = False,
        *,
        provider: str | None = None,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        reasoning_tokens: int = 0,
        idempotency_key: str | None = None,
        at: datetime | None = None,
        **rare: Unpack[RareUse],
    ) -> UsageReceipt:
        """Every argument of the protocol."""
        return await self._inner.accumulate_usage(
            session_id,
            user_id,
            model,
            tokens_in,
            tokens_out,
            0 if cost_usd is None else cost_usd,
            errored,
            provider=provider,
            cache_read_tokens=cache_read_tokens,
            cache_write_tokens=cache_write_tokens,
            reasoning_tokens=reasoning_tokens,
            idempotency_key=idempotency_key,
            at=at,
            **rare,
        )

    async def end_session(
        self,
        session_id: str,
        user_id: UUID | str,
        status: SessionStatus | Literal["completed", "failed"],
        *,
        at: datetime | None = None,
    ) -> EndOutcome:
        """As it is."""
        return await self._inner.end_session(session_id, user_id, status, at=at)

    async def reopen_session(
        self, session_id: str, user_id: UUID | str, *, at: datetime | None = None
    ) -> ReopenOutcome:
        """As it is."""
        return await self._inner.reopen_session(session_id, user_id, at=at)


def wrap(inner: SessionWriter) -> SessionWriter:
    """It goes where the protocol is expected."""
    return Unbilled(inner)


@traced
async def answer(question: str) -> int:
    """A traced function has the signature that it had."""
    return len(question)


@traced(step="tool", name="search")
def search(words: str) -> list[str]:
    """A step."""
    return [words]


async def instrument(db: SessionDatabase, user: UUID) -> None:
    """Runs, steps and attempts, on every way to write."""
    assert_type(await answer("what?"), int)
    assert_type(search("words"), list[str])
    assert_type(current_run(), RunBlock | None)
    async with db.session(
        "s", user, parent_session_id="p", quiet=True, attempt_timeout=timedelta(minutes=1)
    ) as session:
        assert_type(session, SessionBlock)
        assert_type(session.child("c"), SessionBlock)
        async with session.run("r", input={"a": 1}) as run:
            assert_type(run, RunBlock)
            assert_type(run.run("below"), RunBlock)
            assert_type(run.message("user", "hello"), str)
            with run.step("tool", tool_call_id="c") as step, run.attempt("gpt-4o", "openai") as attempt:
                assert_type(step, StepBlock)
                assert_type(attempt, Attempt)
                attempt.usage("gpt-4o", 120, 40, cost_usd="0.1", web_searches=1, service_tier="flex", partial=True)
                attempt.fail(ValueError())
                step.finish(output=[1])
            run.finish(status="cancelled")
    assert_type(db.synchronous_recorder(spool=Spool()).session("s", user), SynchronousSessionBlock)


async def spool(db: SessionDatabase, user: UUID) -> None:
    """A spool."""
    with Spool("here", max_bytes=10**6) as spool, spool.session("s", user) as session:
        assert_type(session, SpoolSession)
        assert_type(spool.append([{"kind": "end", "session_id": "s", "user_id": str(user)}]), int)
        assert_type(spool.status(), SpoolStatus)
        assert_type(spool.poison(), list[PoisonItem])
        assert_type(await spool.drain(db), DrainReport)
        assert_type(await spool.drain(db.lifecycle, batch=10, follow=True), DrainReport)
        async with db.recorder(spool=spool) as recorder:
            assert_type(await spool.drain(recorder), DrainReport)
