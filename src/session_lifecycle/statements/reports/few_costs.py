"""Cost by model of few sessions, from the rows of all, rolled up or not."""

from datetime import timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    and_,
    exists,
    false,
    func,
    literal,
    literal_column,
    select,
    true,
    tuple_,
)
from sqlalchemy.orm import aliased

from session_lifecycle.models.session_filters import DEFAULT_SESSION_ORDER
from session_lifecycle.statements import tables
from session_lifecycle.statements.roll_ups.totals import by_name, is_in, is_unknown_model, usage_by_model
from session_lifecycle.statements.sessions.index_scans import first_keys
from session_lifecycle.statements.sessions.listing_shape import ListingShape
from session_lifecycle.statements.shared.few import PAGE_BYTES, size_bytes
from session_lifecycle.statements.shared.kept import once
from session_lifecycle.statements.shared.keys import same_session
from session_lifecycle.statements.shared.visibility import EVERYBODY, ViewerShape, is_one_of, visible
from session_lifecycle.statements.shared.window import Ends, StatusWindow, window

LOOKUPS_OF_A_PAGE = 4
"""So many sessions have their usage looked up while a page of usage is compared with the seen sessions."""


def model_figures_of_few(viewer: ViewerShape, ends: Ends, *, looks_up: bool) -> Select[*tuple[Any, ...]]:
    """The rows of `model_figures`, by reading all usage. Binds `quoted_schema`.

    Args:
        viewer: The shape of the viewer.
        ends: The ends of the window that are given.
        looks_up: Whether to look up the usage of each session where the window has few. With hardly any usage, to read
            all of it is shorter.
    """
    of_all = _usage_of_all(viewer, ends)
    if not looks_up:
        return by_name([of_all])
    most = size_bytes(tables.model_usage) // literal(PAGE_BYTES // LOOKUPS_OF_A_PAGE, BigInteger)
    one_more = most + literal(1, BigInteger)
    active = select(first_keys(_everybody(ends), one_more, "dataset_id")).limit(one_more).cte("active")
    is_short = once(select(func.count() <= most).select_from(active).scalar_subquery(), "judged")
    of_each = _usage_of_each(select(active.c.user_id, active.c.session_id).where(visible(viewer, active.c)))
    return by_name([of_each.where(is_short), of_all.where(~is_short)])


def _everybody(ends: Ends) -> ListingShape:
    """Everybody's sessions in the window."""
    return ListingShape(
        kinds=EVERYBODY,
        order_by=DEFAULT_SESSION_ORDER,
        descending=True,
        status_filter=None,
        has_since=ends.since,
        has_until=ends.until,
        has_agent_name=False,
        abandon_after=timedelta(0),
        has_position=False,
        position_is_null=False,
        in_one_scan=True,
    )


def _usage_of_each(keys: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    """The sums of `usage_by_model` over the usage of these sessions, which is looked up for one after another."""
    # OFFSET 0 makes Postgres do so. It expects many keys, and would read all usage.
    one_by_one: ColumnElement[int] = literal_column("0")
    table, seen = tables.model_usage, keys.subquery("seen")
    looked_up = select(*table.__table__.columns).where(same_session(table, seen.c)).offset(one_by_one).lateral("used")
    usage, named = aliased(table, looked_up), aliased(table, name="named")
    of_session = select(named.user_id).where(same_session(named, usage), *is_unknown_model(named))
    has_named = exists(of_session.offset(one_by_one))
    return usage_by_model(usage, has_named, lambda rows: rows.select_from(seen.join(looked_up, true())))


def _usage_of_all(viewer: ViewerShape, ends: Ends) -> Select[*tuple[Any, ...]]:
    """The sums of `usage_by_model` over the usage of all seen sessions, for which all usage is read."""
    usage, named = tables.model_usage, aliased(tables.model_usage, name="named")
    has_named = tuple_(usage.user_id, usage.session_id).in_(
        select(named.user_id, named.session_id).where(*is_unknown_model(named))
    )
    is_seen = and_(visible(viewer), is_in(tables.sessions, StatusWindow(None, *window(ends, are_unknown=True))))
    # Of a condition with COALESCE, Postgres expects that every other session meets it. Where it expected few, it would
    # look up the usage of each, and sort what it finds.
    seen = (
        select(tables.sessions.user_id, tables.sessions.session_id)
        .where(func.coalesce(is_seen, false()))
        .subquery("seen")
    )
    conditions: list[ColumnElement[bool]] = []
    if viewer.owner_ids and not viewer.permitted_dataset_ids and not viewer.sees_all:
        # All of it has an owner's key.
        conditions.append(is_one_of(usage.user_id, viewer.owner_ids))
    return usage_by_model(
        usage, has_named, lambda rows: rows.join_from(usage, seen, same_session(usage, seen.c)).where(*conditions)
    )
