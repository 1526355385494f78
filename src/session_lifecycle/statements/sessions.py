"""One session, and pages of sessions."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    and_,
    case,
    func,
    literal,
    null,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.orm import InstrumentedAttribute

from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.models import TOTAL_BOUND, SessionListFilters, SessionRecord, Viewer
from session_lifecycle.statements.status import clock, effective_status, has_status
from session_lifecycle.statements.visibility import visible
from session_lifecycle.statements.windows import active_within

ORDER_COLUMNS: dict[str, InstrumentedAttribute[Any]] = {
    "last_activity_at": S.last_activity_at,
    "started_at": S.started_at,
    "ended_at": S.ended_at,
    "cost_usd": S.cost_usd,
    "tokens_in": S.tokens_in,
    "tokens_out": S.tokens_out,
}
DEFAULT_ORDER = "last_activity_at"


class Position(NamedTuple):
    """Where a page ended: the last row's order value and key, and the clock of the walk's first page."""

    value: Any
    user_id: UUID
    session_id: str
    as_of: datetime


def record_columns() -> list[ColumnElement[Any]]:
    """The columns of a `SessionRecord`, labelled by its fields."""
    columns = {**S.__table__.columns}
    return [columns[name].label(f"record_{name}") for name in SessionRecord.model_fields]


def get_session(
    session_id: str, viewer: Viewer, *, prefer_other_owner: bool, owner_id: UUID | None, abandon_after: timedelta
) -> Select[*tuple[Any, ...]]:
    """At most one row: of the visible sessions with this id, the one rule R15 prefers."""
    own = literal(0, Integer) if viewer.user_id is None else case((S.user_id == viewer.user_id, 1), else_=0)
    of_agents = case((S.user_id.in_(viewer.owner_ids), 1), else_=0) if viewer.owner_ids else literal(0, Integer)
    statement = (
        select(*record_columns(), effective_status(abandon_after, clock()).label("effective_status"))
        .where(S.session_id == session_id, visible(viewer))
        .order_by(
            own.asc() if prefer_other_owner else own.desc(), of_agents.desc(), S.last_activity_at.desc(), S.user_id
        )
        .limit(1)
    )
    return statement if owner_id is None else statement.where(S.user_id == owner_id)


def list_sessions(
    filters: SessionListFilters, position: Position | None, abandon_after: timedelta
) -> Select[*tuple[Any, ...]]:
    """A page and one row more, each with the total and the clock; of an empty page one row of nulls and those two.

    Page and total come from one statement and so from one snapshot (rule R18).
    """
    now = clock(None if position is None else position.as_of)
    chosen = [visible(filters.asker), *active_within(filters.since, filters.until)]
    if filters.status_filter is not None:
        chosen.append(has_status(filters.status_filter, abandon_after, now))
    for column, wanted in (
        (S.user_id, filters.owner_id),
        (S.dataset_id, filters.dataset_id),
        (S.agent_name, filters.agent_name),
    ):
        if wanted is not None:
            chosen.append(column == wanted)

    order_column = ORDER_COLUMNS.get(filters.order_by, S.last_activity_at)
    order = _order(order_column, descending=filters.descending)
    page = (
        select(
            *record_columns(),
            effective_status(abandon_after, now).label("effective_status"),
            func.row_number().over(order_by=order).label("place"),
        )
        .where(*chosen)
        .order_by(*order)
        .limit(filters.limit + 1)
        .offset(filters.offset)
    )
    if position is not None:
        page = page.where(_after(order_column, position, descending=filters.descending))
    page_rows = page.subquery("page")
    figures = select(_total(filters, chosen).label("total"), now.label("as_of")).subquery("figures")
    return (
        select(figures.c.total, figures.c.as_of, *page_rows.c)
        .select_from(figures.outerjoin(page_rows, true()))
        .order_by(page_rows.c.place)
    )


def _total(filters: SessionListFilters, chosen: list[ColumnElement[bool]]) -> ColumnElement[Any]:
    match filters.total:
        case "exact":
            return select(func.count()).select_from(S).where(*chosen).scalar_subquery()
        case "bounded":
            counted = select(S.user_id).where(*chosen).limit(TOTAL_BOUND + 1).subquery("counted")
            return select(func.count()).select_from(counted).scalar_subquery()
        case "none":
            return null().cast(BigInteger)


def _order(column: InstrumentedAttribute[Any], *, descending: bool) -> Sequence[ColumnElement[Any]]:
    """By the column, nulls last both ways, ties by the key in the same direction (rule R13)."""
    # A page by activity can then be read off the index on its minute, and only rows of one minute are sorted.
    leading = [S.activity_minute, column] if column is S.last_activity_at else [column]
    terms = [*leading, S.user_id, S.session_id]
    ordered = [term.desc() if descending else term.asc() for term in terms]
    if column is S.ended_at:
        ordered[0] = ordered[0].nulls_last()
    return ordered


def _after(column: InstrumentedAttribute[Any], position: Position, *, descending: bool) -> ColumnElement[bool]:
    """The rows that come after a position in that order."""
    key = tuple_(S.user_id, S.session_id)
    last_key = tuple_(literal(position.user_id, S.user_id.type), literal(position.session_id, S.session_id.type))
    further_key = key < last_key if descending else key > last_key
    if position.value is None:
        return and_(column.is_(None), further_key)
    value = literal(position.value, column.type)
    further = column < value if descending else column > value
    return or_(further, and_(column == value, further_key), column.is_(None))
