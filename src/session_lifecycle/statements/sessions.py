"""One session, and pages of sessions."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import CTE, ColumnElement, Integer, Select, and_, case, literal, select
from sqlalchemy.orm import InstrumentedAttribute

from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.models import SessionListFilters, SessionRecord, Viewer
from session_lifecycle.models.reads import SessionFilters
from session_lifecycle.statements.branches import KEY, Asked, bounded_count, first_keys, have_order
from session_lifecycle.statements.pages import Order, Position, beside_total, on_page, page, place, total
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
    return Order(column, KEY, has_nulls=filters.order_column == "ended_at")


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
    return beside_total(*page_and_total(filters, position, abandon_after, now), now)


def page_and_total(
    filters: SessionFilters, position: Position | None, abandon_after: timedelta, now: ColumnElement[datetime]
) -> tuple[CTE, ColumnElement[Any]]:
    """A page of the visible sessions the filters choose, as `page` makes it, and how many there are."""
    asked, order = Asked(filters, abandon_after, now), order_of(filters)
    chosen = chosen_sessions(filters, abandon_after, now)
    count = bounded_count(asked) if filters.total == "bounded" else total(chosen, filters)
    if not have_order(asked, order):
        return page(chosen, order, filters, position), count
    found = first_keys(asked, order, position, filters.offset + filters.limit + 1)
    columns = [column.label(name) for column, name in zip(found.c, order.position_names, strict=True)]
    keys = on_page(select(*columns).order_by(*order.terms([*found.c], descending=filters.descending)), filters)
    first = keys.subquery("first")
    _, user_id, session_id = first.c
    rows = select(*record_columns(), effective_status(abandon_after, now).label("effective_status"))
    of_page = and_(S.user_id == user_id, S.session_id == session_id)
    return rows.add_columns(*first.c, place(first, order, filters)).join(first, of_page).cte("page"), count
