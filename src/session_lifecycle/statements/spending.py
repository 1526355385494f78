"""What was used and spent, by the time of use."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    Integer,
    Numeric,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    func,
    null,
    or_,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY

from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.entities import SessionUsageEventEntity as E
from session_lifecycle.models import Viewer
from session_lifecycle.models.reports import Series
from session_lifecycle.statements.ledger import COUNTS, IS_LATE, IS_MEASUREMENT, IS_UNPRICED, TOKENS
from session_lifecycle.statements.visibility import visible
from session_lifecycle.statements.windows import within

UNKNOWN = "unknown"
CLASSES = {
    "uncached_input_tokens": E.tokens_in - E.cache_read_tokens - E.cache_write_tokens,
    "cache_read_tokens": E.cache_read_tokens,
    "cache_write_tokens": E.cache_write_tokens,
    "visible_output_tokens": E.tokens_out - E.reasoning_tokens,
    "reasoning_tokens": E.reasoning_tokens,
    "tokens_in": E.tokens_in,
    "tokens_out": E.tokens_out,
}
"""What tokens are, and what of them adds up to which total."""


def usage_by_bucket(viewer: Viewer, series: Series, boundaries: Sequence[datetime]) -> Select[*tuple[Any, ...]]:
    """One row per bucket and group with any event: the bucket's number from 1, the group, and the sums."""
    # One clock decides what a day is: the caller's, which made the boundaries.
    thresholds = bindparam("boundaries", list(boundaries), type_=ARRAY(DateTime(timezone=True)))
    number = func.width_bucket(E.at, thresholds, type_=Integer).label("number")
    group = _group(series).label("group")
    sums = [func.coalesce(func.sum(column), 0).cast(Numeric).label(column.key) for column in (E.cost_usd, *TOKENS)]
    counts = [
        func.count().filter(condition).cast(BigInteger).label(name)
        for name, condition in (("events", IS_MEASUREMENT), ("unpriced_events", IS_UNPRICED))
    ]
    return (
        select(number, group, *sums, *counts)
        .select_from(E)
        .join(S, and_(S.user_id == E.user_id, S.session_id == E.session_id))
        .where(visible(viewer), COUNTS, *within(E.at, series.since, series.until))
        .group_by(number, group)
    )


def _group(series: Series) -> ColumnElement[str | None]:
    match series.group_by:
        case "model":
            return func.coalesce(E.model, UNKNOWN, type_=Text)
        case "agent":
            return func.coalesce(S.agent_name, UNKNOWN, type_=Text)
        case "user":
            return cast(S.user_id, Text)
        case "dataset":
            return func.coalesce(cast(S.dataset_id, Text), UNKNOWN, type_=Text)
        case None:
            return cast(null(), Text)


def spend(viewer: Viewer, since: datetime | None, until: datetime | None) -> Select[*tuple[Any, ...]]:
    """Exactly one row, zeros where nothing was used."""
    sums = [(column.key, column, COUNTS) for column in (E.cost_usd, *TOKENS)]
    counts = [("events", IS_MEASUREMENT), ("unpriced_events", IS_UNPRICED), ("late_events", IS_LATE)]
    return (
        select(
            *(
                func.coalesce(func.sum(column).filter(condition), 0).cast(Numeric).label(name)
                for name, column, condition in (*sums, ("late_cost_usd", E.cost_usd, IS_LATE))
            ),
            *(func.count().filter(condition).cast(BigInteger).label(name) for name, condition in counts),
        )
        .select_from(E)
        .join(S, and_(S.user_id == E.user_id, S.session_id == E.session_id))
        .where(visible(viewer), *within(E.at, since, until))
    )


def tokens_by_class(viewer: Viewer, since: datetime | None, until: datetime | None) -> Select[*tuple[Any, ...]]:
    """A row of all models together, its `model` null, and then a row for each that used any, most tokens first."""
    model = func.coalesce(E.model, UNKNOWN, type_=Text).label("model")
    rows = (
        select(model, *(tokens.label(name) for name, tokens in CLASSES.items()))
        .select_from(E)
        .join(S, and_(S.user_id == E.user_id, S.session_id == E.session_id))
        .where(visible(viewer), COUNTS, or_(E.tokens_in > 0, E.tokens_out > 0), *within(E.at, since, until))
        .subquery("events")
    )
    sums = {name: func.coalesce(func.sum(rows.c[name]), 0).cast(Numeric) for name in CLASSES}
    return (
        select(rows.c.model, *(total.label(name) for name, total in sums.items()))
        .group_by(func.grouping_sets(tuple_(), tuple_(rows.c.model)))
        .order_by(rows.c.model.is_not(None), (sums["tokens_in"] + sums["tokens_out"]).desc(), rows.c.model)
    )
