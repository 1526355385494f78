"""What a run comes to, and which runs are counted: the expressions every read of runs shares.

A run that others named and nobody recorded yet has no start; it is never counted.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    Numeric,
    Text,
    and_,
    case,
    func,
    join,
    literal_column,
    or_,
    select,
)

from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.entities import SessionRunEntity as R
from session_lifecycle.entities import SessionStepEntity as T
from session_lifecycle.models.activity import RunStatus
from session_lifecycle.models.activity_reads import DEFAULT_PROJECT, UNKNOWN_CLIENT, RunChoice
from session_lifecycle.statements.durations import lasted_us
from session_lifecycle.statements.json_values import Column

RUNS_AND_SESSIONS = join(R, S, and_(S.user_id == R.user_id, S.session_id == R.session_id), isouter=True)
"""Runs beside their sessions; those that wait outside of any as well."""
TOOL = "tool"
"""The kind of a step that called a tool."""
RECORDED = R.started_at.is_not(None)
ENDED = R.ended_at.is_not(None)
THREAD_ID: ColumnElement[str] = func.coalesce(R.root_run_id, R.run_id, type_=Text(collation="C"))
CLIENT: ColumnElement[str] = func.coalesce(R.client, literal_column(f"'{UNKNOWN_CLIENT}'"), type_=Text(collation="C"))

COST_USD: ColumnElement[Any] = func.greatest(R.reported_cost_usd, R.events_cost_usd, type_=Numeric)
UNATTRIBUTED_TOKENS: ColumnElement[int] = func.greatest(
    R.reported_tokens - R.events_tokens_in - R.events_tokens_out, 0, type_=BigInteger
)
TOKENS_TOTAL = R.events_tokens_in + R.events_tokens_out + UNATTRIBUTED_TOKENS
TOTALS: dict[str, Column] = {
    "cost_usd": COST_USD,
    "tokens_in": R.events_tokens_in,
    "tokens_out": R.events_tokens_out,
    "cache_read_tokens": R.events_cache_read_tokens,
    "cache_write_tokens": R.events_cache_write_tokens,
}

DURATION_US: ColumnElement[Any] = case((ENDED, lasted_us(R.started_at, R.ended_at)))
"""Exact; null while it is open."""
DURATION_MS: ColumnElement[Any] = DURATION_US / 1000


def counted(choice: RunChoice) -> list[ColumnElement[bool]]:
    """Conditions on runs: recorded, and those that were meant."""
    conditions: list[ColumnElement[bool]] = [RECORDED]
    if not choice.include_open:
        conditions.append(ENDED)
    if choice.project is not None:
        named = R.project == choice.project
        nameless = or_(R.project.is_(None), R.project == "")
        conditions.append(or_(named, nameless) if choice.project == DEFAULT_PROJECT else named)
    if choice.client is not None:
        named = R.client == choice.client
        conditions.append(or_(named, R.client.is_(None)) if choice.client == UNKNOWN_CLIENT else named)
    for column, wanted in ((R.provider, choice.provider), (R.model, choice.model), (R.session_id, choice.session_id)):
        if wanted is not None:
            conditions.append(column == wanted)
    return conditions


def steps_of_run() -> FromClause:
    """One row beside each run: how many `steps` it has, and how many of them are `errors`."""
    return (
        select(func.count().label("steps"), func.count().filter(T.is_error).label("errors"))
        .select_from(T)
        .where(T.user_id == R.user_id, T.run_id == R.run_id)
        .correlate(R)
        .lateral("steps")
    )


def errors_count(steps: FromClause) -> ColumnElement[int]:
    """The errors of its steps; of a run that failed without one, its own."""
    failed = case((R.status == RunStatus.FAILED.value, 1), else_=0)
    return func.greatest(steps.c.errors, failed, type_=Integer)
