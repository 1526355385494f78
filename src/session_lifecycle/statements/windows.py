"""The window of time every report takes: `[since, until)`, here on a session's last activity."""

from datetime import datetime

from sqlalchemy import ColumnElement

from session_lifecycle.entities import SessionRecordEntity as S


def active_within(since: datetime | None, until: datetime | None) -> list[ColumnElement[bool]]:
    """Conditions on `last_activity_at`; none where the window is open."""
    conditions: list[ColumnElement[bool]] = []
    if since is not None:
        conditions.append(S.last_activity_at >= since)
    if until is not None:
        conditions.append(S.last_activity_at < until)
    return conditions
