"""The sessions, payloads and runs that are old enough to prune: their keys in order, and their counts."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Interval,
    Select,
    and_,
    any_,
    bindparam,
    exists,
    func,
    join,
    literal,
    null,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import aliased

from session_lifecycle.models.maintenance import Narrowing
from session_lifecycle.models.sessions import SessionStatus
from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.clock import TIMESTAMPTZ, clock
from session_lifecycle.statements.shared.keys import same_run, same_session
from session_lifecycle.statements.shared.paging import after_key

PRUNED_ERROR = "pruned"
"""The text that replaces the errors of a step when its payloads are pruned. It counts as one error."""


STEPS_AND_RUNS = join(tables.steps, tables.runs, same_run(tables.steps, tables.runs))


class IdleSession(NamedTuple):
    """An idle session, and its place in the order of idle sessions."""

    last_activity_at: datetime
    user_id: UUID
    session_id: str


class SessionWithPayloads(NamedTuple):
    """A session with old payloads."""

    user_id: UUID
    session_id: str


class RunOutsideSession(NamedTuple):
    """A run outside a session."""

    user_id: UUID
    run_id: str


def cut(older_than: timedelta) -> Select[datetime]:
    """One row: the moment `older_than` ago, by the database's clock."""
    return select((clock() - bindparam("older_than", older_than, type_=Interval())).label("cut_at"))


def idle_sessions(
    cut_at: datetime, of: Narrowing, after: Sequence[Any] | None, limit: int
) -> Select[datetime, UUID, str]:
    """The next sessions that were last active before the cut, oldest first, after an `IdleSession`."""
    order = (tables.sessions.last_activity_at, tables.sessions.user_id, tables.sessions.session_id)
    statement = select(*order).where(_is_idle(cut_at), *_of(of, tables.sessions)).order_by(*order).limit(limit)
    return statement if after is None else statement.where(after_key(order, after))


def sessions_with_payloads(
    cut_at: datetime, of: Narrowing, after: Sequence[Any] | None, limit: int
) -> Select[UUID, str]:
    """The next sessions with messages, or payloads of runs or steps, from before the cut, after one of the same."""
    order = (tables.sessions.user_id, tables.sessions.session_id)
    statement = select(*order).where(*_has_old_payloads(cut_at, of)).order_by(*order).limit(limit)
    return statement if after is None else statement.where(after_key(order, after))


def runs_outside_sessions(
    cut_at: datetime, of: Narrowing, after: Sequence[Any] | None, limit: int
) -> Select[UUID, str]:
    """The next runs outside a session that are old enough, in the order of their keys, after a `RunOutsideSession`."""
    order = (tables.runs.user_id, tables.runs.run_id)
    statement = select(*order).where(*_is_old_outside_session(cut_at, of)).order_by(*order).limit(limit)
    return statement if after is None else statement.where(after_key(order, after))


def count_idle(cut_at: datetime, of: Narrowing) -> Select[*tuple[Any, ...]]:
    """One row: how many rows `prune_sessions` would delete."""
    idle = (_is_idle(cut_at), *_of(of, tables.sessions))
    outside = _is_old_outside_session(cut_at, of)
    recorded = tables.runs.started_at.is_not(None)
    runs = _count(_with_session(tables.runs)).where(*idle, recorded)
    runs_outside = _count(tables.runs.__table__).where(*outside, recorded)
    steps = _count(_with_session(tables.runs, STEPS_AND_RUNS)).where(*idle)
    steps_outside = _count(STEPS_AND_RUNS).where(*outside)
    return select(
        _count(tables.sessions.__table__).where(*idle).scalar_subquery().label("sessions"),
        (runs.scalar_subquery() + runs_outside.scalar_subquery()).label("runs"),
        (steps.scalar_subquery() + steps_outside.scalar_subquery()).label("steps"),
        *(
            _count(_with_session(table)).where(*idle).scalar_subquery().label(name)
            for name, table in (
                ("messages", tables.messages),
                ("events", tables.usage_events),
                ("model_rows", tables.model_usage),
            )
        ),
        null().label("session_keys"),
    )


def count_payloads(cut_at: datetime, of: Narrowing) -> Select[*tuple[Any, ...]]:
    """One row: how many rows `prune_payloads` would delete or empty."""
    chosen = _of(of, tables.sessions)
    sessions = select(tables.sessions.user_id).where(*_has_old_payloads(cut_at, of)).subquery("sessions")
    runs = _count(_with_session(tables.runs)).where(*chosen, *_is_old_run(cut_at))
    steps = _count(_with_session(tables.runs, STEPS_AND_RUNS)).where(*chosen, *_is_old_step(cut_at))
    messages = _count(_with_session(tables.messages)).where(*chosen, _is_old_message(cut_at))
    return select(
        _count(sessions).scalar_subquery().label("sessions"),
        runs.scalar_subquery().label("runs"),
        steps.scalar_subquery().label("steps"),
        messages.scalar_subquery().label("messages"),
        literal(0).label("events"),
        literal(0).label("model_rows"),
        null().label("session_keys"),
    )


