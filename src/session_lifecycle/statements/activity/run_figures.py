"""The figures of a run, and which runs a read counts: the expressions that all reads of runs share.

A run that others named but nobody recorded has no start. No read counts it.
"""

from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    Numeric,
    Select,
    Text,
    case,
    func,
    join,
    literal_column,
    or_,
    select,
    tuple_,
)

from session_lifecycle.models.fields import model_key
from session_lifecycle.models.run_filters import DEFAULT_PROJECT, RunChoice
from session_lifecycle.models.runs import RunStatus
from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.durations import lasted_us
from session_lifecycle.statements.shared.json_rows import Column
from session_lifecycle.statements.shared.kept import STEPS_LIMIT, STEPS_OFFSET, Given, given
from session_lifecycle.statements.shared.keys import Columns, equal_where_given, same_run, same_session
from session_lifecycle.statements.shared.ledger import RUN_TOKEN_COLUMNS, UNKNOWN_CLIENT
from session_lifecycle.statements.shared.model_names import is_model

RUNS_AND_SESSIONS = join(
    tables.runs,
    tables.sessions,
    same_session(tables.sessions, tables.runs),
    isouter=True,
)
"""Runs with their sessions, and runs outside a session."""
RECORDED = tables.runs.started_at.is_not(None)
ENDED = tables.runs.ended_at.is_not(None)
THREAD_ID: ColumnElement[str] = func.coalesce(tables.runs.root_run_id, tables.runs.run_id, type_=Text(collation="C"))
STEP_ORDER = (tables.steps.started_at, tables.steps.seq, tables.steps.record_no)
CLIENT: ColumnElement[str] = func.coalesce(
    tables.runs.client, literal_column(f"'{UNKNOWN_CLIENT}'"), type_=Text(collation="C")
)

# What a run reports includes the price of its events under a plan, which is in no cost.
COST_USD: ColumnElement[Any] = func.greatest(
    tables.runs.reported_cost_usd - func.coalesce(tables.runs.events_plan_cost_usd, 0),
    tables.runs.events_cost_usd,
    type_=Numeric,
)
UNATTRIBUTED_TOKENS: ColumnElement[int] = func.greatest(
    tables.runs.reported_tokens - tables.runs.events_tokens_in - tables.runs.events_tokens_out, 0, type_=BigInteger
)
TOKENS_TOTAL = tables.runs.events_tokens_in + tables.runs.events_tokens_out + UNATTRIBUTED_TOKENS
TOTALS: dict[str, Column] = {
    "cost_usd": COST_USD,
    **{column.key: getattr(tables.runs, f"events_{column.key}") for column in RUN_TOKEN_COLUMNS},
}
"""The cost and the tokens of a run, by the names that sessions use for them."""

DURATION_US: ColumnElement[Any] = case((ENDED, lasted_us(tables.runs.started_at, tables.runs.ended_at)))
"""Exact; null while the run is open."""
DURATION_MS: ColumnElement[Any] = DURATION_US / 1000


class RunsShape(NamedTuple):
    """The part of a choice of runs on which the text of a statement depends. By default all runs are chosen."""

    given: Given = Given()
    of_default_project: bool = False
    of_unknown_client: bool = False
    include_open: bool = True
    narrows: bool = False
    """As in `RunChoice`."""


def shape_of_runs(choice: RunChoice) -> tuple[RunsShape, dict[str, Any]]:
    """The shape of a choice of runs, and the parameters that statements of this shape bind."""
    found, parameters = given(
        {
            "project": choice.project,
            "provider": choice.provider,
            "model": None if choice.model is None else model_key(choice.model),
            "client": choice.client,
            "session_id": choice.session_id,
        }
    )
    shape = RunsShape(
        found,
        of_default_project=choice.project == DEFAULT_PROJECT,
        of_unknown_client=choice.client == UNKNOWN_CLIENT,
        include_open=choice.include_open,
        narrows=choice.narrows,
    )
    return shape, parameters


def counted(choice: RunsShape) -> list[ColumnElement[bool]]:
    """Conditions on runs: somebody recorded the run, and the choice has it."""
    conditions: list[ColumnElement[bool]] = [RECORDED]
    if not choice.include_open:
        conditions.append(ENDED)
    project, client, model = (choice.given.value(name, Text) for name in ("project", "client", "model"))
    if project is not None:
        named = tables.runs.project == project
        nameless = or_(tables.runs.project.is_(None), tables.runs.project == "")
        conditions.append(or_(named, nameless) if choice.of_default_project else named)
    if client is not None:
        named = tables.runs.client == client
        conditions.append(or_(named, tables.runs.client.is_(None)) if choice.of_unknown_client else named)
    if model is not None:
        conditions.append(is_model(tables.runs.model, model))
    return conditions + equal_where_given(
        (tables.runs.provider, choice.given.value("provider")),
        (tables.runs.session_id, choice.given.value("session_id")),
    )


def steps_of_run() -> FromClause:
    """One row for each run: the number of its `steps`, and the number of its steps with `errors`."""
    return (
        select(func.count().label("steps"), func.count().filter(tables.steps.is_error).label("errors"))
        .select_from(tables.steps)
        .where(same_run(tables.steps, tables.runs))
        .correlate(tables.runs)
        .lateral("steps")
    )


def answered_steps(run: type[tables.runs] | Columns, *, limits_steps: bool) -> Select[*tuple[Any, ...]]:
    """The steps of a run that an answer has, in the columns of their table.

    Args:
        run: The run.
        limits_steps: Whether the answer has not all steps, but at most `steps_limit` after the first `steps_offset`.
            The statement binds both.
    """
    # The primary key finds the steps of a run, and no index has their order. Where the table has no statistics yet,
    # Postgres would also look single steps up in such an index, and each step recorded would read all steps of its run.
    steps = select(tables.steps.__table__).where(same_run(tables.steps, run))
    return steps.order_by(*STEP_ORDER).limit(STEPS_LIMIT).offset(STEPS_OFFSET) if limits_steps else steps


def is_message_of(run: type[tables.runs] | Columns) -> list[ColumnElement[bool]]:
    """Conditions on messages: the message names the run, and is in the run's session where the run has one.

    A viewer who sees the run need not see another session, and a message of that session may name the run too.
    """
    return [
        tables.messages.user_id == run.user_id,
        tables.messages.run_id == run.run_id,
        tables.messages.session_id == func.coalesce(run.session_id, tables.messages.session_id),
    ]


def is_event_of(runs: FromClause) -> list[ColumnElement[bool]]:
    """Conditions on usage events: the event names one of some runs, and is in the session of one of them.

    An index finds the ledger's rows by session, and a session has many runs.
    """
    return [
        tuple_(tables.usage_events.user_id, tables.usage_events.session_id).in_(
            select(runs.c.user_id, runs.c.session_id)
        ),
        tables.usage_events.run_id.in_(select(runs.c.run_id)),
        tables.usage_events.key_scope != "run",
    ]


def errors_count(steps: FromClause) -> ColumnElement[int]:
    """The number of a run's steps with errors; 1 for a run that failed without such a step."""
    failed = case((tables.runs.status == RunStatus.FAILED.value, 1), else_=0)
    return func.greatest(steps.c.errors, failed, type_=Integer)
