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
    SelectBase,
    and_,
    bindparam,
    false,
    func,
    literal_column,
    null,
    select,
    true,
    union_all,
)

from session_lifecycle.models import SessionListFilters
from session_lifecycle.models.pages import Total
from session_lifecycle.statements import tables
from session_lifecycle.statements.roll_ups.session_stats import count_sessions
from session_lifecycle.statements.roll_ups.totals import sessions_in_longest_buckets
from session_lifecycle.statements.sessions.index_scans import bounded_count, first_keys
from session_lifecycle.statements.sessions.listing_shape import ListingShape, has_index_of_rolled_up, shape_of
from session_lifecycle.statements.sessions.records import ORDERS, record_columns
from session_lifecycle.statements.sessions.row_filters import (
    SessionFiltersShape,
    conditions_on_rows,
    shape_of_session_filters,
)
from session_lifecycle.statements.shared.clock import TIMESTAMPTZ, clock
from session_lifecycle.statements.shared.kept import OFFSET, KeptStatement, kept, once, unknown
from session_lifecycle.statements.shared.keys import equal_where_given
from session_lifecycle.statements.shared.paging import (
    ROW_LIMIT,
    Order,
    PageShape,
    Position,
    beside_total,
    first_rows,
    page,
    place,
    shape_of_page,
    total,
)
from session_lifecycle.statements.shared.status import effective_status, has_status, stored_statuses
from session_lifecycle.statements.shared.visibility import EVERYBODY, visible
from session_lifecycle.statements.shared.window import Ends, active_within

SORTED_FOR_ONE_SCANNED = 8
"""So many sessions are read and sorted in the time in which a scan of an index finds one."""


def chosen_sessions(shape: SessionFiltersShape) -> Select[*tuple[Any, ...]]:
    """The visible sessions that the filters choose, as rows of a page. Binds the filters and `as_of`."""
    now, found = clock(), shape.given
    ends = (found.value(name, TIMESTAMPTZ) for name in Ends._fields)
    since, until = (unknown(end) if end is not None and shape.viewer.looks_at_all else end for end in ends)
    chosen = select(*record_columns(), effective_status(shape.abandon_after, now).label("effective_status")).where(
        visible(shape.viewer), *active_within(since, until)
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
    rows, of_rows = shape_of_session_filters(filters, abandon_after)
    of_page, more = shape_of_page(filters, position)
    if has_index_of_rolled_up(filters):
        return _list_by_index_of_rolled_up(shape, rows, of_page), parameters | of_rows | more
    # No index has this order or serves these filters: Postgres reads and sorts every chosen session.
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


@kept
def _list_by_index_of_rolled_up(
    shape: ListingShape, rows: SessionFiltersShape, of_page: PageShape
) -> Select[*tuple[Any, ...]]:
    """Goes through everybody's rolled-up sessions in the order of an index, and sorts the few that are not rolled up.

    Where the viewer sees hardly any session, it would go through most of the index: it sorts all that are seen then.
    """
    stored = stored_statuses(shape.status_filter)
    seen, there = (sessions_in_longest_buckets(kinds, stored) for kinds in (shape.kinds, EVERYBODY))
    # A scan reads `there / seen` sessions for each row up to the end of the page. Else all that are seen are sorted.
    takes_fewer = there * SORTED_FOR_ONE_SCANNED * (OFFSET + ROW_LIMIT) < seen * seen
    is_short = once(func.coalesce(takes_fewer, false()), "judged")
    scanned = first_keys_of_page(shape._replace(in_one_scan=True))
    chosen = chosen_sessions(rows).with_only_columns(maintain_column_froms=True)
    in_order = first_rows(chosen, ORDERS[shape.order_by], of_page)
    return beside_total(page_of_either(is_short, scanned, in_order, shape), listing_total(shape, of_page.total))


@kept
def _list_by_index(shape: ListingShape, how: Total) -> Select[*tuple[Any, ...]]:
    return beside_total(page_of_sessions(shape), listing_total(shape, how))


def page_of_sessions(shape: ListingShape) -> CTE:
    """A page of sessions whose order an index has, in the columns of `page`."""
    return page_of_keys(first_keys_of_page(shape), shape)


def first_keys_of_page(shape: ListingShape) -> Select[*tuple[Any, ...]]:
    """The keys of the page, from the first session on."""
    limit, offset = (unknown(one) if shape.in_one_scan else one for one in (ROW_LIMIT, OFFSET))
    return ordered_keys(shape, bindparam("rows_needed", type_=BigInteger)).limit(limit).offset(offset)


def ordered_keys(shape: ListingShape, rows_needed: ColumnElement[int]) -> Select[*tuple[Any, ...]]:
    """The keys of `first_keys` in the order of the listing."""
    order, keys = ORDERS[shape.order_by], first_keys(shape, rows_needed)
    columns = [column.label(name) for column, name in zip(keys.c, order.labels, strict=True)]
    return select(*columns).order_by(*order.terms([*keys.c], descending=shape.descending))


def page_of_either(
    is_first: ColumnElement[bool],
    first: Select[*tuple[Any, ...]],
    other: Select[*tuple[Any, ...]],
    shape: ListingShape,
) -> CTE:
    """The page of the first keys or of the others. Postgres does not look for both."""
    ways = ((first, is_first), (other, ~is_first))
    return page_of_keys(union_all(*(select(keys.subquery()).where(is_it) for keys, is_it in ways)), shape)


def page_of_keys(keys: SelectBase, shape: ListingShape) -> CTE:
    """The page of these keys."""
    first, order = keys.subquery("first"), ORDERS[shape.order_by]
    numbered = place(first, order, descending=shape.descending)
    return _with_records(first, (numbered,), order, shape.abandon_after)


def page_by_rows(chosen: Select[*tuple[Any, ...]], order: Order, of_page: PageShape, abandon_after: timedelta) -> CTE:
    """A page of the sessions of `chosen_sessions`, in the columns of `page`."""
    # Only the keys are sorted: the records are much wider, and those of a page are few.
    keys = page(chosen.with_only_columns(maintain_column_froms=True), order, of_page, "keys")
    return _with_records(keys, (keys.c.place,) if order.row_names else keys.c, order, abandon_after)


def _with_records(
    keys: FromClause, columns: Iterable[ColumnElement[Any]], order: Order, abandon_after: timedelta
) -> CTE:
    """The records of these keys with their effective status, and these columns."""
    _, user_id, session_id = (keys.c[name] for name in order.labels)
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
