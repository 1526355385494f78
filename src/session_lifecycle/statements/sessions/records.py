"""The columns of a session record, the orders of sessions (rule R13), and the preferred session of an id (rule R15)."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, FromClause, Integer, Select, and_, case, literal, select

from session_lifecycle.models import SessionRecord, SessionRowWithStatus, Viewer
from session_lifecycle.models.session_filters import SESSION_ORDERS
from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.clock import clock
from session_lifecycle.statements.shared.paging import Order
from session_lifecycle.statements.shared.status import effective_status
from session_lifecycle.statements.shared.visibility import visible

SESSION_KEY = (tables.sessions.user_id, tables.sessions.session_id)
ORDERS = {
    name: Order(getattr(tables.sessions, name), SESSION_KEY, has_nulls=name == "ended_at") for name in SESSION_ORDERS
}
"""Each order of sessions, by the name of its column."""


def record_columns() -> list[ColumnElement[Any]]:
    """The columns of a `SessionRecord`, labelled `record_<field>`."""
    columns = {**tables.sessions.__table__.columns}
    return [columns[name].label(f"record_{name}") for name in SessionRecord.model_fields]


def record_of(row: Any) -> SessionRecord:
    """The record from a row with the columns of `record_columns`."""
    return SessionRecord(**{name: getattr(row, f"record_{name}") for name in SessionRecord.model_fields})


def row_of(row: Any) -> SessionRowWithStatus:
    """The record and its effective status from a row with the columns of `record_columns` and `effective_status`."""
    return SessionRowWithStatus(record=record_of(row), effective_status=row.effective_status)


def belongs_to_record(table: type[tables.runs | tables.messages], sessions: FromClause) -> ColumnElement[bool]:
    """Whether a run or message belongs to a session that is selected with the columns of `record_columns`."""
    return and_(table.user_id == sessions.c.record_user_id, table.session_id == sessions.c.record_session_id)


def preferred_session(
    session_id: str, viewer: Viewer, *, prefer_other_owner: bool = False, owner_id: UUID | None = None
) -> Select[*tuple[Any, ...]]:
    """At most one row: the session that rule R15 prefers among the visible sessions with this id."""
    own = (
        literal(0, Integer) if viewer.user_id is None else case((tables.sessions.user_id == viewer.user_id, 1), else_=0)
    )
    of_viewer_or_agents = (
        case((tables.sessions.user_id.in_(viewer.owner_ids), 1), else_=0) if viewer.owner_ids else literal(0, Integer)
    )
    statement = (
        select(*record_columns())
        .where(tables.sessions.session_id == session_id, visible(viewer))
        .order_by(
            own.asc() if prefer_other_owner else own.desc(),
            of_viewer_or_agents.desc(),
            tables.sessions.last_activity_at.desc(),
            tables.sessions.user_id,
        )
        .limit(1)
    )
    return statement if owner_id is None else statement.where(tables.sessions.user_id == owner_id)


def with_status(sessions: Select[*tuple[Any, ...]], abandon_after: timedelta) -> Select[*tuple[Any, ...]]:
    """The same sessions with their effective status at the moment of the statement."""
    return sessions.add_columns(effective_status(abandon_after, clock()).label("effective_status"))
