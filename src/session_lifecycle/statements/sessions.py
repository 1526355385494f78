"""One session, and pages of sessions."""

from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import CTE, BigInteger, ColumnElement, Integer, Select, and_, bindparam, case, literal, null, select
from sqlalchemy.orm import InstrumentedAttribute

from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.models import SessionListFilters, SessionRecord, Viewer
from session_lifecycle.models.pages import Total
from session_lifecycle.models.reads import SessionFilters
from session_lifecycle.statements.branches import Asked, bounded_count, first_keys, parameters
from session_lifecycle.statements.pages import Order, Position, beside_total, page, place
from session_lifecycle.statements.stats import count_sessions
from session_lifecycle.statements.status import clock, effective_status, has_status
from session_lifecycle.statements.visibility import visible
from session_lifecycle.statements.windows import active_within

MOST_KEPT = 1000
"""Statements that are kept. Building one takes longer than Postgres needs for it."""


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


def order_of(order_by: str) -> Order:
    """The order of rule R13."""
    column: InstrumentedAttribute[Any] = getattr(S, order_by)
    return Order(column, (S.user_id, S.session_id), has_nulls=order_by == "ended_at")


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
) -> tuple[Select[*tuple[Any, ...]], dict[str, Any]]:
    """A page and one row more, as `beside_total` makes it, and what the statement binds."""
    asked = Asked.by(filters, position, abandon_after)
    bound = parameters(filters, position, abandon_after)
    if asked.have_order:
        return _in_order(asked, filters.total), bound
    # All that are chosen are read.
    chosen = chosen_sessions(filters, abandon_after, asked.now)
    rows = page(chosen, order_of(filters.order_column), filters, position)
    return beside_total(rows, count_asked(asked, filters.total), asked.now), bound


@lru_cache(maxsize=MOST_KEPT)
def _in_order(asked: Asked, total: Total) -> Select[*tuple[Any, ...]]:
    return beside_total(page_of_sessions(asked), count_asked(asked, total), asked.now)


def page_of_sessions(asked: Asked) -> CTE:
    """A page of sessions that have an order, as `page` makes it."""
    reach = bindparam("reach", type_=BigInteger)
    order, found = order_of(asked.order_by), first_keys(asked, reach)
    columns = [column.label(name) for column, name in zip(found.c, order.position_names, strict=True)]
    ordered = select(*columns).order_by(*order.terms([*found.c], descending=asked.descending))
    first = (
        ordered.limit(bindparam("most", type_=BigInteger))
        .offset(bindparam("offset", type_=BigInteger))
        .subquery("first")
    )
    _, user_id, session_id = first.c
    rows = select(*record_columns(), effective_status(asked.abandon_after, asked.now).label("effective_status"))
    of_page = and_(S.user_id == user_id, S.session_id == session_id)
    numbered = place(first, order, descending=asked.descending)
    return rows.add_columns(*first.c, numbered).join(first, of_page).cte("page")


def count_asked(asked: Asked, total: Total) -> ColumnElement[Any]:
    """How many sessions there are, as exactly as it is asked."""
    match total:
        case "exact":
            return count_sessions(asked.kinds, asked.status_filter, of_agent=asked.of_agent)
        case "bounded":
            return bounded_count(asked)
        case "none":
            return null().cast(BigInteger)
