"""Pages of runs, and runs with all that belongs to them."""

from typing import Any

from sqlalchemy import ColumnElement, Double, FromClause, Select, Text, and_, cast, func, select, true, tuple_

from session_lifecycle.entities import SessionMessageEntity as M
from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.entities import SessionRunEntity as R
from session_lifecycle.entities import SessionStepEntity as T
from session_lifecycle.entities import SessionUsageEventEntity as E
from session_lifecycle.models import Message, Run, RunEvent, RunFilters, Step
from session_lifecycle.statements.json_values import fields_of, json_array, json_object, or_empty
from session_lifecycle.statements.messages import OLDEST_FIRST
from session_lifecycle.statements.pages import Order, Position, beside_total, page, total
from session_lifecycle.statements.run_figures import (
    DURATION_MS,
    RUNS_AND_SESSIONS,
    TOKENS_TOTAL,
    TOTALS,
    counted,
    errors_count,
    steps_of_run,
)
from session_lifecycle.statements.status import clock
from session_lifecycle.statements.visibility import visible_run

RUN_ORDER = Order(R.started_at, (R.run_id, R.user_id))
STEP_ORDER = (T.started_at, T.seq, T.step_id)


def list_runs(filters: RunFilters, position: Position | None) -> Select[*tuple[Any, ...]]:
    """A page and one row more, as `beside_total` makes it: each run's key, and the whole of it as JSON, `body`."""
    chosen = (
        select(R.user_id, R.run_id, R.session_id)
        .select_from(RUNS_AND_SESSIONS)
        .where(visible_run(filters.asker), *counted(filters))
    )
    for column, wanted in (
        (R.user_id, filters.owner_id),
        (S.dataset_id, filters.dataset_id),
        (R.agent_name, filters.agent_name),
    ):
        if wanted is not None:
            chosen = chosen.where(column == wanted)
    if filters.since is not None:
        chosen = chosen.where(R.started_at >= filters.since)
    if filters.until is not None:
        chosen = chosen.where(R.started_at < filters.until)
    rows = page(chosen, RUN_ORDER, filters, position)
    details = run_details(rows).subquery("details")
    now = clock(None if position is None else position.as_of)
    return (
        beside_total(rows, total(chosen, filters), now)
        .outerjoin(details, and_(details.c.user_id == rows.c.user_id, details.c.run_id == rows.c.run_id))
        .add_columns(cast(details.c.body, Text).label("body"))
    )


def run_details(chosen: FromClause) -> Select[*tuple[Any, ...]]:
    """A row per chosen run: its key, and as JSON, `body`, the fields of a `RunDetail`.

    Args:
        chosen: Few runs, by `user_id, run_id` and their `session_id`.
    """
    steps = steps_of_run()
    events = _events(chosen)
    figures = {
        **TOTALS,
        "tokens_total": TOKENS_TOTAL,
        "duration_ms": cast(DURATION_MS, Double),
        "errors_count": errors_count(steps),
        "steps": or_empty(_steps()),
        "messages": or_empty(_messages()),
        "events": or_empty(events.c.events),
    }
    body = json_object(fields_of(R, Run) | figures)
    return (
        select(R.user_id, R.run_id, R.started_at, body.label("body"))
        .select_from(R)
        .join(chosen, and_(chosen.c.user_id == R.user_id, chosen.c.run_id == R.run_id))
        .join(steps, true())
        .outerjoin(
            events,
            and_(events.c.user_id == R.user_id, events.c.session_id == R.session_id, events.c.run_id == R.run_id),
        )
    )


def _steps() -> ColumnElement[Any]:
    steps = json_array(json_object(fields_of(T, Step)), STEP_ORDER)
    return select(steps).where(T.user_id == R.user_id, T.run_id == R.run_id).correlate(R).scalar_subquery()


def _messages() -> ColumnElement[Any]:
    messages = json_array(json_object(fields_of(M, Message)), OLDEST_FIRST)
    # Who sees a run need not see another session, whose message may name it all the same.
    of_its_session = M.session_id == func.coalesce(R.session_id, M.session_id)
    of_run = (M.user_id == R.user_id, M.run_id == R.run_id, of_its_session)
    return select(messages).where(*of_run).correlate(R).scalar_subquery()


def _events(chosen: FromClause) -> FromClause:
    """The events of each run, gathered in one pass: the ledger is found by session, and a session has many runs.

    Materialized, or they might be gathered again for every run.
    """
    events = json_array(json_object(fields_of(E, RunEvent)), (E.at, E.event_id))
    return (
        select(E.user_id, E.session_id, E.run_id, events.label("events"))
        .where(
            tuple_(E.user_id, E.session_id).in_(select(chosen.c.user_id, chosen.c.session_id)),
            E.run_id.in_(select(chosen.c.run_id)),
            E.key_scope != "run",
        )
        .group_by(E.user_id, E.session_id, E.run_id)
        .cte("events")
        .prefix_with("MATERIALIZED")
    )
