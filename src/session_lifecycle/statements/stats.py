"""Figures over all sessions of a viewer (rule R16)."""

from functools import cache
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Numeric, Select, Text, false, func, literal, select, union_all

from session_lifecycle.entities import RolledUpSessionEntity as U
from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.models import EffectiveStatus
from session_lifecycle.statements.durations import durations_of
from session_lifecycle.statements.scopes import ScopeKinds
from session_lifecycle.statements.spans import by_effective_status
from session_lifecycle.statements.totals import duration_us, in_span, session_totals


@cache
def aggregate_stats(kinds: ScopeKinds) -> Select[*tuple[Any, ...]]:
    """Exactly one row, zeros where there are no sessions. Binds what `by_effective_status` and the scopes do."""
    found = session_totals(kinds, by_effective_status()).subquery("found")
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
    spans = by_effective_status()
    wanted = spans if status_filter is None else {status_filter.value: spans[status_filter.value]}
    found = session_totals(kinds, wanted, ["sessions"], of_agent=of_agent).subquery("found")
    return select(func.coalesce(func.sum(found.c.sessions), 0).cast(BigInteger)).scalar_subquery()


@cache
def session_durations(kinds: ScopeKinds) -> Select[*tuple[Any, ...]]:
    """As `durations_of`, by effective status. Binds what `aggregate_stats` does.

    From rows only: the percentiles of two halves do not tell those of the whole.
    """
    found = [
        select(literal(label, Text).label("key"), duration_us(table).label("duration_us")).where(
            seen, *in_span(table, span)
        )
        for label, span in by_effective_status().items()
        for table in (U, S)
        for seen in kinds.conditions(table) or [false()]
    ]
    return durations_of(union_all(*found).subquery("sessions"))
