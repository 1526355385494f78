"""The clock that every read judges by, and the type of a moment in SQL."""

from datetime import datetime

from sqlalchemy import ColumnElement, DateTime, bindparam, func

Moment = ColumnElement[datetime]
TIMESTAMPTZ = DateTime(timezone=True)


def clock(as_of: datetime | None = None) -> Moment:
    """The moment at which a read judges: the bound `as_of`, or the database's clock where `as_of` is null.

    Every read binds its clock, so that several statements can share one moment: the pages of one walk, or one question
    put to several servers. The database's clock is `statement_timestamp()`, because `now()` stands still inside a
    host's transaction.
    """
    given = bindparam("as_of", as_of, type_=TIMESTAMPTZ)
    return func.coalesce(given, func.statement_timestamp(type_=TIMESTAMPTZ), type_=TIMESTAMPTZ)
