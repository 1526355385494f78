"""Rolling up: the sessions that can be rolled up, and calls of the functions in our schema that do it.

The functions themselves are in `alembic/functions/roll_ups/`.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, Integer, Select, and_, bindparam, exists, or_, select, type_coerce

from session_lifecycle.entities import quoted
from session_lifecycle.models import SessionStatus
from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.clock import TIMESTAMPTZ
from session_lifecycle.statements.shared.database_functions import database_function, json_parameter
from session_lifecycle.statements.shared.kept import kept
from session_lifecycle.statements.shared.paging import after_key
from session_lifecycle.statements.shared.status import is_waiting
from session_lifecycle.statements.shared.visibility import of_everybody


def is_to_roll_up(idle_before: datetime | ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a session is not rolled up and can be: it ended, or waits for nobody and was last active before this."""
    is_over = or_(
        tables.sessions.status != SessionStatus.RUNNING.value,
        and_(tables.sessions.last_activity_at < idle_before, ~is_waiting()),
    )
    return and_(~tables.sessions.rolled_up, of_everybody(tables.sessions), is_over)


def sessions_to_roll_up(
    idle_before: datetime, after: Sequence[Any] | None, limit: int
) -> Select[UUID, str, datetime, str]:
    """The next sessions to roll up: they ended, or wait for nobody and were last active before `idle_before`.

    They come user by user, in the order of an index, after a row of this statement: the rows of rolled-up sessions that
    come one after another fill the pages of their indexes.
    """
    order = (
        tables.sessions.user_id,
        tables.sessions.status,
        tables.sessions.activity_minute,
        tables.sessions.session_id,
    )
    statement = select(*order).where(is_to_roll_up(idle_before)).order_by(*order).limit(limit)
    return statement if after is None else statement.where(after_key(order, after))


@kept
def roll_up_sessions(schema: str) -> Select[int]:
    """Rolls up the sessions of the bound `keys`, a JSON array as text. One row: how many it rolled up.

    It leaves out running sessions that were active since the bound `idle_before`, and sessions that are locked.
    """
    arguments = (json_parameter("keys"), bindparam("idle_before", type_=TIMESTAMPTZ))
    return select(type_coerce(database_function(schema, "roll_up_sessions_v1", *arguments), BigInteger))


def has_buckets() -> Select[bool]:
    """One row: whether the buckets of everybody, which are made last, are there."""
    return select(exists().where(tables.roll_ups.family == "all"))


def tables_of_many(schema: str) -> list[str]:
    """The tables that change most where many sessions are rolled up, as SQL."""
    changed = (tables.sessions, tables.rolled_up_sessions, tables.roll_ups, tables.model_roll_ups, tables.model_usage)
    return [f"{quoted(schema)}.{table.__tablename__}" for table in changed]


@kept
def compact(schema: str) -> Select[int]:
    """Puts changes into the roll-ups, at most the bound `most` of each kind. One row: how many it put in."""
    most = bindparam("most", type_=Integer)
    return select(type_coerce(database_function(schema, "compact_roll_ups_v1", most), BigInteger))
