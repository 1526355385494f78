"""Pages of session summaries."""

from datetime import timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Select, or_, select

from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.entities import SessionRunEntity as R
from session_lifecycle.models import SummaryFilters
from session_lifecycle.models.activity_reads import RunChoice
from session_lifecycle.models.pages import Total
from session_lifecycle.statements.branches import Asked, parameters
from session_lifecycle.statements.messages import has_message_with
from session_lifecycle.statements.pages import Position, beside_total, page, total
from session_lifecycle.statements.run_figures import ENDED, RECORDED, counted
from session_lifecycle.statements.session_figures import with_figures
from session_lifecycle.statements.sessions import (
    MOST_KEPT,
    chosen_sessions,
    count_asked,
    order_of,
    page_of_sessions,
)


def list_summaries(
    filters: SummaryFilters, position: Position | None, abandon_after: timedelta
) -> tuple[Select[*tuple[Any, ...]], dict[str, Any]]:
    """A page and one row more, as `beside_total` makes it, and what the statement binds.

    First which sessions, then the figures of those only.
    """
    asked = Asked.by(filters, position, abandon_after)
    bound = parameters(filters, position, abandon_after)
    conditions = _conditions(filters)
    if asked.have_order and not conditions:
        return _in_order(asked, filters.total), bound
    # Only rows, runs and messages tell which sessions they are.
    chosen = chosen_sessions(filters, abandon_after, asked.now).where(*conditions)
    rows = page(chosen, order_of(filters.order_column), filters, position)
    return with_figures(beside_total(rows, total(chosen, filters), asked.now), rows, filters.counted), bound


@lru_cache(maxsize=MOST_KEPT)
def _in_order(asked: Asked, total: Total) -> Select[*tuple[Any, ...]]:
    rows = page_of_sessions(asked)
    # Who asks for no more than sessions has all runs counted.
    return with_figures(beside_total(rows, count_asked(asked, total), asked.now), rows, RunChoice())


def _conditions(filters: SummaryFilters) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if filters.session_id is not None:
        conditions.append(S.session_id == filters.session_id)
    if filters.started_since is not None:
        conditions.append(S.started_at >= filters.started_since)
    if filters.started_until is not None:
        conditions.append(S.started_at < filters.started_until)
    if filters.search is not None:
        conditions.append(has_message_with(filters.search))
    if filters.narrows:
        conditions.append(_has_run(*counted(filters)))
    elif not filters.include_open:
        conditions.append(or_(_has_run(RECORDED, ENDED), ~_has_run(RECORDED)))
    return conditions


def _has_run(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    of_session = (R.user_id == S.user_id, R.session_id == S.session_id)
    return select(R.run_id).where(*of_session, *conditions).correlate(S).exists()
