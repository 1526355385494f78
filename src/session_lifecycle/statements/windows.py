"""The window of time every report takes: `[since, until)`."""

from datetime import datetime

from sqlalchemy import ColumnElement
from sqlalchemy.orm import InstrumentedAttribute

from session_lifecycle.entities import SessionRecordEntity as S


def active_within(since: datetime | None, until: datetime | None) -> list[ColumnElement[bool]]:
    """Conditions on a session's last activity; none where the window is open."""
    return within(S.last_activity_at, since, until)


def within(
    moment: InstrumentedAttribute[datetime] | InstrumentedAttribute[datetime | None],
    since: datetime | None,
    until: datetime | None,
) -> list[ColumnElement[bool]]:
    """Conditions on a moment; none where the window is open."""
    conditions: list[ColumnElement[bool]] = []
    if since is not None:
        conditions.append(moment >= since)
    if until is not None:
        conditions.append(moment < until)
    return conditions
