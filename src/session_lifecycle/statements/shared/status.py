"""The effective status (rule R12), as an expression on a row and as windows on the last activity."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Interval, Text, and_, any_, bindparam, case, func, literal
from sqlalchemy.dialects.postgresql import ARRAY

from session_lifecycle.models import EffectiveStatus, SessionStatus
from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.clock import Moment, clock
from session_lifecycle.statements.shared.json_rows import Column
from session_lifecycle.statements.shared.window import Ends, StatusWindow, window

StatusTable = type[tables.sessions | tables.rolled_up_sessions | tables.roll_ups | tables.roll_up_changes]
"""A table whose rows have a stored status."""


def abandoned_before(abandon_after: timedelta | None, now: Moment) -> Moment:
    """A running session is abandoned when its last activity is before this moment, and not when it is at this moment.

    Args:
        abandon_after: The threshold; None where the caller binds `abandon_after` when it runs the statement.
        now: The moment at which the status is judged.
    """
    return now - bindparam("abandon_after", abandon_after, type_=Interval())


def initial(status: Column | ColumnElement[Any]) -> ColumnElement[str]:
    """The initial of a stored status, different for each: the indexes on rolled-up sessions have no more of it."""
    return func.left(status, 1, type_=Text)


def is_stored_as(stored: Sequence[SessionStatus], table: StatusTable) -> ColumnElement[bool]:
    """Whether a row has one of these stored statuses, in a form that the table's indexes serve."""
    is_rolled_up = table is tables.rolled_up_sessions
    status = initial(table.status) if is_rolled_up else table.status
    values = [one.value[0] if is_rolled_up else one.value for one in stored]
    # A comparison with one value takes less time for each row than one with an array of one.
    return status == (literal(values[0], Text) if len(values) == 1 else any_(literal(values, ARRAY(Text))))


def is_waiting() -> ColumnElement[bool]:
    """Whether a session waits for somebody: it is running, and no activity is later than the touch that said so.

    It is never null. A session that waits is not rolled up, so no rolled-up session waits.
    """
    return and_(
        tables.sessions.status == SessionStatus.RUNNING.value,
        # The indexes on the sessions that wait are partial and have these two conditions. The second one also keeps the
        # next one from being null.
        ~tables.sessions.rolled_up,
        tables.sessions.waiting_since.is_not(None),
        tables.sessions.waiting_since >= tables.sessions.last_activity_at,
    )


def is_abandoned(abandon_after: timedelta, now: Moment) -> ColumnElement[bool]:
    """Whether a session is stored as running, waits for nobody, and has been idle for longer than the threshold."""
    return and_(
        tables.sessions.status == SessionStatus.RUNNING.value,
        tables.sessions.last_activity_at < abandoned_before(abandon_after, now),
        ~is_waiting(),
    )


def effective_status(abandon_after: timedelta, now: Moment) -> ColumnElement[str]:
    """`waiting` where `is_waiting` holds, `abandoned` where `is_abandoned` holds, else the stored status."""
    return case(
        (is_waiting(), literal(EffectiveStatus.WAITING.value, Text)),
        (is_abandoned(abandon_after, now), literal(EffectiveStatus.ABANDONED.value, Text)),
        else_=tables.sessions.status,
    )


def has_status(wanted: EffectiveStatus, abandon_after: timedelta, now: Moment) -> ColumnElement[bool]:
    """Whether a session has the wanted effective status, in a form that an index on the activity can serve."""
    if wanted is EffectiveStatus.WAITING:
        return is_waiting()
    abandoned = is_abandoned(abandon_after, now)
    if wanted is EffectiveStatus.ABANDONED:
        return abandoned
    if wanted is EffectiveStatus.RUNNING:
        return and_(tables.sessions.status == wanted.value, ~abandoned, ~is_waiting())
    return tables.sessions.status == wanted.value


def stored_statuses(wanted: EffectiveStatus | None) -> list[SessionStatus]:
    """The stored statuses of sessions with this effective status; all of them where it is None."""
    if wanted is None:
        return list(SessionStatus)
    of_running = {EffectiveStatus.RUNNING, EffectiveStatus.WAITING, EffectiveStatus.ABANDONED}
    return [SessionStatus.RUNNING if wanted in of_running else SessionStatus(wanted.value)]


def waits(wanted: EffectiveStatus | None) -> bool | None:
    """Whether sessions with this effective status wait; None: a session may or may not, or cannot wait anyway."""
    if wanted is EffectiveStatus.WAITING:
        return True
    return False if wanted in {EffectiveStatus.RUNNING, EffectiveStatus.ABANDONED} else None


def activity_bounds(
    wanted: EffectiveStatus | None, abandon_after: timedelta | None, now: Moment
) -> tuple[Moment | None, Moment | None]:
    """The window `[since, until)` on the last activity that a status adds to its stored status; None is an open end."""
    abandoned = abandoned_before(abandon_after, now)
    since = abandoned if wanted is EffectiveStatus.RUNNING else None
    until = abandoned if wanted is EffectiveStatus.ABANDONED else None
    return since, until


def status_windows(ends: Ends) -> dict[str, StatusWindow]:
    """The window on the last activity, split into one status window per effective status.

    The windows of `running` and `abandoned` do not have the sessions that wait.

    Binds the ends that are given, `abandon_after` and `as_of`.
    """
    since, until = window(ends)
    abandoned = abandoned_before(None, clock())
    active_since = abandoned if since is None else func.greatest(since, abandoned)
    idle_until = abandoned if until is None else func.least(until, abandoned)
    return {
        EffectiveStatus.RUNNING.value: StatusWindow(SessionStatus.RUNNING, active_since, until, waits=False),
        EffectiveStatus.WAITING.value: StatusWindow(SessionStatus.RUNNING, since, until, waits=True),
        EffectiveStatus.COMPLETED.value: StatusWindow(SessionStatus.COMPLETED, since, until),
        EffectiveStatus.FAILED.value: StatusWindow(SessionStatus.FAILED, since, until),
        EffectiveStatus.ABANDONED.value: StatusWindow(SessionStatus.RUNNING, since, idle_until, waits=False),
    }
