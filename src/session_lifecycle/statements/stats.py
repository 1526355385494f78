"""Figures over all sessions of a viewer (rule R16)."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Numeric, Select, func, select

from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.models import EffectiveStatus, Viewer
from session_lifecycle.statements.status import clock, has_status
from session_lifecycle.statements.visibility import visible
from session_lifecycle.statements.windows import active_within


def aggregate_stats(
    viewer: Viewer, since: datetime | None, until: datetime | None, abandon_after: timedelta
) -> Select[*tuple[Any, ...]]:
    """Exactly one row, zeros where there are no sessions."""
    now = clock()
    duration_s = func.greatest(0, func.extract("epoch", func.coalesce(S.ended_at, S.last_activity_at) - S.started_at))
    counts = [
        func.count().filter(has_status(status, abandon_after, now)).label(status.value) for status in EffectiveStatus
    ]
    totals = [
        func.coalesce(func.sum(column), 0).cast(kind).label(name)
        for name, column, kind in (
            ("total_spend_usd", S.cost_usd, Numeric),
            ("late_cost_usd", S.late_cost_usd, Numeric),
            ("agent_time_s", duration_s, Numeric),
            ("tokens_in", S.tokens_in, Numeric),
            ("tokens_out", S.tokens_out, Numeric),
            ("unpriced_events", S.unpriced_events, BigInteger),
            ("unmeasured_events", S.unmeasured_events, BigInteger),
            ("late_events", S.late_events, BigInteger),
        )
    ]
    return (
        select(func.count().label("sessions"), *totals, *counts)
        .select_from(S)
        .where(visible(viewer), *active_within(since, until))
    )
