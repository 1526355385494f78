"""Durations of sessions and runs, and their percentiles."""

from typing import Any

from sqlalchemy import ColumnElement, Double, Numeric, Select, Subquery, extract, func, select, tuple_, type_coerce

from session_lifecycle.statements.shared.json_rows import Column
from session_lifecycle.statements.shared.kept import LIMIT

MICROSECONDS = 1_000_000
"""In a second."""
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


def lasted_us(began: Column, ended: Column) -> ColumnElement[Any]:
    """The microseconds between two moments: exact, and never negative."""
    return _lasted_s(began, ended) * MICROSECONDS


def sum_of_lasted_us(began: Column, ended: Column) -> ColumnElement[Any]:
    """An aggregate: the sum of `lasted_us`. One product takes less time than one for each row."""
    return func.sum(_lasted_s(began, ended), type_=Numeric) * MICROSECONDS


def _lasted_s(began: Column, ended: Column) -> ColumnElement[Any]:
    return func.greatest(type_coerce(extract("epoch", ended - began), Numeric), 0, type_=Numeric)


def percentiles(duration_us: ColumnElement[Any]) -> dict[str, ColumnElement[Any]]:
    """Each percentile by its name, in microseconds, interpolated between two durations; null without durations."""
    # A double holds microseconds exactly for durations below 285 years.
    ordered = duration_us.cast(Double).asc()
    return {name: func.percentile_cont(fraction).within_group(ordered) for name, fraction in PERCENTILES.items()}


def durations_of(rows: Subquery) -> Select[*tuple[Any, ...]]:
    """One row over all durations, with a null `key`, and then one row per key.

    Each row has the count `durations` and the percentiles. The keys with the most durations come first, ties by key.

    Args:
        rows: One row per duration: its `key`, never null, and `duration_us`.
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


def listed_durations(rows: Subquery) -> Select[*tuple[Any, ...]]:
    """Each different duration of each key with the number of times that it is there, as `lasted`. Binds `limit`.

    Where several servers have the durations, their percentiles do not determine those of all, so all are needed.

    Args:
        rows: See `durations_of`.
    """
    columns = (rows.c.key, rows.c.duration_us)
    return select(*columns, func.count().label("lasted")).group_by(*columns).limit(LIMIT)
