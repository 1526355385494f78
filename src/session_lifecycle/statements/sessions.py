"""One session, and pages of sessions."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Integer, Select, case, literal, select
from sqlalchemy.orm import InstrumentedAttribute

from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.models import SessionListFilters, SessionRecord, Viewer
from session_lifecycle.models.reads import SessionFilters
from session_lifecycle.statements.pages import Order, Position, beside_total, page
from session_lifecycle.statements.status import clock, effective_status, has_status
from session_lifecycle.statements.visibility import visible
from session_lifecycle.statements.windows import active_within


def record_columns() -> list[ColumnElement[Any]]:
    """The columns of a `SessionRecord`, labelled by its fields."""
    columns = {**S.__table__.columns}
    return [columns[name].label(f"record_{name}") for name in SessionRecord.model_fields]


def record_of(row: Any) -> SessionRecord:
    """The record in a row that has those columns."""
    return SessionRecord(**{name: getattr(row, f"record_{name}") for name in SessionRecord.model_fields})


def preferred_session(
    session_id: str, viewer: Viewer, *, prefer_other_owner: bool = False, owner_id: UUID | None = None
) -> Select[*tuple[Any, ...]]:
    """At most one row: of the visible sessions with this id, the one rule R15 prefers."""
    own = literal(0, Integer) if viewer.user_id is None else case((S.user_id == viewer.user_id, 1), else_=0)
    of_agents = case((S.user_id.in_(viewer.owner_ids), 1), else_=0) if viewer.owner_ids else literal(0, Integer)
    statement = (
        select(*record_columns())
        .where(S.session_id == session_id, visible(viewer))
        .order_by(
            own.asc() if prefer_other_owner else own.desc(), of_agents.desc(), S.last_activity_at.desc(), S.user_id
        )
        .limit(1)
    )
    return statement if owner_id is None else statement.where(S.user_id == owner_id)


def with_status(sessions: Select[*tuple[Any, ...]], abandon_after: timedelta) -> Select[*tuple[Any, ...]]:
    """The same sessions with their effective status of now."""
    return sessions.add_columns(effective_status(abandon_after, clock()).label("effective_status"))


def order_of(filters: SessionFilters) -> Order:
    """The order of rule R13."""
    column: InstrumentedAttribute[Any] = getattr(S, filters.order_column)
    # A page by activity can be read off the index on its minute, and only rows of one minute are sorted.
    index_column = S.activity_minute if filters.order_column == "last_activity_at" else None
    return Order(column, (S.user_id, S.session_id), index_column, has_nulls=filters.order_column == "ended_at")


def chosen_sessions(
    filters: SessionFilters, abandon_after: timedelta, now: ColumnElement[datetime]
) -> Select[*tuple[Any, ...]]:
    """The visible sessions the filters choose, as rows of a page."""
    chosen = select(*record_columns(), effective_status(abandon_after, now).label("effective_status")).where(
        visible(filters.asker), *active_within(filters.since, filters.until)
    )
    if filters.status_filter is not None:
        chosen = chosen.where(has_status(filters.status_filter, abandon_after, now))
    for column, wanted in (
        (S.user_id, filters.owner_id),
        (S.dataset_id, filters.dataset_id),
        (S.agent_name, filters.agent_name),
    ):
        if wanted is not None:
            chosen = chosen.where(column == wanted)
    return chosen


def list_sessions(
    filters: SessionListFilters, position: Position | None, abandon_after: timedelta
) -> Select[*tuple[Any, ...]]:
    """A page and one row more, as `beside_total` makes it."""
    now = clock(None if position is None else position.as_of)
    chosen = chosen_sessions(filters, abandon_after, now)
    return beside_total(page(chosen, order_of(filters), filters, position), chosen, filters, now)
