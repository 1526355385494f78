"""The window `[since, until)` of a read, as conditions on a column or as bound moments."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, bindparam, func, literal_column
from sqlalchemy.orm import InstrumentedAttribute

from session_lifecycle.models import SessionStatus
from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.clock import TIMESTAMPTZ, Moment

Bound = datetime | Moment
"""An end of a window: its time, or the expression that binds it."""


class StatusWindow(NamedTuple):
    """A window on the last activity of the sessions with one stored status, or with any status where it is None."""

    status: SessionStatus | None
    since: Moment
    until: Moment
    waits: bool | None = None
    """Whether the sessions wait; None: whether they wait or not. No rolled-up session waits."""


def window() -> tuple[Moment, Moment]:
    """The bound `since` and `until`; where one is null, it is infinite."""
    since = func.coalesce(
        bindparam("since", type_=TIMESTAMPTZ), literal_column("'-infinity'::timestamptz", TIMESTAMPTZ)
    )
    until = func.coalesce(bindparam("until", type_=TIMESTAMPTZ), literal_column("'infinity'::timestamptz", TIMESTAMPTZ))
    return since, until


def active_within(since: datetime | None, until: datetime | None) -> list[ColumnElement[bool]]:
    """Conditions on the last activity of a session; an end that is None adds no condition."""
    return within(tables.sessions.last_activity_at, since, until)


def within(
    moment: InstrumentedAttribute[datetime] | InstrumentedAttribute[datetime | None],
    since: Bound | None,
    until: Bound | None,
) -> list[ColumnElement[bool]]:
    """Conditions on a moment; an end that is None adds no condition."""
    conditions: list[ColumnElement[bool]] = []
    if since is not None:
        conditions.append(moment >= since)
    if until is not None:
        conditions.append(moment < until)
    return conditions
