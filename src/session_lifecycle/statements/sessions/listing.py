"""A page of sessions and its total."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    and_,
    bindparam,
    literal_column,
    null,
    select,
    true,
)

from session_lifecycle.models import SessionListFilters
from session_lifecycle.models.pages import Total
from session_lifecycle.models.session_filters import DEFAULT_SESSION_ORDER
from session_lifecycle.statements import tables
from session_lifecycle.statements.roll_ups.session_stats import count_sessions
from session_lifecycle.statements.sessions.index_scans import bounded_count, first_keys
from session_lifecycle.statements.sessions.listing_shape import ListingShape, shape_of
from session_lifecycle.statements.sessions.records import ORDERS, record_columns
from session_lifecycle.statements.sessions.row_filters import (
    SessionFiltersShape,
    conditions_on_rows,
    shape_of_session_filters,
)
from session_lifecycle.statements.shared.clock import clock
from session_lifecycle.statements.shared.few import Bound, are_few, bound, looked_at
from session_lifecycle.statements.shared.kept import OFFSET, KeptStatement, kept
from session_lifecycle.statements.shared.keys import equal_where_given
from session_lifecycle.statements.shared.paging import (
    ROW_LIMIT,
    Order,
    PageShape,
    Position,
    beside_total,
    page,
    place,
    shape_of_page,
    total,
)
from session_lifecycle.statements.shared.status import effective_status, has_status
from session_lifecycle.statements.shared.visibility import scopes, visible
from session_lifecycle.statements.shared.window import Ends, active_within

FAR_OFFSET = 500
"""Behind so many rows, the scans of all scopes read much more than one scan of all sessions."""


def chosen_sessions(shape: SessionFiltersShape) -> Select[*tuple[Any, ...]]:
    """The visible sessions that the filters choose, as rows of a page. Binds the filters and `as_of`."""
    now, found = clock(), shape.given
    chosen = select(*record_columns(), effective_status(shape.abandon_after, now).label("effective_status")).where(
        visible(shape.viewer), *active_within(found.value("since"), found.value("until"))
    )
    if shape.status is not None:
        chosen = chosen.where(has_status(shape.status, shape.abandon_after, now))
    return chosen.where(
        *equal_where_given(
            (tables.sessions.user_id, found.value("owner_id")),
            (tables.sessions.dataset_id, found.value("dataset_id")),
            (tables.sessions.agent_name, found.value("agent_name")),
        ),
        *conditions_on_rows(shape),
    )


def list_sessions(
    filters: SessionListFilters, position: Position | None, abandon_after: timedelta
) -> tuple[KeptStatement, dict[str, Any]]:
    """A page and one row more, in the columns of `beside_total`, and the parameters that the statement binds."""
    shape, parameters = shape_of(filters, position, abandon_after)
    if shape.has_index and not filters.reads_rows:
        return _list_by_index(shape, filters.total), parameters
    # No index has this order or serves these filters: Postgres reads and sorts every chosen session.
    rows, of_rows = shape_of_session_filters(filters, abandon_after)
    of_page, more = shape_of_page(filters, position)
    # The roll-ups count by the other filters only.
    counted = None if filters.reads_rows else shape
    return _list_by_rows(rows, filters.order_column, of_page, counted), parameters | of_rows | more


@kept
def _list_by_rows(
    shape: SessionFiltersShape, order_by: str, of_page: PageShape, counted: ListingShape | None
) -> Select[*tuple[Any, ...]]:
    chosen = chosen_sessions(shape)
    rows = page_by_rows(chosen, ORDERS[order_by], of_page, shape.abandon_after)
    how = of_page.total
    return beside_total(rows, total(chosen, how) if counted is None else listing_total(counted, how))


def bound_of_few(filters: SessionListFilters) -> Bound | None:
    """Up to where `list_few_sessions` is the shorter way; None where `list_sessions` reads every session as well."""
    if filters.reads_rows:
        return None
    looked_in = scopes(filters.asker, filters.owner_id, filters.dataset_id).number
    has_index = filters.order_column == DEFAULT_SESSION_ORDER or filters.wanted_status is not None
    return bound(looked_in, is_wide=filters.offset >= FAR_OFFSET, reads_all=not has_index)


def list_few_sessions(
    filters: SessionListFilters, position: Position | None, abandon_after: timedelta
) -> tuple[KeptStatement, dict[str, Any]]:
    """The same, by a statement for few sessions."""
    shape, parameters = shape_of_session_filters(filters, abandon_after)
    of_page, more = shape_of_page(filters, position)
    return _list_few(shape, filters.order_column, of_page), parameters | more


@kept
def _list_few(shape: SessionFiltersShape, order_by: str, of_page: PageShape) -> Select[*tuple[Any, ...]]:
    chosen = chosen_sessions(shape._replace(viewer=looked_at(shape.viewer)))
    rows = page_by_rows(chosen, ORDERS[order_by], of_page, shape.abandon_after)
    return beside_total(rows, total(chosen, of_page.total)).where(are_few(tables.sessions))


@kept
def _list_by_index(shape: ListingShape, how: Total) -> Select[*tuple[Any, ...]]:
    return beside_total(page_of_sessions(shape), listing_total(shape, how))


def page_of_sessions(shape: ListingShape) -> CTE:
    """A page of sessions whose order an index has, in the columns of `page`."""
    rows_needed = bindparam("rows_needed", type_=BigInteger)
    order, keys = ORDERS[shape.order_by], first_keys(shape, rows_needed)
    columns = [column.label(name) for column, name in zip(keys.c, order.position_names, strict=True)]
    ordered = select(*columns).order_by(*order.terms([*keys.c], descending=shape.descending))
    first = ordered.limit(ROW_LIMIT).offset(OFFSET).subquery("first")
    numbered = place(first, order, descending=shape.descending)
    return _with_records(first, (*first.c, numbered), order, shape.abandon_after)


def page_by_rows(chosen: Select[*tuple[Any, ...]], order: Order, of_page: PageShape, abandon_after: timedelta) -> CTE:
    """A page of the sessions of `chosen_sessions`, in the columns of `page`."""
    # Only the keys are sorted: the records are much wider, and those of a page are few.
    keys = page(chosen.with_only_columns(maintain_column_froms=True), order, of_page, "keys")
    return _with_records(keys, keys.c, order, abandon_after)


def _with_records(
    keys: FromClause, columns: Iterable[ColumnElement[Any]], order: Order, abandon_after: timedelta
) -> CTE:
    """The records of these keys with their effective status, and the columns of the keys."""
    _, user_id, session_id = (keys.c[name] for name in order.position_names)
    is_on_page = and_(tables.sessions.user_id == user_id, tables.sessions.session_id == session_id)
    status = effective_status(abandon_after, clock()).label("effective_status")
    # OFFSET 0 makes Postgres look up one record after another. In a plan for any limit it expects so many rows on a
    # page that it would read the whole table.
    record = select(*record_columns(), status).where(is_on_page).offset(literal_column("0")).lateral("record")
    return select(*record.c, *columns).select_from(keys.join(record, true())).cte("page")


def listing_total(shape: ListingShape, how: Total) -> ColumnElement[Any]:
    """The number of sessions on all pages, as exact as `how` demands; null for `none`."""
    match how:
        case "exact":
            ends = Ends(shape.has_since, shape.has_until)
            return count_sessions(shape.kinds, ends, shape.status_filter, has_agent_name=shape.has_agent_name)
        case "bounded":
            return bounded_count(shape)
        case "none":
            return null().cast(BigInteger)
