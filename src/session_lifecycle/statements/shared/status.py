"""The effective status (rule R12), as an expression on a row and as windows on the last activity."""

from datetime import timedelta

from sqlalchemy import ColumnElement, Interval, Text, and_, bindparam, case, func, literal

from session_lifecycle.models import EffectiveStatus, SessionStatus
from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.clock import Moment, clock
from session_lifecycle.statements.shared.window import StatusWindow, window


def abandoned_before(abandon_after: timedelta | None, now: Moment) -> Moment:
    """A running session is abandoned when its last activity is before this moment, and not when it is at this moment.

    Args:
        abandon_after: The threshold; None where the caller binds `abandon_after` when it runs the statement.
        now: The moment at which the status is judged.
    """
    return now - bindparam("abandon_after", abandon_after, type_=Interval())


def is_abandoned(abandon_after: timedelta, now: Moment) -> ColumnElement[bool]:
    """Whether a session is stored as running and has been idle for longer than the threshold."""
    return and_(
        tables.sessions.status == EffectiveStatus.RUNNING.value,
        tables.sessions.last_activity_at < abandoned_before(abandon_after, now),
    )


def effective_status(abandon_after: timedelta, now: Moment) -> ColumnElement[str]:
    """`abandoned` where `is_abandoned` holds, else the stored status."""
    return case(
        (is_abandoned(abandon_after, now), literal(EffectiveStatus.ABANDONED.value, Text)), else_=tables.sessions.status
    )


def has_status(wanted: EffectiveStatus, abandon_after: timedelta, now: Moment) -> ColumnElement[bool]:
    """Whether a session has the wanted effective status, in a form that an index on the activity can serve."""
    abandoned = is_abandoned(abandon_after, now)
    if wanted is EffectiveStatus.ABANDONED:
        return abandoned
    if wanted is EffectiveStatus.RUNNING:
        return and_(tables.sessions.status == wanted.value, ~abandoned)
    return tables.sessions.status == wanted.value


def stored_statuses(wanted: EffectiveStatus | None) -> list[SessionStatus]:
    """The stored statuses of sessions with this effective status; all of them where it is None."""
    if wanted is None:
        return list(SessionStatus)
    return [SessionStatus.RUNNING if wanted is EffectiveStatus.ABANDONED else SessionStatus(wanted.value)]


def activity_bounds(
    wanted: EffectiveStatus | None, abandon_after: timedelta | None, now: Moment
) -> tuple[Moment | None, Moment | None]:
    """The window `[since, until)` on the last activity that a status adds to its stored status; None is an open end."""
    abandoned = abandoned_before(abandon_after, now)
    since = abandoned if wanted is EffectiveStatus.RUNNING else None
    until = abandoned if wanted is EffectiveStatus.ABANDONED else None
    return since, until


def status_windows() -> dict[str, StatusWindow]:
    """The window on the last activity, split into one status window per effective status.

    Binds `since`, `until`, `abandon_after` and `as_of`.
    """
    since, until = window()
    abandoned = abandoned_before(None, clock())
    return {
        EffectiveStatus.RUNNING.value: StatusWindow(SessionStatus.RUNNING, func.greatest(since, abandoned), until),
        EffectiveStatus.COMPLETED.value: StatusWindow(SessionStatus.COMPLETED, since, until),
        EffectiveStatus.FAILED.value: StatusWindow(SessionStatus.FAILED, since, until),
        EffectiveStatus.ABANDONED.value: StatusWindow(SessionStatus.RUNNING, since, func.least(until, abandoned)),
    }
