"""How long things took."""

from typing import Any

from sqlalchemy import ColumnElement, Double, Numeric, Select, Subquery, extract, func, select, tuple_, type_coerce

from session_lifecycle.statements.json_values import Column

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


def lasted_us(began: Column, ended: Column) -> ColumnElement[Any]:
    """From one moment to the other in microseconds, exact and never negative."""
    return func.greatest(type_coerce(extract("epoch", ended - began), Numeric) * 1_000_000, 0, type_=Numeric)


def percentiles(duration_us: ColumnElement[Any]) -> dict[str, ColumnElement[Any]]:
    """The percentiles by their names, in microseconds, interpolated between two durations; null without any."""
    # Exact below 285 years.
    ordered = duration_us.cast(Double).asc()
    return {name: func.percentile_cont(fraction).within_group(ordered) for name, fraction in PERCENTILES.items()}


def durations_of(rows: Subquery) -> Select[*tuple[Any, ...]]:
    """A row of all together, its `key` null, and then a row for each key: how many `durations`, and the percentiles.

    Those of most durations come first, ties by key.

    Args:
        rows: A `key`, never null, and `duration_us` of each.
    """
    return (
        select(
            rows.c.key,
            func.count().label("durations"),
            *(percentile.label(name) for name, percentile in percentiles(rows.c.duration_us).items()),
        )
        .group_by(func.grouping_sets(tuple_(), tuple_(rows.c.key)))
        .order_by(rows.c.key.is_not(None), func.count().desc(), rows.c.key)
    )