def _of(of: Narrowing, table: type[tables.sessions | tables.runs]) -> list[ColumnElement[bool]]:
    """Conditions on sessions or runs: of these users, agents and datasets. Each list is one parameter, however long."""
    lists = ((table.user_id, of.user_ids), (table.agent_name, of.agent_names), (table.dataset_id, of.dataset_ids))
    return [column == any_(literal(list(values), ARRAY(column.type))) for column, values in lists if values is not None]


def _has_old_payloads(cut_at: datetime, of: Narrowing) -> list[ColumnElement[bool]]:
    cut = literal(cut_at, TIMESTAMPTZ)
    of_session = same_session(tables.runs, tables.sessions)
    return [
        *_of(of, tables.sessions),
        # Nothing of a running session is older than its start. Late parts of an ended one may be.
        or_(tables.sessions.started_at < cut, tables.sessions.status != SessionStatus.RUNNING.value),
        or_(
            exists().where(same_session(tables.messages, tables.sessions), _is_old_message(cut_at)),
            exists().where(of_session, *_is_old_run(cut_at)),
            exists().where(of_session, same_run(tables.steps, tables.runs), *_is_old_step(cut_at)),
        ),
    ]


def _is_old_message(cut_at: datetime) -> ColumnElement[bool]:
    return tables.messages.created_at < literal(cut_at, TIMESTAMPTZ)


def _is_old_run(cut_at: datetime) -> list[ColumnElement[bool]]:
    """Conditions on runs: the run has payloads, and ended before the cut, or began before it and is open."""
    cut = literal(cut_at, TIMESTAMPTZ)
    ended_at = func.coalesce(tables.runs.ended_at, tables.runs.started_at)
    return [tables.runs.started_at < cut, ended_at < cut, _run_has_payloads()]


def _is_old_step(cut_at: datetime) -> list[ColumnElement[bool]]:
    """The same of steps, of runs that are recorded."""
    ended_at = func.coalesce(tables.steps.ended_at, tables.steps.started_at)
    return [tables.runs.started_at.is_not(None), ended_at < literal(cut_at, TIMESTAMPTZ), _step_has_payloads()]


def _count(rows: FromClause) -> Select[int]:
    return select(func.count()).select_from(rows)


def _with_session(
    table: type[tables.runs | tables.messages | tables.usage_events | tables.model_usage],
    rows: FromClause | None = None,
) -> FromClause:
    """The rows of a table, or of a join that has it, each joined with its session."""
    return join(table if rows is None else rows, tables.sessions, same_session(tables.sessions, table))


def _is_idle(cut_at: datetime) -> ColumnElement[bool]:
    """Whether a session was last active before the cut. A session that was last active exactly at the cut stays."""
    return tables.sessions.last_activity_at < literal(cut_at, TIMESTAMPTZ)


def _is_old_outside_session(cut_at: datetime, of: Narrowing) -> list[ColumnElement[bool]]:
    """Conditions on runs: outside a session, old enough, and recorded or standing for a run that nothing names."""
    child = aliased(tables.runs)
    names = or_(child.parent_run_id == tables.runs.run_id, child.root_run_id == tables.runs.run_id)
    nobody_names = ~exists().where(child.user_id == tables.runs.user_id, child.run_id != tables.runs.run_id, names)
    unused = and_(
        tables.runs.events_cost_usd == 0,
        func.coalesce(tables.runs.events_plan_cost_usd, 0) == 0,
        tables.runs.events_tokens_in == 0,
        tables.runs.events_tokens_out == 0,
    )
    return [
        *_of(of, tables.runs),
        tables.runs.session_id.is_(None),
        or_(
            func.coalesce(tables.runs.last_seen, tables.runs.started_at) < literal(cut_at, TIMESTAMPTZ),
            # A row that was never seen stands for a run that others named, and those others are gone.
            tables.runs.first_seen.is_(None),
        ),
        or_(tables.runs.started_at.is_not(None), and_(unused, nobody_names)),
    ]


def _run_has_payloads() -> ColumnElement[bool]:
    return or_(tables.runs.input.is_not(None), tables.runs.output.is_not(None), tables.runs.error.is_not(None))


def _step_has_payloads() -> ColumnElement[bool]:
    return or_(
        tables.steps.inputs.is_not(None),
        tables.steps.output.is_not(None),
        tables.steps.prompt.is_not(None),
        tables.steps.errors != literal(PRUNED_ERROR, JSONB),
    )
