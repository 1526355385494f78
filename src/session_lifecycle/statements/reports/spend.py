"""Usage and spend, by the time of use."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Numeric,
    Select,
    Text,
    bindparam,
    cast,
    func,
    join,
    null,
    or_,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY

from session_lifecycle.models import Viewer
from session_lifecycle.models.reports import Series
from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.clock import TIMESTAMPTZ
from session_lifecycle.statements.shared.keys import same_session
from session_lifecycle.statements.shared.ledger import (
    IS_LATE,
    IS_MEASUREMENT,
    IS_NOT_LATE,
    IS_UNPRICED,
    TOKEN_COLUMNS,
    UNKNOWN_AGENT,
    UNKNOWN_DATASET,
    UNKNOWN_MODEL,
)
from session_lifecycle.statements.shared.visibility import visible
from session_lifecycle.statements.shared.window import within

EVENTS_AND_SESSIONS = join(tables.usage_events, tables.sessions, same_session(tables.sessions, tables.usage_events))
CLASSES = {
    "uncached_input_tokens": tables.usage_events.tokens_in
    - tables.usage_events.cache_read_tokens
    - tables.usage_events.cache_write_tokens,
    "cache_read_tokens": tables.usage_events.cache_read_tokens,
    "cache_write_tokens": tables.usage_events.cache_write_tokens,
    "visible_output_tokens": tables.usage_events.tokens_out - tables.usage_events.reasoning_tokens,
    "reasoning_tokens": tables.usage_events.reasoning_tokens,
    "tokens_in": tables.usage_events.tokens_in,
    "tokens_out": tables.usage_events.tokens_out,
}
"""The classes that each count is made of, and then the two counts."""


def usage_by_bucket(viewer: Viewer, series: Series, boundaries: Sequence[datetime]) -> Select[*tuple[Any, ...]]:
    """One row per bucket and group that has an event: the bucket's `number` from 1, the `group`, and the figures."""
    # The boundaries are bound, so that only the caller's time zone data decide where a day begins.
    thresholds = bindparam("boundaries", list(boundaries), type_=ARRAY(TIMESTAMPTZ))
    number = func.width_bucket(tables.usage_events.at, thresholds, type_=Integer).label("number")
    group = _group(series).label("group")
    sums = [
        func.coalesce(func.sum(column), 0).cast(Numeric).label(column.key)
        for column in (tables.usage_events.cost_usd, *TOKEN_COLUMNS)
    ]
    counts = [
        func.count().filter(condition).cast(BigInteger).label(name)
        for name, condition in (("events", IS_MEASUREMENT), ("unpriced_events", IS_UNPRICED))
    ]
    return (
        select(number, group, *sums, *counts)
        .select_from(EVENTS_AND_SESSIONS)
        .where(visible(viewer), IS_NOT_LATE, *within(tables.usage_events.at, series.since, series.until))
        .group_by(number, group)
    )


def _group(series: Series) -> ColumnElement[str | None]:
    match series.group_by:
        case "model":
            return func.coalesce(tables.usage_events.model, UNKNOWN_MODEL, type_=Text)
        case "agent":
            return func.coalesce(tables.sessions.agent_name, UNKNOWN_AGENT, type_=Text)
        case "user":
            return cast(tables.sessions.user_id, Text)
        case "dataset":
            return func.coalesce(cast(tables.sessions.dataset_id, Text), UNKNOWN_DATASET, type_=Text)
        case None:
            return cast(null(), Text)


def spend(viewer: Viewer, since: datetime | None, until: datetime | None) -> Select[*tuple[Any, ...]]:
    """Exactly one row; its figures are zero where there is no usage."""
    sums = [(column.key, column, IS_NOT_LATE) for column in (tables.usage_events.cost_usd, *TOKEN_COLUMNS)]
    counts = [("events", IS_MEASUREMENT), ("unpriced_events", IS_UNPRICED), ("late_events", IS_LATE)]
    return (
        select(
            *(
                func.coalesce(func.sum(column).filter(condition), 0).cast(Numeric).label(name)
                for name, column, condition in (*sums, ("late_cost_usd", tables.usage_events.cost_usd, IS_LATE))
            ),
            *(func.count().filter(condition).cast(BigInteger).label(name) for name, condition in counts),
        )
        .select_from(EVENTS_AND_SESSIONS)
        .where(visible(viewer), *within(tables.usage_events.at, since, until))
    )


def tokens_by_class(viewer: Viewer, since: datetime | None, until: datetime | None) -> Select[*tuple[Any, ...]]:
    """One row over all models, with a null `model`, and then one row per model with tokens, most tokens first."""
    model = func.coalesce(tables.usage_events.model, UNKNOWN_MODEL, type_=Text).label("model")
    rows = (
        select(model, *(tokens.label(name) for name, tokens in CLASSES.items()))
        .select_from(EVENTS_AND_SESSIONS)
        .where(
            visible(viewer),
            IS_NOT_LATE,
            or_(tables.usage_events.tokens_in > 0, tables.usage_events.tokens_out > 0),
            *within(tables.usage_events.at, since, until),
        )
        .subquery("events")
    )
    sums = {name: func.coalesce(func.sum(rows.c[name]), 0).cast(Numeric) for name in CLASSES}
    return (
        select(rows.c.model, *(total.label(name) for name, total in sums.items()))
        .group_by(func.grouping_sets(tuple_(), tuple_(rows.c.model)))
        .order_by(rows.c.model.is_not(None), (sums["tokens_in"] + sums["tokens_out"]).desc(), rows.c.model)
    )
