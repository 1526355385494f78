"""Pages of session summaries."""

from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, or_, select

from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.entities import SessionRunEntity as R
from session_lifecycle.models import SummaryFilters
from session_lifecycle.statements.messages import has_message_with
from session_lifecycle.statements.pages import Position, beside_total, page, total
from session_lifecycle.statements.run_figures import ENDED, RECORDED, counted
from session_lifecycle.statements.session_figures import with_figures
from session_lifecycle.statements.sessions import chosen_sessions, order_of, page_and_total
from session_lifecycle.statements.status import clock


def list_summaries(
    filters: SummaryFilters, position: Position | None, abandon_after: timedelta
) -> Select[*tuple[Any, ...]]:
    """A page and one row more, as `beside_total` makes it: first which sessions, then the figures of those only."""
    now = clock(None if position is None else position.as_of)
    if conditions := _conditions(filters):
        chosen = chosen_sessions(filters, abandon_after, now).where(*conditions)
        rows, count = page(chosen, order_of(filters), filters, position), total(chosen, filters)
    else:
        rows, count = page_and_total(filters, position, abandon_after, now)
    return with_figures(beside_total(rows, count, now), rows, filters.counted)


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
