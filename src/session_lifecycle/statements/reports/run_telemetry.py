"""Run telemetry: the number of ended runs, their durations, tokens and tool calls."""

from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Numeric,
    Select,
    Subquery,
    and_,
    func,
    not_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY

from session_lifecycle.models import MessageRole
from session_lifecycle.statements import tables
from session_lifecycle.statements.activity.run_figures import (
    CLIENT,
    DURATION_US,
    RUNS_AND_SESSIONS,
    RunsShape,
    counted,
    is_message_of,
)
from session_lifecycle.statements.sessions.row_filters import TOOL
from session_lifecycle.statements.shared.durations import durations_of, listed_durations, percentiles
from session_lifecycle.statements.shared.kept import LIMIT, kept
from session_lifecycle.statements.shared.keys import same_run
from session_lifecycle.statements.shared.ledger import RUN_TOKEN_COLUMNS, UNKNOWN_AGENT
from session_lifecycle.statements.shared.visibility import ViewerShape, visible_run
from session_lifecycle.statements.shared.window import Ends, window, within

ENDED_RUNS = RunsShape(include_open=False)

# Each statement binds the viewer and the ends that are given.


@kept
def telemetry(
    viewer: ViewerShape, choice: RunsShape, ends: Ends, *, has_durations: bool = False
) -> Select[*tuple[Any, ...]]:
    """Exactly one row. The percentiles are in microseconds, and null without runs. Binds the choice.

    Args:
        viewer: The viewer.
        choice: Which ended runs.
        ends: The ends of the window on the end of the run.
        has_durations: Whether there is the column `durations_us`: the runs' durations, of which it has `limit`.
    """
    runs = _ended_runs(viewer, choice, ends)
    figures = select(
        func.count().label("runs_count"),
        func.count(runs.c.user_id.distinct()).label("users_count"),
        *(percentile.label(name) for name, percentile in percentiles(runs.c.duration_us).items()),
        *(
            func.coalesce(func.sum(runs.c[f"events_{column.key}"]), 0).cast(Numeric).label(column.key)
            for column in RUN_TOKEN_COLUMNS
        ),
    ).subquery("figures")
    is_tool = and_(same_run(tables.steps, runs.c), tables.steps.kind == TOOL)
    tools = (
        select(
            _count(tables.steps.injected.expression).label("tool_calls_injected"),
            _count(tables.steps.injected.expression, tables.steps.is_error.expression).label("tool_calls_failed"),
            _count(not_(tables.steps.injected)).label("tool_calls_not_injected"),
        )
        .select_from(runs.join(tables.steps, is_tool))
        .subquery("tools")
    )
    is_prompt = and_(*is_message_of(runs.c), tables.messages.role == MessageRole.USER.value)
    prompts = (
        select(func.count().label("prompts_count"))
        .select_from(runs.join(tables.messages, is_prompt))
        .subquery("prompts")
    )
    found = select(*figures.c, *tools.c, *prompts.c).select_from(figures.join(tools, true()).join(prompts, true()))
    if not has_durations:
        return found
    first = select(runs.c.duration_us).limit(LIMIT).subquery("first")
    return found.add_columns(
        select(func.array_agg(first.c.duration_us, type_=ARRAY(Numeric))).scalar_subquery().label("durations_us")
    )


@kept
def telemetry_keys(viewer: ViewerShape, ends: Ends) -> Select[*tuple[Any, ...]]:
    """The distinct `provider, model, client` of the runs that ended in the window, sorted by those columns.

    Each model is in one of its spellings. Binds `limit`.
    """
    runs = _ended_runs(viewer, ENDED_RUNS, ends)
    columns = (runs.c.provider, func.min(runs.c.model).label("model"), runs.c.client)
    return (
        select(*columns)
        .group_by(runs.c.provider, func.lower(runs.c.model), runs.c.client)
        .order_by(*columns)
        .limit(LIMIT)
    )


@kept
def run_durations(viewer: ViewerShape, ends: Ends) -> Select[*tuple[Any, ...]]:
    """The durations of the runs that ended in the window, by agent, in the rows of `durations_of`. Binds `limit`."""
    return durations_of(_durations_by_agent(viewer, ends)).limit(LIMIT)


@kept
def list_run_durations(viewer: ViewerShape, ends: Ends) -> Select[*tuple[Any, ...]]:
    """The same durations, in the rows of `listed_durations`. Binds `limit`."""
    return listed_durations(_durations_by_agent(viewer, ends))


def _durations_by_agent(viewer: ViewerShape, ends: Ends) -> Subquery:
    runs = _ended_runs(viewer, ENDED_RUNS, ends)
    agent_name = func.coalesce(runs.c.agent_name, UNKNOWN_AGENT).label("key")
    return select(agent_name, runs.c.duration_us).subquery("durations")


def _ended_runs(viewer: ViewerShape, choice: RunsShape, ends: Ends) -> CTE:
    """The runs that ended in the window and that the viewer sees, inside and outside a session."""
    # Postgres keeps them all in memory where a statement reads them more than once, so they are few.
    run = tables.runs
    names = [run.user_id, run.run_id, run.session_id, run.agent_name, run.provider, run.model, CLIENT.label("client")]
    tokens = [run.__table__.c[f"events_{column.key}"] for column in RUN_TOKEN_COLUMNS]
    return (
        select(*names, *tokens, DURATION_US.label("duration_us"))
        .select_from(RUNS_AND_SESSIONS)
        .where(visible_run(viewer), *counted(choice), *within(tables.runs.ended_at, *window(ends)))
        .cte("runs")
    )


def _count(*conditions: ColumnElement[bool]) -> ColumnElement[int]:
    return func.count().filter(*conditions).cast(BigInteger)
