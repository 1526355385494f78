"""The ledger: which of its events a read chooses, and pages of them."""

from datetime import datetime
from typing import Any

from pydantic_core import to_json
from sqlalchemy import ColumnElement, Select, Text, and_, cast, func, join, select

from session_lifecycle.models import LedgerEvent, UsageEventFilters, UsageFilters
from session_lifecycle.models.fields import model_key
from session_lifecycle.models.usage import RARE_CLASSES
from session_lifecycle.statements import tables
from session_lifecycle.statements.activity.run_figures import CLIENT
from session_lifecycle.statements.shared.database_functions import json_parameter
from session_lifecycle.statements.shared.further_totals import parsed
from session_lifecycle.statements.shared.json_rows import Column, fields_of, read_json
from session_lifecycle.statements.shared.kept import Given, KeptStatement, bound_name, given, kept
from session_lifecycle.statements.shared.keys import equal_where_given, same_session
from session_lifecycle.statements.shared.ledger import UNKNOWN_MODEL, UNKNOWN_PROVIDER
from session_lifecycle.statements.shared.model_names import is_model
from session_lifecycle.statements.shared.paging import (
    Order,
    PageShape,
    Position,
    beside_total,
    page,
    shape_of_page,
    total,
)
from session_lifecycle.statements.shared.visibility import ViewerShape, shape_of_viewer, visible
from session_lifecycle.statements.shared.window import within

# Postgres leaves out the join with the runs where a statement names none of their columns: a run has one row at most.
# An event may name a run of another session, which the viewer need not see. The sessions are always read: an import
# writes them last, and shows nothing before.
EVENTS_WITH_RUNS = join(
    join(tables.usage_events, tables.sessions, same_session(tables.sessions, tables.usage_events)),
    tables.runs,
    and_(tables.runs.run_id == tables.usage_events.run_id, same_session(tables.runs, tables.usage_events)),
    isouter=True,
)
"""Events with their sessions, and with their runs where a run is in the event's session."""

# Names are in the order of the collation "C", which is the order that Python has.
MODEL = func.coalesce(tables.usage_events.model, UNKNOWN_MODEL, type_=Text).collate("C")
PROVIDER = func.coalesce(tables.usage_events.provider, UNKNOWN_PROVIDER, type_=Text).collate("C")

USE_ORDER = Order(
    tables.usage_events.at,
    (
        tables.usage_events.recorded_at,
        tables.usage_events.user_id,
        tables.usage_events.session_id,
        tables.usage_events.event_id,
    ),
)
"""By the time of use; what was used at one moment by the time of recording, and then by the key."""

_FIELDS = fields_of(tables.usage_events, LedgerEvent)
_DEFAULTS, _make_event = LedgerEvent.row_defaults(), LedgerEvent.maker_of_rows()
# As text, because a host's engine reads JSON as it likes.
_AS_TEXT = {"unit_prices", "details"}


_COMPARED: dict[str, Column] = {
    "provider": PROVIDER,
    "client": CLIENT,
    "session_id": tables.usage_events.session_id,
    "run_id": tables.usage_events.run_id,
    "kind": tables.usage_events.kind,
    "billing": tables.usage_events.billing,
    "service_tier": tables.usage_events.service_tier,
    "owner_id": tables.usage_events.user_id,
    "dataset_id": tables.sessions.dataset_id,
    "agent_name": tables.sessions.agent_name,
}
"""What the filters of events are compared with, but for the model and the tags."""


def given_events(
    chosen: UsageFilters | UsageEventFilters, since: datetime | None, until: datetime | None
) -> tuple[Given, dict[str, Any]]:
    """The filters and the ends of the window that are given, and the parameters that `chosen_events` binds."""
    return given(
        {
            **{name: getattr(chosen, name) for name in _COMPARED},
            "model": None if chosen.model is None else model_key(chosen.model),
            "tags": to_json(chosen.tags).decode() if chosen.tags else None,
            "since": since,
            "until": until,
        }
    )


def chosen_events(viewer: ViewerShape, chosen: Given) -> list[ColumnElement[bool]]:
    """Conditions on `EVENTS_WITH_RUNS`: the viewer sees the event, the filters choose it, it was used in the window."""
    window = within(tables.usage_events.at, chosen.value("since"), chosen.value("until"))
    conditions = [visible(viewer), *window]
    model = chosen.value("model", Text)
    if model is not None:
        conditions.append(is_model(MODEL, model))
    if "tags" in chosen.names:
        conditions.append(tables.sessions.tags.contains(json_parameter(bound_name("tags"))))
    return conditions + equal_where_given(*((column, chosen.value(name)) for name, column in _COMPARED.items()))


def list_usage_events(filters: UsageEventFilters, position: Position | None) -> tuple[KeptStatement, dict[str, Any]]:
    """A page and one row more, in the columns of `beside_total`, and the parameters that the statement binds.

    A row has the columns that `event_of` reads.
    """
    viewer, of_viewer = shape_of_viewer(filters.asker)
    chosen, of_filters = given_events(filters, filters.since, filters.until)
    of_page, more = shape_of_page(filters, position)
    return _list_usage_events(viewer, chosen, of_page), of_viewer | of_filters | more


@kept
def _list_usage_events(viewer: ViewerShape, given: Given, of_page: PageShape) -> Select[*tuple[Any, ...]]:
    columns = [cast(one, Text).label(name) if name in _AS_TEXT else one for name, one in _FIELDS.items()]
    chosen = (
        select(*columns, cast(tables.usage_events.parts, Text).label("parts"))
        .select_from(EVENTS_WITH_RUNS)
        .where(*chosen_events(viewer, given))
    )
    after = chosen
    if of_page.has_position:
        # The order's own condition compares rows, and the index on the time of use serves comparisons of the time only.
        at, (of_position, *_) = tables.usage_events.at, USE_ORDER.bound_position
        after = chosen.where(at <= of_position if of_page.descending else at >= of_position)
    rows = page(after, USE_ORDER, of_page)
    return beside_total(rows, total(chosen, of_page.total))


def event_of(row: Any) -> LedgerEvent:
    """The event from a row of `list_usage_events`."""
    # By place, which takes half the time of looking up each column by its name.
    fields = _DEFAULTS.copy()
    fields.update(zip(_FIELDS, row, strict=False))
    for name in _AS_TEXT:
        fields[name] = read_json(fields[name])
    fields.update(parsed(row.parts, RARE_CLASSES))
    return _make_event(fields)
