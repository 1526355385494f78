"""The effective status, as one expression for every read (rule R12)."""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, DateTime, Interval, Text, and_, bindparam, case, func, literal

from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.models import EffectiveStatus

INSTANT = DateTime(timezone=True)


def clock(as_of: datetime | None = None) -> ColumnElement[datetime]:
    """The database's clock at this statement, also inside a host's transaction; or the moment a page walk began."""
    return func.statement_timestamp(type_=INSTANT) if as_of is None else bindparam("as_of", as_of, type_=INSTANT)


def abandoned_before(abandon_after: timedelta | None, now: ColumnElement[datetime]) -> ColumnElement[datetime]:
    """A running session last active before this is idle for longer than the threshold; exactly then, it is not.

    The threshold is None where the statement is given it as `abandon_after` when it runs.
    """
    return now - bindparam("abandon_after", abandon_after, type_=Interval())


def is_abandoned(abandon_after: timedelta, now: ColumnElement[datetime]) -> ColumnElement[bool]:
    """Running, and idle for longer than the threshold."""
    return and_(S.status == EffectiveStatus.RUNNING.value, S.last_activity_at < abandoned_before(abandon_after, now))


def effective_status(abandon_after: timedelta, now: ColumnElement[datetime]) -> ColumnElement[str]:
    """`abandoned` where that holds, else the stored status."""
    return case((is_abandoned(abandon_after, now), literal(EffectiveStatus.ABANDONED.value, Text)), else_=S.status)


def has_status(wanted: EffectiveStatus, abandon_after: timedelta, now: ColumnElement[datetime]) -> ColumnElement[bool]:
    """Whether the effective status is the wanted one, in a form an index on the activity can serve."""
    abandoned = is_abandoned(abandon_after, now)
    if wanted is EffectiveStatus.ABANDONED:
        return abandoned
    if wanted is EffectiveStatus.RUNNING:
        return and_(S.status == wanted.value, ~abandoned)
    return S.status == wanted.value
