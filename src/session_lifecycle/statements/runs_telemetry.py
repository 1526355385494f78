"""Telemetry of runs: how many ended, how long they took, what they used."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Numeric,
    Select,
    and_,
    func,
    not_,
    select,
    true,
)

from session_lifecycle.entities import SessionMessageEntity as Me
from session_lifecycle.entities import SessionRunEntity as R
from session_lifecycle.entities import SessionStepEntity as St
from session_lifecycle.models import MessageRole, Viewer
from session_lifecycle.models.activity_reads import RunChoice
from session_lifecycle.models.reports import TelemetryFilters
from session_lifecycle.statements.costs import UNKNOWN_AGENT
from session_lifecycle.statements.durations import durations_of, percentiles
from session_lifecycle.statements.run_figures import CLIENT, DURATION_US, RUNS_AND_SESSIONS, TOOL, counted
from session_lifecycle.statements.visibility import visible_run
from session_lifecycle.statements.windows import within


def telemetry(viewer: Viewer, filters: TelemetryFilters) -> Select[*tuple[Any, ...]]:
    """Exactly one row; the percentiles are microseconds, null without runs."""
    choice = RunChoice(provider=filters.provider, model=filters.model, client=filters.client, include_open=False)
    runs = _ended_runs(viewer, choice, filters.since, filters.until)
    figures = select(
        func.count().label("runs_count"),
        func.count(runs.c.user_id.distinct()).label("users_count"),
        *(percentile.label(name) for name, percentile in percentiles(runs.c.duration_us).items()),
        *(
            func.coalesce(func.sum(runs.c[f"events_{name}"]), 0).cast(Numeric).label(name)
            for name in ("tokens_in", "tokens_out", "cache_read_tokens", "cache_write_tokens")
        ),
    ).subquery("figures")
    is_tool = and_(St.user_id == runs.c.user_id, St.run_id == runs.c.run_id, St.kind == TOOL)
    tools = (
        select(
            _count(St.injected.expression).label("tool_calls_injected"),
            _count(St.injected.expression, St.is_error.expression).label("tool_calls_failed"),
            _count(not_(St.injected)).label("tool_calls_not_injected"),
        )
        .select_from(runs.join(St, is_tool))
        .subquery("tools")
    )
    is_prompt = and_(
        Me.user_id == runs.c.user_id,
        Me.run_id == runs.c.run_id,
        # Who sees a run need not see another session, whose message may name it all the same.
        Me.session_id == func.coalesce(runs.c.session_id, Me.session_id),
        Me.role == MessageRole.USER.value,
    )
    prompts = select(func.count().label("prompts_count")).select_from(runs.join(Me, is_prompt)).subquery("prompts")
    return select(*figures.c, *tools.c, *prompts.c).select_from(figures.join(tools, true()).join(prompts, true()))


def telemetry_keys(viewer: Viewer, since: datetime | None, until: datetime | None) -> Select[*tuple[Any, ...]]:
    """Every provider, model and client of runs that ended in the window, each together once, in that order."""
    runs = _ended_runs(viewer, RunChoice(include_open=False), since, until)
    columns = (runs.c.provider, runs.c.model, runs.c.client)
    return select(*columns).distinct().order_by(*columns)


def run_durations(viewer: Viewer, since: datetime | None, until: datetime | None) -> Select[*tuple[Any, ...]]:
    """As `durations_of`, of the runs that ended in the window, by agent."""
    runs = _ended_runs(viewer, RunChoice(include_open=False), since, until)
    agent_name = func.coalesce(runs.c.agent_name, UNKNOWN_AGENT).label("key")
    return durations_of(select(agent_name, runs.c.duration_us).subquery("durations"))


def _ended_runs(viewer: Viewer, choice: RunChoice, since: datetime | None, until: datetime | None) -> CTE:
    """The runs that ended in the window and that the viewer sees, in visible sessions or waiting outside of any."""
    columns = [column for column in R.__table__.c if column.key != "client"]
    return (
        select(*columns, CLIENT.label("client"), DURATION_US.label("duration_us"))
        .select_from(RUNS_AND_SESSIONS)
        .where(visible_run(viewer), *counted(choice), *within(R.ended_at, since, until))
        .cte("runs")
    )


def _count(*conditions: ColumnElement[bool]) -> ColumnElement[int]:
    return func.count().filter(*conditions).cast(BigInteger)
