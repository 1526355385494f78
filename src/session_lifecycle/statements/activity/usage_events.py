"""The ledger: which of its events a read chooses, and pages of them."""

import json
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, and_, cast, func, join, select

from session_lifecycle.models import LedgerEvent, UsageEventFilters, UsageFilters
from session_lifecycle.models.usage import RARE_CLASSES
from session_lifecycle.statements import tables
from session_lifecycle.statements.activity.run_figures import CLIENT
from session_lifecycle.statements.shared.further_totals import parsed
from session_lifecycle.statements.shared.json_rows import fields_of
from session_lifecycle.statements.shared.keys import equal_where_given, same_session
from session_lifecycle.statements.shared.ledger import UNKNOWN_MODEL, UNKNOWN_PROVIDER
from session_lifecycle.statements.shared.model_names import is_model
from session_lifecycle.statements.shared.paging import Order, Position, beside_total, page, total
from session_lifecycle.statements.shared.visibility import AnyViewer, visible
from session_lifecycle.statements.shared.window import Bound, within

# Postgres leaves out the join with the runs where a statement names none of their columns: a run has one row at most.
# An event may name a run of another session, which the viewer need not see.
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
# As text, because a host's engine reads JSON as it likes.
_AS_TEXT = {"unit_prices", "details"}


def chosen_events(
    viewer: AnyViewer, chosen: UsageFilters | UsageEventFilters, since: Bound | None, until: Bound | None
) -> list[ColumnElement[bool]]:
    """Conditions on `EVENTS_WITH_RUNS`: the viewer sees the event, the filters choose it, it was used in the window."""
    conditions = [visible(viewer), *within(tables.usage_events.at, since, until)]
    if chosen.model is not None:
        conditions.append(is_model(MODEL, chosen.model))
    if chosen.tags:
        conditions.append(tables.sessions.tags.contains(chosen.tags))
    return conditions + equal_where_given(
        (PROVIDER, chosen.provider),
        (CLIENT, chosen.client),
        (tables.usage_events.session_id, chosen.session_id),
        (tables.usage_events.run_id, chosen.run_id),
        (tables.usage_events.kind, chosen.kind),
        (tables.usage_events.billing, chosen.billing),
        (tables.usage_events.service_tier, chosen.service_tier),
        (tables.usage_events.user_id, chosen.owner_id),
        (tables.sessions.dataset_id, chosen.dataset_id),
        (tables.sessions.agent_name, chosen.agent_name),
    )


def list_usage_events(filters: UsageEventFilters, position: Position | None) -> Select[*tuple[Any, ...]]:
    """A page and one row more, in the columns of `beside_total`: the columns that `event_of` reads."""
    columns = [cast(one, Text).label(name) if name in _AS_TEXT else one for name, one in _FIELDS.items()]
    chosen = (
        select(*columns, cast(tables.usage_events.parts, Text).label("parts"))
        .select_from(EVENTS_WITH_RUNS)
        .where(*chosen_events(filters.asker, filters, filters.since, filters.until))
    )
    after = chosen
    if position is not None:
        # The order's own condition compares rows, and the index on the time of use serves comparisons of the time only.
        at = tables.usage_events.at
        after = chosen.where(at <= position.value if filters.descending else at >= position.value)
    rows = page(after, USE_ORDER, filters, position)
    return beside_total(rows, total(chosen, filters), None if position is None else position.as_of)


def event_of(row: Any) -> LedgerEvent:
    """The event from a row of `list_usage_events`."""
    fields = {name: getattr(row, name) for name in _FIELDS}
    fields |= {name: None if fields[name] is None else json.loads(fields[name]) for name in _AS_TEXT}
    return LedgerEvent(**fields, **parsed(row.parts, RARE_CLASSES))
