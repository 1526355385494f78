"""A page of sessions and its total."""

from collections.abc import Callable, Iterable, Sequence
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
    case,
    false,
    func,
    literal,
    literal_column,
    null,
    select,
    true,
    union_all,
)

from session_lifecycle.models import SessionListFilters, SessionStatus
from session_lifecycle.models.pages import TOTAL_BOUND, Total
from session_lifecycle.models.session_filters import DEFAULT_SESSION_ORDER
from session_lifecycle.statements import tables
from session_lifecycle.statements.roll_ups.session_stats import count_sessions
from session_lifecycle.statements.roll_ups.totals import sessions_in_longest_buckets
from session_lifecycle.statements.sessions.index_scans import bounded_count, first_keys
from session_lifecycle.statements.sessions.listing_shape import ListingShape, has_index_of_rolled_up, shape_of
from session_lifecycle.statements.sessions.one_pass import ROW_ADDRESS, in_one_pass
from session_lifecycle.statements.sessions.records import ORDERS, record_columns
from session_lifecycle.statements.sessions.row_filters import (
    SessionFiltersShape,
    conditions_on_rows,
    shape_of_session_filters,
)
from session_lifecycle.statements.shared.clock import TIMESTAMPTZ, clock
from session_lifecycle.statements.shared.few import Bound, are_few, bound, of_sample
from session_lifecycle.statements.shared.kept import OFFSET, KeptStatement, kept, once, unknown
from session_lifecycle.statements.shared.keys import equal_where_given
from session_lifecycle.statements.shared.paging import (
    ROW_LIMIT,
    Order,
    PageShape,
    Position,
    beside_total,
    first_rows,
    on_first_row,
    page,
    place,
    shape_of_page,
    total,
)
from session_lifecycle.statements.shared.status import effective_status, has_status, stored_statuses
from session_lifecycle.statements.shared.visibility import EVERYBODY, scopes, visible
from session_lifecycle.statements.shared.window import Ends, active_within

FewWay = Callable[
    [SessionListFilters, Position | None, timedelta],
    tuple[KeptStatement, dict[str, Any]],
]
"""A statement for few sessions, and the parameters that it binds."""

FAR_OFFSET = 500
"""Behind so many rows, the scans of all scopes read much more than one scan of all sessions."""
FEW_COUNTED = 1_000
"""Up to so many sessions are counted one by one in the time in which roll-ups count a window."""
SORTED_FOR_ONE_SCANNED = 8
"""So many sessions are read and sorted in the time in which a scan of an index finds one."""
MOST_READ_FOR_ONE, LOOKED_AT_PERCENT = 8, 2
"""One scan reads so many sessions at most for each that is in the scopes, as far as a sample can say."""


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
    is_short = there * SORTED_FOR_ONE_SCANNED * (OFFSET + ROW_LIMIT) < seen * seen
    is_short = once(func.coalesce(is_short, false()), "judged")
    scanned = _first_keys_of_page(shape._replace(in_one_scan=True))
    order = ORDERS[shape.order_by]
    chosen = chosen_sessions(rows).with_only_columns(maintain_column_froms=True)
    ways = ((scanned, is_short), (first_rows(chosen, order, of_page), ~is_short))
    keys = union_all(*(select(keys.subquery()).where(is_it) for keys, is_it in ways))
    return beside_total(_of_keys(keys, shape), listing_total(shape, of_page.total))


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
        rows, found = page_from_nearer_end(shape, number), _as_exact_as(how, number)
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


@kept
def _list_by_index(shape: ListingShape, how: Total) -> Select[*tuple[Any, ...]]:
    return beside_total(page_of_sessions(shape), listing_total(shape, how))


def page_of_sessions(shape: ListingShape) -> CTE:
    """A page of sessions whose order an index has, in the columns of `page`."""
    return _of_keys(_first_keys_of_page(shape), shape)


def _first_keys_of_page(shape: ListingShape) -> Select[*tuple[Any, ...]]:
    """The keys of the page, from the first session on."""
    limit, offset = (unknown(one) if shape.in_one_scan else one for one in (ROW_LIMIT, OFFSET))
    return _ordered_keys(shape, bindparam("rows_needed", type_=BigInteger)).limit(limit).offset(offset)


def page_from_nearer_end(shape: ListingShape, number: ColumnElement[int]) -> CTE:
    """The page of `page_of_sessions`, which begins at the last session where most come before the page.

    Args:
        shape: The shape of the listing, without a position.
        number: The number of sessions on all pages.
    """
    # What the pages before leave. All bounds are subqueries, for the reason that `first_keys` gives.
    left = func.greatest(number - OFFSET, literal(0, BigInteger), type_=BigInteger)
    is_at_the_end = left < OFFSET
    first = _first_keys_of_page(shape)
    on_page = func.least(left, ROW_LIMIT, type_=BigInteger)
    last = _ordered_keys(shape._replace(descending=not shape.descending), left).limit(on_page).offset(left - on_page)
    ways = ((first, ~is_at_the_end), (last, is_at_the_end))
    keys = union_all(*(select(keys.subquery()).where(is_it) for keys, is_it in ways))
    return _of_keys(keys, shape)


def _ordered_keys(shape: ListingShape, rows_needed: ColumnElement[int]) -> Select[*tuple[Any, ...]]:
    """The keys of `first_keys` in the order of the listing."""
    order, keys = ORDERS[shape.order_by], first_keys(shape, rows_needed)
    columns = [column.label(name) for column, name in zip(keys.c, order.labels, strict=True)]
    return select(*columns).order_by(*order.terms([*keys.c], descending=shape.descending))


def _of_keys(keys: SelectBase, shape: ListingShape) -> CTE:
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
