"""Usage by the time of use, in groups: the one statement of the reports on the ledger."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    Numeric,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    distinct,
    func,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY

from session_lifecycle.models import Viewer
from session_lifecycle.models.reports import FIGURES, OF_TAG, UsageQuestion
from session_lifecycle.models.usage import RARE_CLASSES
from session_lifecycle.statements import tables
from session_lifecycle.statements.activity.run_figures import CLIENT
from session_lifecycle.statements.activity.usage_events import (
    EVENTS_WITH_RUNS,
    MODEL,
    PROVIDER,
    chosen_events,
    given_events,
)
from session_lifecycle.statements.shared.clock import TIMESTAMPTZ, clock
from session_lifecycle.statements.shared.json_rows import Column
from session_lifecycle.statements.shared.kept import LIMIT, Given, KeptStatement, kept
from session_lifecycle.statements.shared.ledger import (
    IS_LATE,
    IS_MEASUREMENT,
    IS_NOT_LATE,
    IS_PARTIAL,
    IS_PLAN,
    IS_PLAN_UNPRICED,
    IS_UNMEASURED,
    IS_UNPRICED,
    TOKEN_COLUMNS,
    UNKNOWN_AGENT,
)
from session_lifecycle.statements.shared.status import effective_status
from session_lifecycle.statements.shared.visibility import ViewerShape, shape_of_viewer

BUCKET = "bucket"
"""The column with the number of the bucket, from 1."""
MODEL_KEY, SPELLING = "model_key", "model"
"""The columns with the name of a model without case, and in a spelling that was given."""
TAG = "tag_{}"
"""The column with the text of a tag, by the place of its name in `UsageQuestion.tags`."""

_SUMS: dict[str, tuple[Column, ColumnElement[bool]]] = {
    **{column.key: (column, IS_NOT_LATE) for column in (tables.usage_events.cost_usd, *TOKEN_COLUMNS)},
    **{name: (cast(tables.usage_events.parts[name].astext, Numeric), IS_NOT_LATE) for name in RARE_CLASSES},
    "late_cost_usd": (tables.usage_events.cost_usd, IS_LATE),
    "plan_cost_usd": (tables.usage_events.plan_cost_usd, IS_PLAN),
    "plan_tokens_in": (tables.usage_events.tokens_in, IS_PLAN),
    "plan_tokens_out": (tables.usage_events.tokens_out, IS_PLAN),
}
_COUNTS: dict[str, ColumnElement[bool]] = {
    "events": IS_MEASUREMENT,
    "unpriced_events": IS_UNPRICED,
    "unmeasured_events": IS_UNMEASURED,
    "partial_events": and_(IS_MEASUREMENT, IS_PARTIAL),
    "late_events": IS_LATE,
    "plan_events": and_(IS_MEASUREMENT, IS_PLAN),
    "plan_unpriced_events": and_(IS_MEASUREMENT, IS_PLAN_UNPRICED),
}
_DISTINCT: dict[str, tuple[Column, ColumnElement[bool]]] = {
    "sessions": (tables.usage_events.session_id, IS_MEASUREMENT),
    "runs": (tables.usage_events.run_id, IS_MEASUREMENT),
}
"""What is counted once for each user."""
_INPUTS: dict[str, ColumnElement[Any]] = {
    **{name: case((condition, column)) for name, (column, condition) in {**_SUMS, **_DISTINCT}.items()},
    **_COUNTS,
}
"""What an event adds to each figure."""


_USER = tables.usage_events.user_id.expression
_KEYS: dict[str, dict[str, ColumnElement[Any]]] = {
    "model": {MODEL_KEY: func.lower(MODEL), SPELLING: MODEL},
    "provider": {"provider": PROVIDER},
    "agent": {"agent_name": func.coalesce(tables.sessions.agent_name, UNKNOWN_AGENT, type_=Text).collate("C")},
    "user": {"user_id": _USER},
    "dataset": {"dataset_id": tables.sessions.dataset_id.expression},
    "client": {"client": CLIENT},
    "kind": {"kind": tables.usage_events.kind.collate("C")},
    "billing": {"billing": tables.usage_events.billing.collate("C")},
    "service_tier": {"service_tier": tables.usage_events.service_tier.collate("C")},
    "session": {"user_id": _USER, "session_id": tables.usage_events.session_id.expression},
    "run": {"user_id": _USER, "run_id": tables.usage_events.run_id.collate("C")},
}
"""The columns by which each dimension groups, but for those that depend on the question."""


class UsageShape(NamedTuple):
    """The part of a question on which the text of its statement depends. Names of tags and details are bound."""

    group_by: tuple[str, ...]
    """The dimensions. A tag is named by its place in `UsageQuestion.tags`."""
    order_by: str
    figures: tuple[str, ...]
    details: int
    """How many details are asked for."""
    given: Given
    abandon_after: timedelta


def find_usage(
    viewer: Viewer, question: UsageQuestion, abandon_after: timedelta, figures: Sequence[str], limit: int
) -> tuple[KeptStatement, dict[str, Any]]:
    """`usage` for the groups up to the limit and one more, and the parameters that the statement binds."""
    seen, of_viewer = shape_of_viewer(viewer)
    found, of_filters = given_events(question.filters, question.since, question.until)
    tags, details = question.tags, question.details
    numbered = {f"{OF_TAG}{name}": f"{OF_TAG}{number}" for number, name in enumerate(tags)}
    shape = UsageShape(
        tuple(numbered.get(one, one) for one in question.group_by),
        numbered.get(question.order_by, question.order_by),
        tuple(figures),
        len(details),
        found,
        abandon_after,
    )
    parameters = {
        **of_viewer,
        **of_filters,
        **{_tag_name(number): name for number, name in enumerate(tags)},
        **{_detail_name(number): name for number, name in enumerate(details)},
        "details": list(details),
        "boundaries": question.boundaries,
        "as_of": None,
        "limit": limit + 2,
    }
    return usage(seen, shape), parameters


def _tag_name(number: int | str) -> str:
    """The name by which statements bind the name of a tag."""
    return f"name_of_tag_{number}"


def _detail_name(number: int) -> str:
    """The name by which statements bind the name of a detail."""
    return f"name_of_detail_{number}"


@kept
def usage(viewer: ViewerShape, shape: UsageShape) -> Select[*tuple[Any, ...]]:
    """One row over all groups, whose `is_total` is true; then the groups.

    A row has the columns of the dimensions, the figures, and the details as `detail_<number>` from 0. Without a
    dimension there is one row. A group has a row where an event of it adds to a figure or detail that is asked for.

    Binds the parameters of `find_usage`.
    """
    keys = {name: column for one in shape.group_by for name, column in _key(one, shape.abandon_after).items()}
    inputs = {name: _INPUTS[name] for name in shape.figures}
    inputs |= {f"detail_{number}": _detail(number) for number in range(shape.details)}
    # The expressions are columns of a subquery, because each mention of one would bind its parameters anew, and
    # Postgres would not see that what is selected is what is grouped by.
    columns = {**keys, **inputs, "user_id": tables.usage_events.user_id}
    counts = [IS_MEASUREMENT, IS_UNPRICED]
    if "late_events" in shape.figures:
        counts.append(IS_LATE)
    if shape.details:
        counts.append(tables.usage_events.details.has_any(bindparam("details", type_=ARRAY(Text))))
    events = (
        select(*(column.label(name) for name, column in columns.items()))
        .select_from(EVENTS_WITH_RUNS)
        .where(*chosen_events(viewer, shape.given), or_(*counts))
        .subquery("events")
    )
    totals = [_total(name, events).label(name) for name in inputs]
    if not keys:
        return select(true().label("is_total"), *totals)
    groups = [events.c[name] for name in keys if name != SPELLING]
    is_total = func.grouping(groups[0], type_=Integer) == 1
    spelling = [func.min(events.c[SPELLING]).label(SPELLING)] if SPELLING in keys else []
    found = (
        select(is_total.label("is_total"), *groups, *spelling, *totals)
        .group_by(func.grouping_sets(tuple_(), tuple_(*groups)))
        .subquery("found")
    )
    shown = {column.key: column for column in found.c}
    if SPELLING in keys:
        # All groups of a model show the same spelling of its name.
        shown[SPELLING] = func.min(found.c[SPELLING]).over(partition_by=found.c[MODEL_KEY]).label(SPELLING)
    if shape.order_by in FIGURES:
        first: list[ColumnElement[Any]] = [found.c[shape.order_by].desc()]
    else:
        first = [found.c[name] for name in _key(shape.order_by, shape.abandon_after) if name != SPELLING]
    return (
        select(*shown.values())
        .order_by(found.c.is_total.desc(), *first, *(found.c[column.key] for column in groups))
        .limit(LIMIT)
    )


def key_columns(dimension: str, question: UsageQuestion) -> list[str]:
    """The names of the columns by which a dimension groups and orders."""
    if dimension in _KEYS:
        return [name for name in _KEYS[dimension] if name != SPELLING]
    if dimension.startswith(OF_TAG):
        return [TAG.format(question.tags.index(dimension.removeprefix(OF_TAG)))]
    return [dimension if dimension == "status" else BUCKET]


def _key(dimension: str, abandon_after: timedelta) -> dict[str, ColumnElement[Any]]:
    """The columns by which a dimension of a shape groups."""
    if dimension in _KEYS:
        return _KEYS[dimension]
    if dimension == "status":
        return {"status": effective_status(abandon_after, clock())}
    if dimension.startswith(OF_TAG):
        number = dimension.removeprefix(OF_TAG)
        name = bindparam(_tag_name(number), type_=Text)
        return {TAG.format(number): tables.sessions.tags[name].astext.collate("C")}
    # The boundaries are bound, so that only the caller's time zone data decide where a day begins.
    thresholds = bindparam("boundaries", type_=ARRAY(TIMESTAMPTZ))
    return {BUCKET: func.width_bucket(tables.usage_events.at, thresholds, type_=Integer)}


def _detail(number: int) -> ColumnElement[Any]:
    name = bindparam(_detail_name(number), type_=Text)
    return case((IS_NOT_LATE, cast(tables.usage_events.details[name].astext, Numeric)))


def _total(name: str, events: FromClause) -> ColumnElement[Any]:
    """The total of a figure over events with the columns of `_INPUTS`."""
    if name in _COUNTS:
        return func.count().filter(events.c[name]).cast(BigInteger)
    if name in _DISTINCT:
        # All ids of users are equally long, so the text stands for the pair. Rows take five times as long to sort.
        pair = events.c[name].concat(cast(events.c.user_id, Text)).collate("C")
        return func.count(distinct(pair)).cast(BigInteger)
    return func.coalesce(func.sum(events.c[name]), 0).cast(Numeric)
