"""Usage by the time of use, in groups: the one statement of the reports on the ledger."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, ClassVar

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
    literal,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY

from session_lifecycle.models import UsageFilters, Viewer
from session_lifecycle.models.reports import BUCKETS, FIGURES, OF_TAG, UsageQuestion
from session_lifecycle.models.usage import RARE_CLASSES
from session_lifecycle.statements import tables
from session_lifecycle.statements.activity.run_figures import CLIENT
from session_lifecycle.statements.activity.usage_events import EVENTS_WITH_RUNS, MODEL, PROVIDER, chosen_events
from session_lifecycle.statements.shared.clock import TIMESTAMPTZ, clock
from session_lifecycle.statements.shared.json_rows import Column
from session_lifecycle.statements.shared.kept import LIMIT, MOST_KEPT
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
from session_lifecycle.statements.shared.visibility import AnyViewer, ViewerShape, shape_of_viewer

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


@dataclass(frozen=True)
class _Shape:
    """What the text of a statement depends on in a question without filters and details, in place of the question."""

    group_by: tuple[str, ...]
    order_by: str
    has_since: bool
    has_until: bool

    # The same in every shape, so no part of what tells two of them apart.
    tags: ClassVar[tuple[str, ...]] = ()
    details: ClassVar[tuple[str, ...]] = ()
    filters: ClassVar[UsageFilters] = UsageFilters()
    boundaries: ClassVar[None] = None

    @property
    def since(self) -> ColumnElement[datetime] | None:
        return bindparam("since", type_=TIMESTAMPTZ) if self.has_since else None

    @property
    def until(self) -> ColumnElement[datetime] | None:
        return bindparam("until", type_=TIMESTAMPTZ) if self.has_until else None


_KEPT_DIMENSIONS = frozenset({*_KEYS, "status", *BUCKETS})
"""The dimensions whose columns depend on no value of the question, but for the bound `boundaries`."""


def find_usage(
    viewer: Viewer, question: UsageQuestion, abandon_after: timedelta, figures: Sequence[str], limit: int
) -> tuple[Select[*tuple[Any, ...]], dict[str, Any] | None]:
    """`usage` for the groups up to the limit and one more, and the parameters that a kept statement binds."""
    if question.filters != UsageFilters() or question.details or not _KEPT_DIMENSIONS.issuperset(question.group_by):
        return usage(viewer, question, abandon_after, figures, limit + 2), None
    seen, of_viewer = shape_of_viewer(viewer)
    shape = _Shape(question.group_by, question.order_by, question.since is not None, question.until is not None)
    window = {"since": question.since, "until": question.until, "boundaries": question.boundaries}
    parameters = {**of_viewer, **window, "abandon_after": abandon_after, "as_of": None, "limit": limit + 2}
    return _kept_usage(seen, shape, abandon_after, tuple(figures)), parameters


@lru_cache(maxsize=MOST_KEPT)
def _kept_usage(
    viewer: ViewerShape, shape: _Shape, abandon_after: timedelta, figures: tuple[str, ...]
) -> Select[*tuple[Any, ...]]:
    return usage(viewer, shape, abandon_after, figures, LIMIT)


def usage(
    viewer: AnyViewer,
    question: UsageQuestion | _Shape,
    abandon_after: timedelta,
    figures: Sequence[str],
    most_rows: int | ColumnElement[int],
) -> Select[*tuple[Any, ...]]:
    """One row over all groups, whose `is_total` is true; then the groups.

    A row has the columns of the dimensions, the figures, and the details as `detail_<number>` from 0. Without a
    dimension there is one row. A group has a row where an event of it adds to a figure or detail that is asked for.

    Args:
        viewer: The viewer.
        question: What is asked.
        abandon_after: The threshold of the effective status.
        figures: The names of the figures, with the one that is ordered by.
        most_rows: The most rows.
    """
    keys = {name: column for one in question.group_by for name, column in _key(one, question, abandon_after).items()}
    inputs = {name: _INPUTS[name] for name in figures}
    inputs |= {f"detail_{number}": _detail(name) for number, name in enumerate(question.details)}
    # The expressions are columns of a subquery, because each mention of one would bind its parameters anew, and
    # Postgres would not see that what is selected is what is grouped by.
    columns = {**keys, **inputs, "user_id": tables.usage_events.user_id}
    counts = [IS_MEASUREMENT, IS_UNPRICED]
    if "late_events" in figures:
        counts.append(IS_LATE)
    if question.details:
        counts.append(tables.usage_events.details.has_any(literal(list(question.details), ARRAY(Text))))
    events = (
        select(*(column.label(name) for name, column in columns.items()))
        .select_from(EVENTS_WITH_RUNS)
        .where(*chosen_events(viewer, question.filters, question.since, question.until), or_(*counts))
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
    if question.order_by in FIGURES:
        first: list[ColumnElement[Any]] = [found.c[question.order_by].desc()]
    else:
        first = [found.c[name] for name in _key(question.order_by, question, abandon_after) if name != SPELLING]
    return (
        select(*shown.values())
        .order_by(found.c.is_total.desc(), *first, *(found.c[column.key] for column in groups))
        .limit(most_rows)
    )


def key_columns(dimension: str, question: UsageQuestion) -> list[str]:
    """The names of the columns by which a dimension groups and orders."""
    if dimension in _KEYS:
        return [name for name in _KEYS[dimension] if name != SPELLING]
    if dimension.startswith(OF_TAG):
        return [TAG.format(question.tags.index(dimension.removeprefix(OF_TAG)))]
    return [dimension if dimension == "status" else BUCKET]


def _key(dimension: str, question: UsageQuestion | _Shape, abandon_after: timedelta) -> dict[str, ColumnElement[Any]]:
    """The columns by which a dimension groups."""
    if dimension in _KEYS:
        return _KEYS[dimension]
    if dimension == "status":
        return {"status": effective_status(abandon_after, clock())}
    if dimension.startswith(OF_TAG):
        name = dimension.removeprefix(OF_TAG)
        return {TAG.format(question.tags.index(name)): tables.sessions.tags[name].astext.collate("C")}
    # The boundaries are bound, so that only the caller's time zone data decide where a day begins.
    thresholds = bindparam("boundaries", question.boundaries, type_=ARRAY(TIMESTAMPTZ))
    return {BUCKET: func.width_bucket(tables.usage_events.at, thresholds, type_=Integer)}


def _detail(name: str) -> ColumnElement[Any]:
    return case((IS_NOT_LATE, cast(tables.usage_events.details[name].astext, Numeric)))


def _total(name: str, events: FromClause) -> ColumnElement[Any]:
    """The total of a figure over events with the columns of `_INPUTS`."""
    if name in _COUNTS:
        return func.count().filter(events.c[name]).cast(BigInteger)
    if name in _DISTINCT:
        pair = tuple_(events.c.user_id, events.c[name])
        return func.count(distinct(pair)).filter(events.c[name].is_not(None)).cast(BigInteger)
    return func.coalesce(func.sum(events.c[name]), 0).cast(Numeric)
