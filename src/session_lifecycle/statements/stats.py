"""Figures over all sessions of a viewer (rule R16)."""

from functools import cache
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Numeric, Select, func, select, union_all

from session_lifecycle.models import EffectiveStatus
from session_lifecycle.statements.scopes import ScopeKinds
from session_lifecycle.statements.spans import by_effective_status, filled
from session_lifecycle.statements.totals import session_totals


@cache
def aggregate_stats(kinds: ScopeKinds) -> Select[*tuple[Any, ...]]:
    """Exactly one row, zeros where there are no sessions. Binds what `by_effective_status` and the scopes do."""
    spans = union_all(*by_effective_status().values()).cte("spans")
    found = session_totals(kinds, filled(spans)).subquery("found")
    counts = [
        func.coalesce(func.sum(found.c.sessions).filter(found.c.key == status.value), 0)
        .cast(BigInteger)
        .label(status.value)
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


def count_sessions(kinds: ScopeKinds, status_filter: EffectiveStatus | None, *, of_agent: bool) -> ColumnElement[int]:
    """How many sessions there are, for a statement that asks other things as well; binds what `aggregate_stats` does.

    Of one effective status where that is asked, and of the bound `agent_name`.
    """
    by_status = by_effective_status()
    wanted = by_status.values() if status_filter is None else [by_status[status_filter]]
    spans = filled(union_all(*wanted).cte("spans"))
    found = session_totals(kinds, spans, ["sessions"], of_agent=of_agent).subquery("found")
    return select(func.coalesce(func.sum(found.c.sessions), 0).cast(BigInteger)).scalar_subquery()
