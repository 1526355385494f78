"""Pages of session summaries."""

from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, Text, or_, select

from session_lifecycle.models import SummaryFilters
from session_lifecycle.models.pages import Total
from session_lifecycle.models.summaries import LAST_PROMPT
from session_lifecycle.statements import tables
from session_lifecycle.statements.activity.messages import has_message_like, pattern_of
from session_lifecycle.statements.activity.run_figures import ENDED, RECORDED, RunsShape, counted, shape_of_runs
from session_lifecycle.statements.activity.summary_figures import last_prompt_at, with_figures
from session_lifecycle.statements.sessions.listing import (
    chosen_sessions,
    listing_total,
    page_by_rows,
    page_of_sessions,
)
from session_lifecycle.statements.sessions.listing_shape import ListingShape, shape_of
from session_lifecycle.statements.sessions.records import ORDERS, SESSION_KEY
from session_lifecycle.statements.sessions.row_filters import SessionFiltersShape, shape_of_session_filters
from session_lifecycle.statements.shared.kept import Given, KeptStatement, given, kept
from session_lifecycle.statements.shared.keys import same_session
from session_lifecycle.statements.shared.paging import (
    Order,
    PageShape,
    Position,
    beside_total,
    shape_of_page,
    total,
)
from session_lifecycle.statements.shared.window import within


class SummariesShape(NamedTuple):
    """The part of the filters of summaries on which the text of a statement depends that reads sessions as rows."""

    sessions: SessionFiltersShape
    choice: RunsShape
    """The runs, one of which each session must have where the choice narrows."""
    counted: RunsShape
    """The runs that the figures cover."""
    given: Given
    """The filters that only summaries have."""
    order_by: str


def order_of(filters: SummaryFilters) -> Order:
    """The order of the page."""
    return _order(filters.order_column, shape_of_runs(filters.counted)[0])


def _order(order_by: str, counted: RunsShape) -> Order:
    if order_by != LAST_PROMPT:
        return ORDERS[order_by]
    of_session = same_session(tables.messages, tables.sessions)
    return Order(last_prompt_at(of_session, tables.sessions, counted), SESSION_KEY, has_nulls=True)


def list_summaries(
    filters: SummaryFilters, position: Position | None, abandon_after: timedelta
) -> tuple[KeptStatement, dict[str, Any]]:
    """A page and one row more, in the columns of `beside_total`, and the parameters that the statement binds.

    The statement chooses the page's sessions first, and then computes the figures of those sessions only.
    """
    found, of_summaries = given(
        {
            "started_since": filters.started_since,
            "started_until": filters.started_until,
            "search": None if filters.search is None else pattern_of(filters.search),
        }
    )
    choice, of_choice = shape_of_runs(filters)
    shape, parameters = shape_of(filters, position, abandon_after)
    has_conditions = found.names or choice.given.names or not choice.include_open
    if shape.has_index and not has_conditions and not filters.reads_rows:
        return list_by_index(shape, filters.total), parameters
    # No index answers the conditions: Postgres reads sessions, runs and messages to choose the sessions.
    sessions, of_sessions = shape_of_session_filters(filters, abandon_after)
    counted, _ = shape_of_runs(filters.counted)
    of_page, more = shape_of_page(filters, position)
    by_rows = SummariesShape(sessions, choice, counted, found, filters.order_column)
    return _list_by_rows(by_rows, of_page), of_summaries | of_choice | of_sessions | more


@kept
def list_by_index(shape: ListingShape, total: Total) -> Select[*tuple[Any, ...]]:
    rows = page_of_sessions(shape)
    # Without conditions on runs, the figures cover all runs.
    return with_figures(beside_total(rows, listing_total(shape, total)), rows, RunsShape())


@kept
def _list_by_rows(shape: SummariesShape, of_page: PageShape) -> Select[*tuple[Any, ...]]:
    chosen = chosen_sessions(shape.sessions).where(*_conditions(shape))
    rows = page_by_rows(chosen, _order(shape.order_by, shape.counted), of_page, shape.sessions.abandon_after)
    return with_figures(beside_total(rows, total(chosen, of_page.total)), rows, shape.counted)


def _conditions(shape: SummariesShape) -> list[ColumnElement[bool]]:
    started = (shape.given.value(name) for name in ("started_since", "started_until"))
    conditions = within(tables.sessions.started_at, *started)
    session_id, pattern = shape.choice.given.value("session_id"), shape.given.value("search", Text)
    if session_id is not None:
        conditions.append(tables.sessions.session_id == session_id)
    if pattern is not None:
        conditions.append(has_message_like(pattern))
    if shape.choice.narrows:
        conditions.append(_has_run(*counted(shape.choice)))
    elif not shape.choice.include_open:
        conditions.append(or_(_has_run(RECORDED, ENDED), ~_has_run(RECORDED)))
    return conditions


def _has_run(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    of_session = same_session(tables.runs, tables.sessions)
    return select(tables.runs.run_id).where(of_session, *conditions).correlate(tables.sessions).exists()
