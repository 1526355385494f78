"""Pages of session summaries."""

from datetime import timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Select, or_, select

from session_lifecycle.models import SummaryFilters
from session_lifecycle.models.pages import Total
from session_lifecycle.models.run_filters import RunChoice
from session_lifecycle.models.summaries import LAST_PROMPT
from session_lifecycle.statements import tables
from session_lifecycle.statements.activity.messages import has_message_with
from session_lifecycle.statements.activity.run_figures import ENDED, RECORDED, counted
from session_lifecycle.statements.activity.summary_figures import last_prompt_at, with_figures
from session_lifecycle.statements.sessions.listing import (
    chosen_sessions,
    listing_total,
    page_of_sessions,
)
from session_lifecycle.statements.sessions.listing_shape import ListingShape, shape_of
from session_lifecycle.statements.sessions.records import ORDERS, SESSION_KEY
from session_lifecycle.statements.shared.kept import MOST_KEPT
from session_lifecycle.statements.shared.keys import same_session
from session_lifecycle.statements.shared.paging import Order, Position, beside_total, page, total
from session_lifecycle.statements.shared.window import within


def order_of(filters: SummaryFilters) -> Order:
    """The order of the page."""
    if filters.order_column != LAST_PROMPT:
        return ORDERS[filters.order_column]
    of_session = same_session(tables.messages, tables.sessions)
    return Order(last_prompt_at(of_session, tables.sessions, filters.counted), SESSION_KEY, has_nulls=True)


def list_summaries(
    filters: SummaryFilters, position: Position | None, abandon_after: timedelta
) -> tuple[Select[*tuple[Any, ...]], dict[str, Any] | None]:
    """A page and one row more, in the columns of `beside_total`, and the parameters that a kept statement binds.

    The statement chooses the page's sessions first, and then computes the figures of those sessions only.
    """
    shape, parameters = shape_of(filters, position, abandon_after)
    conditions = _conditions(filters)
    if shape.has_index and not conditions and not filters.reads_rows:
        return list_by_index(shape, filters.total), parameters
    # No index answers the conditions: Postgres reads sessions, runs and messages to choose the sessions.
    chosen = chosen_sessions(filters, abandon_after).where(*conditions)
    rows = page(chosen, order_of(filters), filters, position)
    return with_figures(beside_total(rows, total(chosen, filters)), rows, filters.counted).params(parameters), None


@lru_cache(maxsize=MOST_KEPT)
def list_by_index(shape: ListingShape, total: Total) -> Select[*tuple[Any, ...]]:
    rows = page_of_sessions(shape)
    # Without conditions on runs, the figures cover all runs.
    return with_figures(beside_total(rows, listing_total(shape, total)), rows, RunChoice())


def _conditions(filters: SummaryFilters) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if filters.session_id is not None:
        conditions.append(tables.sessions.session_id == filters.session_id)
    conditions += within(tables.sessions.started_at, filters.started_since, filters.started_until)
    if filters.search is not None:
        conditions.append(has_message_with(filters.search))
    if filters.narrows:
        conditions.append(_has_run(*counted(filters)))
    elif not filters.include_open:
        conditions.append(or_(_has_run(RECORDED, ENDED), ~_has_run(RECORDED)))
    return conditions


def _has_run(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    of_session = same_session(tables.runs, tables.sessions)
    return select(tables.runs.run_id).where(of_session, *conditions).correlate(tables.sessions).exists()
