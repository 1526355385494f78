"""The window `[since, until)` of a read, as conditions on a column or as bound moments."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, bindparam
from sqlalchemy.orm import InstrumentedAttribute

from session_lifecycle.models import SessionStatus
from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.clock import TIMESTAMPTZ, Moment
from session_lifecycle.statements.shared.kept import unknown

Bound = datetime | Moment
"""An end of a window: its time, or the expression that binds it."""


class StatusWindow(NamedTuple):
    """A window on the last activity of the sessions with one stored status, or with any status where it is None."""

    status: SessionStatus | None
    since: Moment | None
    until: Moment | None
    """The ends; None is an open end."""
    waits: bool | None = None
    """Whether the sessions wait; None: whether they wait or not. No rolled-up session waits."""


class Ends(NamedTuple):
    """Which ends of a window are given. The text of a statement depends on them: Postgres would expect a window that
    may be open to have hardly any sessions.
    """

    since: bool
    until: bool


def ends_of(since: datetime | None, until: datetime | None) -> Ends:
    """The ends that a caller gives."""
    return Ends(since is not None, until is not None)


def window(ends: Ends, *, are_unknown: bool = False) -> tuple[Moment | None, Moment | None]:
    """The bound `since` and `until`, where they are given; as `unknown` values where they should be."""
    bound: list[Moment] = [bindparam(name, type_=TIMESTAMPTZ) for name in Ends._fields]
    since, until = map(unknown, bound) if are_unknown else bound
    return since if ends.since else None, until if ends.until else None


def active_within(since: Bound | None, until: Bound | None) -> list[ColumnElement[bool]]:
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
