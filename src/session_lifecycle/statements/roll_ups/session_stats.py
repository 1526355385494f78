"""Figures over all sessions that a viewer sees (rule R16)."""

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Subquery,
    Text,
    false,
    literal,
    select,
    union_all,
)

from session_lifecycle.models import EffectiveStatus
from session_lifecycle.statements import tables
from session_lifecycle.statements.roll_ups.totals import (
    SESSION_FIGURES,
    duration_us,
    figures_of_all_rows,
    in_window,
    session_figures,
    sessions_ever,
)
from session_lifecycle.statements.shared.durations import durations_of, listed_durations
from session_lifecycle.statements.shared.few import are_few
from session_lifecycle.statements.shared.further_totals import FURTHER_TOTALS, as_text
from session_lifecycle.statements.shared.kept import kept
from session_lifecycle.statements.shared.status import status_windows, stored_statuses, waits
from session_lifecycle.statements.shared.visibility import ScopeKinds, ViewerShape, visible
from session_lifecycle.statements.shared.window import Ends, StatusWindow, window


@kept
def aggregate_stats(kinds: ScopeKinds, ends: Ends) -> Select[*tuple[Any, ...]]:
    """Exactly one row; its figures are zero where there are no sessions.

    Binds the parameters of `status_windows` and of the scopes.
    """
    return _stats_of(session_figures(kinds, ends, status_windows(ends)))


@kept
def few_stats(viewer: ViewerShape, ends: Ends) -> Select[*tuple[Any, ...]]:
    """The row of `aggregate_stats`, by a statement for few sessions.

    Binds the parameters of `status_windows`, of the viewer and of `are_few`.
    """
    windows = status_windows(ends)
    figures = figures_of_all_rows(visible(viewer.looking_at_all()), ends, windows)
    return _stats_of(figures).where(are_few(tables.sessions))


def _stats_of(figures_of_sessions: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    found = figures_of_sessions.subquery("found")
    labels = {"cost_usd": "total_spend_usd", "duration_us": "agent_time_us"}
    figures = [found.c[name].label(labels.get(name, name)) for name in SESSION_FIGURES if name != FURTHER_TOTALS]
    # A session that waits is running, and is counted apart too.
    running = (found.c.running + found.c.waiting).label(EffectiveStatus.RUNNING.value)
    counts = [running if one is EffectiveStatus.RUNNING else found.c[one.value] for one in EffectiveStatus]
    return select(*figures, *counts, as_text(found.c[FURTHER_TOTALS]))


def count_sessions(
    kinds: ScopeKinds, ends: Ends, status_filter: EffectiveStatus | None, *, has_agent_name: bool
) -> ColumnElement[int]:
    """The number of sessions, as a part of another statement. Binds the parameters of `aggregate_stats`.

    Args:
        kinds: The kinds of the viewer's scopes.
        ends: The ends of the window that are given. The statement is shorter where none is.
        status_filter: Counts the sessions with this effective status only; None counts all.
        has_agent_name: Whether to count the sessions of the bound `agent_name` only.
    """
    # A status of a running session depends on its last activity.
    if waits(status_filter) is None and not any(ends) and not has_agent_name:
        return sessions_ever(kinds, None if status_filter is None else stored_statuses(status_filter)[0])
    if status_filter is None:
        windows = {"any": StatusWindow(None, *window(ends))}
    else:
        windows = {status_filter.value: status_windows(ends)[status_filter.value]}
    return session_figures(kinds, ends, windows, (), has_agent_name=has_agent_name).scalar_subquery()


@kept
def session_durations(kinds: ScopeKinds, ends: Ends) -> Select[*tuple[Any, ...]]:
    """The durations of sessions by effective status, in the rows of `durations_of`. Binds as `aggregate_stats` does.

    The roll-ups cannot help: the percentiles of two halves do not determine the percentiles of the whole.
    """
    return durations_of(_durations(kinds, ends))


@kept
def list_session_durations(kinds: ScopeKinds, ends: Ends) -> Select[*tuple[Any, ...]]:
    """The same durations, in the rows of `listed_durations`. Binds `limit`, too."""
    return listed_durations(_durations(kinds, ends))


def _durations(kinds: ScopeKinds, ends: Ends) -> Subquery:
    durations = [
        select(literal(label, Text).label("key"), duration_us(table).label("duration_us")).where(
            in_scope, *in_window(table, window)
        )
        for label, window in status_windows(ends).items()
        for table in (tables.rolled_up_sessions, tables.sessions)
        for in_scope in kinds.conditions(table) or [false()]
    ]
    return union_all(*durations).subquery("sessions")
