"""A page of few sessions and its total, by statements that look for the visible ones among all."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Select,
    case,
    func,
    literal,
    null,
    select,
    true,
)

from session_lifecycle.models import SessionListFilters, SessionStatus
from session_lifecycle.models.pages import TOTAL_BOUND, Total
from session_lifecycle.models.session_filters import DEFAULT_SESSION_ORDER
from session_lifecycle.statements import tables
from session_lifecycle.statements.sessions.index_scans import bounded_count
from session_lifecycle.statements.sessions.listing import (
    chosen_sessions,
    first_keys_of_page,
    listing_total,
    ordered_keys,
    page_of_either,
    page_of_sessions,
)
from session_lifecycle.statements.sessions.listing_shape import ListingShape, has_index_of_rolled_up, shape_of
from session_lifecycle.statements.sessions.one_pass import ROW_ADDRESS, in_one_pass
from session_lifecycle.statements.sessions.records import ORDERS, record_columns
from session_lifecycle.statements.sessions.row_filters import SessionFiltersShape, shape_of_session_filters
from session_lifecycle.statements.shared.clock import clock
from session_lifecycle.statements.shared.few import Bound, are_few, bound, of_sample
from session_lifecycle.statements.shared.kept import OFFSET, KeptStatement, kept, once
from session_lifecycle.statements.shared.paging import (
    ROW_LIMIT,
    PageShape,
    Position,
    beside_total,
    on_first_row,
    shape_of_page,
    total,
)
from session_lifecycle.statements.shared.status import effective_status, stored_statuses
from session_lifecycle.statements.shared.visibility import scopes

FewWay = Callable[
    [SessionListFilters, Position | None, timedelta],
    tuple[KeptStatement, dict[str, Any]],
]
"""A statement for few sessions, and the parameters that it binds."""

FAR_OFFSET = 500
"""Behind so many rows, the scans of all scopes read much more than one scan of all sessions."""
FEW_COUNTED = 1_000
"""Up to so many sessions are counted one by one in the time in which roll-ups count a window."""
MOST_READ_FOR_ONE, LOOKED_AT_PERCENT = 8, 2
"""One scan reads so many sessions at most for each that is in the scopes, as far as a sample can say."""


def ways_of_few(filters: SessionListFilters) -> Sequence[tuple[Bound, FewWay]]:
    """The ways of a page that are shorter than `list_sessions` within a bound, each within a higher one."""
    looked_in = scopes(filters.asker, filters.owner_id, filters.dataset_id).number
    by_activity, of_status = filters.order_column == DEFAULT_SESSION_ORDER, filters.wanted_status is not None
    if filters.reads_rows or not (by_activity or of_status):
        # The other statement reads all chosen sessions as well, and twice. An index may have those that are rolled up.
        times = 1 if has_index_of_rolled_up(filters) else 64
        return [(bound(looked_in, times=times, times_if_never=64), list_in_one_pass)]
    is_far = filters.offset >= FAR_OFFSET
    if not by_activity or (is_far and filters.cursor is not None):
        return [(bound(looked_in, times=16 if is_far else 1), list_in_one_pass)]
    times = 16 if is_far else 8
    # Without roll-ups, the other statement counts rows as well.
    counted = (bound(looked_in, times_if_never=times), list_and_count_in_one_scan)
    in_one_scan = (bound(looked_in, times=times), list_in_one_scan)
    if is_far:
        # Where a scan would be too long, a pass is still shorter than the scans of all scopes.
        return [(bound(0), list_in_one_pass), counted, in_one_scan, (bound(looked_in, times=times), list_in_one_pass)]
    if of_status:
        return [(bound(looked_in), list_in_one_pass), in_one_scan]
    if filters.total == "none":
        return [(bound(0), list_in_one_pass), in_one_scan]
    return [(bound(0), list_in_one_pass), counted, in_one_scan]


def list_in_one_pass(
    filters: SessionListFilters, position: Position | None, abandon_after: timedelta
) -> tuple[KeptStatement, dict[str, Any]]:
    """The rows of `list_sessions`, by a statement for few sessions that reads them once, in any order."""
    shape, parameters = shape_of_session_filters(filters, abandon_after)
    of_page, more = shape_of_page(filters, position)
    seen = shape._replace(viewer=shape.viewer.looking_at_all())
    return _list_in_one_pass(seen, filters.order_column, of_page), parameters | more


def list_in_one_scan(
    filters: SessionListFilters, position: Position | None, abandon_after: timedelta
) -> tuple[KeptStatement, dict[str, Any]]:
    """The rows of `list_sessions` by activity, by a statement for few sessions.

    It goes through everybody's sessions from the latest on, up to the end of the page. A page far behind is looked for
    from the nearer end.
    """
    shape, parameters = shape_of(filters, position, abandon_after)
    is_far = _is_far(filters, position)
    return _list_in_one_scan(shape._replace(in_one_scan=True), None, filters.total, is_far=is_far), parameters


def list_and_count_in_one_scan(
    filters: SessionListFilters, position: Position | None, abandon_after: timedelta
) -> tuple[KeptStatement, dict[str, Any]]:
    """The same. Its total counts rows, where that of the other one counts roll-ups."""
    rows, parameters = shape_of_session_filters(filters, abandon_after)
    shape, more = shape_of(filters, position, abandon_after)
    seen = rows._replace(viewer=rows.viewer.looking_at_all())
    is_far = _is_far(filters, position)
    statement = _list_in_one_scan(shape._replace(in_one_scan=True), seen, filters.total, is_far=is_far)
    return statement, parameters | more


def _is_far(filters: SessionListFilters, position: Position | None) -> bool:
    """Whether the page is far behind the first one, where no cursor continues."""
    return position is None and filters.offset >= FAR_OFFSET


@kept
def _list_in_one_scan(
    shape: ListingShape, counted_rows: SessionFiltersShape | None, how: Total, *, is_far: bool
) -> Select[*tuple[Any, ...]]:
    def counted(how: Total) -> ColumnElement[Any]:
        if counted_rows is not None:
            return total(chosen_sessions(counted_rows), how)
        found = listing_total(shape, how)
        if how != "exact" or stored_statuses(shape.status_filter) != [SessionStatus.RUNNING]:
            return found
        # Few sessions run or were abandoned, and roll-ups take as long for hardly any.
        few = once(bounded_count(shape, FEW_COUNTED), "one_by_one")
        return case((few <= literal(FEW_COUNTED, BigInteger), few), else_=found)

    if is_far:
        number = once(counted("exact"), "counted")
        rows, found = _page_from_nearer_end(shape, number), _as_exact_as(how, number)
    else:
        rows, found = page_of_sessions(shape), counted(how)
    are_dense = func.count().filter(shape.kinds.in_any(tables.sessions)) * MOST_READ_FOR_ONE >= func.count()
    # Where hardly any session is in the scopes, the scan would go through most of the table for a page.
    is_short = of_sample(select(are_dense).select_from(tables.sessions), LOOKED_AT_PERCENT).scalar_subquery()
    return beside_total(rows, found).where(are_few(tables.sessions), is_short)


def _as_exact_as(how: Total, number: ColumnElement[int]) -> ColumnElement[Any]:
    """A total as exact as `how` demands, from the exact one."""
    match how:
        case "exact":
            return number
        case "bounded":
            return func.least(number, literal(TOTAL_BOUND + 1, BigInteger), type_=BigInteger)
        case "none":
            return null().cast(BigInteger)


@kept
def _list_in_one_pass(shape: SessionFiltersShape, order_by: str, of_page: PageShape) -> Select[*tuple[Any, ...]]:
    order, chosen = ORDERS[order_by], chosen_sessions(shape)
    found = in_one_pass(chosen, order, of_page).subquery("found")
    addresses = func.unnest(found.c.addresses)
    key = addresses.table_valued("address", with_ordinality="place", name="key").render_derived()
    status, as_of = effective_status(shape.abandon_after, clock()).label("effective_status"), clock().label("as_of")
    return (
        select(*record_columns(), status, key.c.place, *on_first_row(key.c.place, found.c.total, as_of))
        .select_from(found.outerjoin(key.join(tables.sessions, key.c.address == ROW_ADDRESS), true()))
        .where(are_few(tables.sessions))
        .order_by(key.c.place)
    )


def _page_from_nearer_end(shape: ListingShape, number: ColumnElement[int]) -> CTE:
    """The page of `page_of_sessions`, which begins at the last session where most come before the page.

    Args:
        shape: The shape of the listing, without a position.
        number: The number of sessions on all pages.
    """
    # What the pages before leave. All bounds are subqueries, for the reason that `first_keys` gives.
    left = func.greatest(number - OFFSET, literal(0, BigInteger), type_=BigInteger)
    is_at_the_end = left < OFFSET
    first = first_keys_of_page(shape)
    on_page = func.least(left, ROW_LIMIT, type_=BigInteger)
    last = ordered_keys(shape._replace(descending=not shape.descending), left).limit(on_page).offset(left - on_page)
    return page_of_either(~is_at_the_end, first, last, shape)
