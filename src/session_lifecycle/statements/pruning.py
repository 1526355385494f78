"""What is old enough to be pruned: found oldest first, and counted."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Interval,
    Select,
    and_,
    bindparam,
    exists,
    func,
    literal,
    or_,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import aliased

from session_lifecycle.entities import SessionMessageEntity as Me
from session_lifecycle.entities import SessionModelUsageEntity as M
from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.entities import SessionRunEntity as R
from session_lifecycle.entities import SessionStepEntity as St
from session_lifecycle.entities import SessionUsageEventEntity as E
from session_lifecycle.statements.status import INSTANT, clock

PRUNED_ERROR = "pruned"
"""What the errors of a step read once its payloads were pruned; it counts as one error."""


class IdleSession(NamedTuple):
    """A session, and where it is among the idle ones."""

    last_activity_at: datetime
    user_id: UUID
    session_id: str


class WaitingRun(NamedTuple):
    """A run that is in no session."""

    user_id: UUID
    run_id: str


def cut(older_than: timedelta) -> Select[datetime]:
    """The moment that long ago, by the database's clock."""
    return select((clock() - bindparam("older_than", older_than, type_=Interval())).label("cut_at"))


def idle_sessions(cut_at: datetime, after: Sequence[Any] | None, limit: int) -> Select[datetime, UUID, str]:
    """Sessions last active before the cut, oldest first, after an `IdleSession`."""
    order = (S.last_activity_at, S.user_id, S.session_id)
    statement = select(*order).where(_is_idle(cut_at)).order_by(*order).limit(limit)
    return statement if after is None else statement.where(tuple_(*order) > _position(order, after))


def sessions_with_payloads(cut_at: datetime, after: Sequence[Any] | None, limit: int) -> Select[datetime, UUID, str]:
    """Those of the idle sessions that still have messages, or payloads of runs or steps."""
    of_session = (R.user_id == S.user_id, R.session_id == S.session_id, R.started_at.is_not(None))
    return idle_sessions(cut_at, after, limit).where(
        or_(
            exists().where(Me.user_id == S.user_id, Me.session_id == S.session_id),
            exists().where(*of_session, _run_has_payloads()),
            exists().where(*of_session, St.user_id == R.user_id, St.run_id == R.run_id, _step_has_payloads()),
        )
    )


def waiting_runs(cut_at: datetime, after: Sequence[Any] | None, limit: int) -> Select[UUID, str]:
    """Runs in no session and last seen before the cut, in the order of their keys, after a `WaitingRun`."""
    order = (R.user_id, R.run_id)
    statement = select(*order).where(_waits(cut_at)).order_by(*order).limit(limit)
    return statement if after is None else statement.where(tuple_(*order) > _position(order, after))


def count_idle(cut_at: datetime) -> Select[*tuple[Any, ...]]:
    """One row with how many rows `prune_sessions` would delete."""
    idle = _is_idle(cut_at)
    runs = select(func.count()).select_from(R).join(S, _same_session(R)).where(idle, R.started_at.is_not(None))
    steps = select(func.count()).select_from(St).join(R, _of_run()).join(S, _same_session(R)).where(idle)
    waiting = select(func.count()).select_from(R).where(_waits(cut_at), R.started_at.is_not(None))
    steps_of_waiting = select(func.count()).select_from(St).join(R, _of_run()).where(_waits(cut_at))
    return select(
        select(func.count()).select_from(S).where(idle).scalar_subquery().label("sessions"),
        (runs.scalar_subquery() + waiting.scalar_subquery()).label("runs"),
        (steps.scalar_subquery() + steps_of_waiting.scalar_subquery()).label("steps"),
        *(
            select(func.count()).select_from(of).join(S, _same_session(of)).where(idle).scalar_subquery().label(name)
            for name, of in (("messages", Me), ("events", E), ("model_rows", M))
        ),
    )


def count_payloads(cut_at: datetime) -> Select[*tuple[Any, ...]]:
    """One row with how many rows `prune_payloads` would delete or empty."""
    idle = _is_idle(cut_at)
    sessions = sessions_with_payloads(cut_at, None, 1).limit(None).subquery("sessions")
    runs = select(func.count()).select_from(R).join(S, _same_session(R))
    steps = select(func.count()).select_from(St).join(R, _of_run()).join(S, _same_session(R))
    messages = select(func.count()).select_from(Me).join(S, _same_session(Me)).where(idle)
    return select(
        select(func.count()).select_from(sessions).scalar_subquery().label("sessions"),
        runs.where(idle, R.started_at.is_not(None), _run_has_payloads()).scalar_subquery().label("runs"),
        steps.where(idle, R.started_at.is_not(None), _step_has_payloads()).scalar_subquery().label("steps"),
        messages.scalar_subquery().label("messages"),
        literal(0).label("events"),
        literal(0).label("model_rows"),
    )


def _is_idle(cut_at: datetime) -> ColumnElement[bool]:
    """Exactly at the cut it stays."""
    return S.last_activity_at < literal(cut_at, INSTANT)


def _waits(cut_at: datetime) -> ColumnElement[bool]:
    """In no session, and either recorded, or standing for a run that nothing names."""
    child = aliased(R)
    names = or_(child.parent_run_id == R.run_id, child.root_run_id == R.run_id)
    nobody_names = ~exists().where(child.user_id == R.user_id, child.run_id != R.run_id, names)
    unused = and_(R.events_cost_usd == 0, R.events_tokens_in == 0, R.events_tokens_out == 0)
    return and_(
        R.session_id.is_(None),
        # Seen by nobody, it stands for a run whose namers are gone.
        or_(func.coalesce(R.last_seen, R.started_at) < literal(cut_at, INSTANT), R.first_seen.is_(None)),
        or_(R.started_at.is_not(None), and_(unused, nobody_names)),
    )


def _run_has_payloads() -> ColumnElement[bool]:
    return or_(R.input.is_not(None), R.output.is_not(None), R.error.is_not(None))


def _step_has_payloads() -> ColumnElement[bool]:
    mark = literal(PRUNED_ERROR, JSONB)
    return or_(St.inputs.is_not(None), St.output.is_not(None), St.prompt.is_not(None), St.errors != mark)


def _same_session(of: type[R | Me | E | M]) -> ColumnElement[bool]:
    return and_(S.user_id == of.user_id, S.session_id == of.session_id)


def _of_run() -> ColumnElement[bool]:
    return and_(St.user_id == R.user_id, St.run_id == R.run_id)


def _position(order: Sequence[Any], after: Sequence[Any]) -> ColumnElement[Any]:
    return tuple_(*(bindparam(None, value, type_=column.type) for value, column in zip(after, order, strict=True)))
