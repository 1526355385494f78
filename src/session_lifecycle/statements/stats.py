"""Figures over all sessions of a viewer (rule R16)."""

from datetime import datetime, timedelta
from itertools import product
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Numeric, Select, and_, false, func, select, union_all

from session_lifecycle.entities import RolledUpSessionEntity as U
from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.models import EffectiveStatus, Viewer
from session_lifecycle.models.reads import SessionFilters
from session_lifecycle.statements.durations import durations_of
from session_lifecycle.statements.scopes import scopes
from session_lifecycle.statements.spans import by_effective_status, filled
from session_lifecycle.statements.status import clock
from session_lifecycle.statements.totals import active_in, duration_us, session_totals


def aggregate_stats(
    viewer: Viewer, since: datetime | None, until: datetime | None, abandon_after: timedelta
) -> Select[*tuple[Any, ...]]:
    """Exactly one row, zeros where there are no sessions."""
    spans = union_all(*by_effective_status(since, until, abandon_after, clock()).values()).cte("spans")
    found = session_totals(scopes(viewer), filled(spans)).subquery("found")
    counts = [
        func.coalesce(func.sum(found.c.sessions).filter(found.c.key == status.value), 0).cast(BigInteger).label(status)
        for status in EffectiveStatus
    ]
    totals = [
        func.coalesce(func.sum(found.c[name]), 0).cast(kind).label(label)
        for label, name, kind in (
            ("sessions", "sessions", BigInteger),
            ("total_spend_usd", "cost_usd", Numeric),
            ("late_cost_usd", "late_cost_usd", Numeric),
            ("agent_time_us", "duration_us", Numeric),
            ("tokens_in", "tokens_in", Numeric),
            ("tokens_out", "tokens_out", Numeric),
            ("unpriced_events", "unpriced_events", BigInteger),
            ("unmeasured_events", "unmeasured_events", BigInteger),
            ("late_events", "late_events", BigInteger),
        )
    ]
    return select(*totals, *counts)


def count_sessions(
    filters: SessionFilters, abandon_after: timedelta, now: ColumnElement[datetime]
) -> ColumnElement[int]:
    """How many visible sessions the filters choose, for a statement that asks other things as well."""
    by_status = by_effective_status(filters.since, filters.until, abandon_after, now)
    wanted = by_status.values() if filters.status_filter is None else [by_status[filters.status_filter]]
    found = session_totals(
        scopes(filters.asker, filters.owner_id, filters.dataset_id),
        filled(union_all(*wanted).cte("spans")),
        ["sessions"],
        filters.agent_name,
    ).subquery("found")
    return select(func.coalesce(func.sum(found.c.sessions), 0).cast(BigInteger)).scalar_subquery()


def session_durations(
    viewer: Viewer, since: datetime | None, until: datetime | None, abandon_after: timedelta
) -> Select[*tuple[Any, ...]]:
    """As `durations_of`, by effective status. From rows only: percentiles of parts tell nothing about the whole."""
    # One by one, so that each is planned by the window it has.
    spans = [span.subquery() for span in by_effective_status(since, until, abandon_after, clock()).values()]
    found = [
        select(span.c.label.label("key"), duration_us(table).label("duration_us")).join_from(
            span, table, and_(seen, table.status == span.c.status, *active_in(table, span))
        )
        for span, table in product(spans, (U, S))
        for seen in scopes(viewer).conditions(table) or [false()]
    ]
    return durations_of(union_all(*found).subquery("sessions"))
