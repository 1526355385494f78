"""The list of sessions: filtered, searched and sorted by its address, in pages by cursor. A page makes one read."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from session_lifecycle.models import EffectiveStatus, SummaryFilters
from session_lifecycle.web.filters import DEFAULT_RANGE, Asked, Range, SummaryOrder, asked_summaries
from session_lifecycle.web.framework import APIRouter, Depends, Query, Response
from session_lifecycle.web.pages.problems import PageRoute
from session_lifecycle.web.pages.visit import AskedVisit, Visit

router = APIRouter(route_class=PageRoute)

ColumnName = Literal[
    "agent", "user", "models", "started", "active", "duration", "runs", "messages", "errors", "tokens", "cost", "tags"
]
DEFAULT_COLUMNS: tuple[ColumnName, ...] = ("agent", "models", "active", "duration", "errors", "tokens", "cost")
SIZES = (25, 50, 100)


@dataclass(frozen=True)
class Column:
    """A column of the list."""

    title: str
    order_by: SummaryOrder | None = None
    """What the list is sorted by at a click; None: the column cannot be sorted."""
    is_figure: bool = False


COLUMNS: dict[ColumnName, Column] = {
    "agent": Column("Agent"),
    "user": Column("User"),
    "models": Column("Models"),
    "started": Column("Started", "started_at"),
    "active": Column("Last activity", "last_activity_at"),
    "duration": Column("Duration", is_figure=True),
    "runs": Column("Runs", is_figure=True),
    "messages": Column("Messages", is_figure=True),
    "errors": Column("Errors", "error_count", is_figure=True),
    "tokens": Column("Tokens in", "tokens_in", is_figure=True),
    "cost": Column("Cost", "cost_usd", is_figure=True),
    "tags": Column("Tags"),
}
_FIELDS = ("search", "status", "agent_name", "model", "provider", "client", "tool", "tags", "session_id_prefix")
_OF_FORM = (*_FIELDS, "range", "min_cost_usd", "min_errors", "columns", "limit")
_NO_FILTER = {"range", "order_by", "descending", "limit", "columns", "total", "tz"}
"""The parameters that do not say which sessions are listed, or that the page shows by other means."""


@router.get("/sessions")
async def sessions(
    visit: AskedVisit,
    asked: Annotated[Asked[SummaryFilters], Depends(asked_summaries)],
    columns: Annotated[list[ColumnName] | None, Query(description="The columns that are shown.")] = None,
) -> Response:
    """A page of the sessions that the viewer sees, each with its figures."""
    filters = asked.seen_by(visit.viewer)
    if "total" not in visit.request.query_params:
        # Counting every match of a search costs more than the page.
        filters = filters.model_copy(update={"total": "bounded"})
    page = await visit.db.activity.list_session_summaries(filters)
    shown: list[ColumnName] = [name for name in COLUMNS if name in (columns or DEFAULT_COLUMNS)]
    names = await visit.names_of(one.user_id for one in page.sessions) if "user" in shown else {}
    return visit.answer(
        "sessions.html",
        page=page,
        next_cursor=asked.next_cursor(page),
        columns=[(name, COLUMNS[name], _sorting(visit, COLUMNS[name], asked.filters)) for name in shown],
        all_columns=COLUMNS,
        names=names,
        filters=asked.filters,
        range=asked.range,
        ranges=get_args(Range),
        default_range=DEFAULT_RANGE,
        fields=_FIELDS,
        of_form=_OF_FORM,
        sizes=SIZES,
        statuses=list(EffectiveStatus),
        active=[pair for pair in visit.address.hidden() if pair[0] not in _NO_FILTER],
    )


@dataclass(frozen=True)
class Sorting:
    """How the list is sorted by one column."""

    address: str
    """The list sorted by the column: the largest first, or the other way round at a second click."""
    direction: Literal["ascending", "descending"] | None


def _sorting(visit: Visit, column: Column, filters: SummaryFilters) -> Sorting | None:
    if column.order_by is None:
        return None
    is_sorted = filters.order_column == column.order_by
    is_turned = is_sorted and filters.descending
    address = visit.address.listing(order_by=column.order_by, descending="false" if is_turned else None)
    return Sorting(address, ("descending" if filters.descending else "ascending") if is_sorted else None)
